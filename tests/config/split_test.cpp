// SPDX-License-Identifier: Apache-2.0
#include "config/split.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace fettle::config {
namespace {

TEST(Split, IsAName) {
  const SplitExpression split = parse_split("test_2.x", "dataset_split");
  EXPECT_EQ(split.name, "test_2.x");
  EXPECT_FALSE(split.is_slice());
  const RecordRange all = records_of(split, 7);
  EXPECT_EQ(all.begin, 0);
  EXPECT_EQ(all.end, 7);
}

struct Slice {
  const char* text;
  int64_t records;
  int64_t begin;
  int64_t end;
};

class SplitSlice : public testing::TestWithParam<Slice> {};

// The expected values are those of datasets' _rel_to_abs_instr.
TEST_P(SplitSlice, CountsAsDatasetsDoes) {
  const auto& [text, records, begin, end] = GetParam();
  const SplitExpression split = parse_split(text, "dataset_split");
  EXPECT_EQ(split.name, "train");
  const RecordRange range = records_of(split, records);
  EXPECT_EQ(range.begin, begin) << text;
  EXPECT_EQ(range.end, end) << text;
}

INSTANTIATE_TEST_SUITE_P(All, SplitSlice,
                         testing::Values(Slice{"train[:17153]", 68912, 0, 17153},
                                         Slice{"train[10%:20%]", 1000, 100, 200}, Slice{"train[:]", 5, 0, 5},
                                         Slice{"train[3:]", 5, 3, 5}, Slice{"train[-2:]", 5, 3, 5},
                                         Slice{"train[:-2]", 5, 0, 3}, Slice{"train[:100]", 5, 0, 5},
                                         Slice{"train[7:9]", 5, 5, 5}, Slice{"train[-9:2]", 5, 0, 2},
                                         Slice{"train[4:2]", 5, 4, 4}, Slice{"train[:50%]", 5, 0, 2},
                                         Slice{"train[50%:]", 5, 2, 5}, Slice{"train[:50%]", 7, 0, 4},
                                         Slice{"train[-10%:]", 50, 45, 50}, Slice{"train[:100%]", 3, 0, 3}));

TEST(Split, RefusesWhatIsNone) {
  for (const char* text : {"", "[:3]", "train[", "train[]", "train[3]", "train[:3", "train[:3]x", "train[a:]",
                           "train[1:2:3]", "train[:%]", "train[:3%%]", "train[10:20%]", "train[:101%]", "train test",
                           "train+test", "train[:1]+test", "../x", "train[:99999999999999999999]"}) {
    try {
      parse_split(text, "dataset_split");
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_NE(std::string(error.what()).find("dataset_split = "), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace fettle::config
