// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace fettle {
namespace {

TEST(Utf8, FindsTheFirstByteThatDoesNotBelong) {
  EXPECT_EQ(find_invalid_utf8("plain, ä, €, 😀"), std::string_view::npos);
  EXPECT_EQ(find_invalid_utf8("twelve bytes\xff"), 12U);
  EXPECT_EQ(find_invalid_utf8("a\xc0\xaf"), 1U) << "overlong";
  EXPECT_EQ(find_invalid_utf8("ab\xed\xa0\x80"), 2U) << "surrogate";
  EXPECT_EQ(find_invalid_utf8("\xf4\x90\x80\x80"), 0U) << "above U+10FFFF";
  EXPECT_EQ(find_invalid_utf8("\xe2\x82"), 0U) << "cut off";
}

TEST(Utf8, OneLineHasNoControlCharactersAndIsUtf8) {
  EXPECT_EQ(one_line("a\nb\tc\x7f"), "a b c ");
  EXPECT_EQ(one_line(std::string_view("a\0b", 3)), "a b");
  EXPECT_EQ(one_line("ä\xff€"), "ä\uFFFD€");
  EXPECT_EQ(one_line("\xff\xff"), "\uFFFD\uFFFD");
  EXPECT_EQ(one_line(""), "");
}

TEST(Utf8, ShortenKeepsBothEndsAndWholeCharacters) {
  EXPECT_EQ(shorten("short", 5), "short");
  EXPECT_EQ(shorten("cannot open " + std::string(50, 'x') + ": too long", 24), "cannot open …xx: too long");
  EXPECT_EQ(shorten("ääääää", 6), "ä…ä");
}

TEST(Utf8, QuoteCutsLongTextBetweenCharacters) {
  EXPECT_EQ(quote("q_proj"), "'q_proj'");
  EXPECT_EQ(quote(std::string(121, 'x')), "'" + std::string(120, 'x') + "…'");
  EXPECT_EQ(quote(std::string(119, 'x') + "äb"), "'" + std::string(119, 'x') + "…'");
}

}  // namespace
}  // namespace fettle
