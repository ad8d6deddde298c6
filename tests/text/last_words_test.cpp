// SPDX-License-Identifier: Apache-2.0
// What cannot be returned as an Error ends the process with one line and its exit code.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>
#include <string>

#include "base/error.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fettle::text {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;  // has a handler of its own, and more memory than a limit can be set to
#else
constexpr bool kSanitized = false;
#endif

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(LastWords, AnExpressionDeeperThanTheStack) {
  if (kSanitized) GTEST_SKIP();
  const std::string operators[] = {"1" + repeated("+1", 100'000),         repeated("not ", 100'000) + "1",
                                   repeated("-", 200'000) + "1",          "1" + repeated("|string", 100'000),
                                   "a" + repeated(".a", 100'000),         "a" + repeated("()", 100'000),
                                   repeated("1 if 1 else ", 50'000) + "1"};
  for (const std::string& expression : operators) {
    EXPECT_EXIT(ChatTemplate("{{ " + expression + " }}", {}), testing::ExitedWithCode(65),
                "^error: .* the stack; .*\n$");
  }
}

TEST(LastWords, ValuesNestedDeeperThanTheStack) {
  if (kSanitized) GTEST_SKIP();
  const OrderedJson messages = OrderedJson::parse(R"([{"role": "user", "content": "x"}])");
  const std::string nest =
      "{% set n = namespace(x=[]) %}{% for i in range(100000) %}{% for j in range(20) %}"
      "{% set n.x = [n.x] %}{% endfor %}{% endfor %}";
  EXPECT_EXIT((void)ChatTemplate(nest + "{{ n.x }}", {}).render(messages, true), testing::ExitedWithCode(65),
              "the stack");
  EXPECT_EXIT((void)ChatTemplate(nest, {}).render(messages, true), testing::ExitedWithCode(65), "the stack");
}

void encode_without_memory() {
  const auto tokenizer = Tokenizer::load(std::string(FETTLE_SOURCE_DIR) + "/examples/stories260K");
  const std::string text(50'000'000, 'x');
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit limit = {pages * 4096 + 60'000'000, RLIM_INFINITY};
  ::setrlimit(RLIMIT_AS, &limit);
  (void)tokenizer.encode(text, false);
}

TEST(LastWords, NoMemory) {
  if (kSanitized) GTEST_SKIP();
  EXPECT_EXIT(encode_without_memory(), testing::ExitedWithCode(71), "^error: out of memory for texts; .*\n$");
}

TEST(LastWords, ATemplateLargerThanAnyIsRefused) {
  try {
    ChatTemplate(std::string(1'000'001, 'x'), {});
    FAIL() << "no Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    EXPECT_NE(std::string(error.what()).find("1000001 bytes"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace fettle::text
