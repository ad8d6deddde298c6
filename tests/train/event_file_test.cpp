// SPDX-License-Identifier: Apache-2.0
#include "train/event_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/file.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

/// The records of the one file in a folder, with both checksums of each compared.
std::vector<std::string> records_in(const std::filesystem::path& folder) {
  const auto unmask = [](uint32_t masked) { return std::rotl(masked - 0xa282ead8U, 15); };
  const auto number = [](std::string_view bytes) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  };
  std::vector<std::string> records;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string content = read_file(entry.path());
    for (size_t at = 0; at < content.size();) {
      const std::string_view header = std::string_view(content).substr(at, 8);
      const uint64_t length = number(header);
      EXPECT_EQ(unmask(static_cast<uint32_t>(number(std::string_view(content).substr(at + 8, 4)))), crc32c(header));
      records.push_back(content.substr(at + 12, length));
      const std::string_view stored = std::string_view(content).substr(at + 12 + length, 4);
      EXPECT_EQ(unmask(static_cast<uint32_t>(number(stored))), crc32c(records.back()));
      at += 16 + length;
    }
  }
  return records;
}

TEST(Crc32c, IsThatOfTheStandard) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU) << "RFC 3720, appendix B.4";
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43U);
  EXPECT_EQ(crc32c(""), 0U);
}

TEST(EventFile, HoldsAVersionAStartAndTheNumbersOfALine) {
  const TemporaryFolder folder;
  EventFile events(folder / "runs", 0);
  events.write({{"step", 300}, {"loss", 1.5}, {"eval_loss", 0.25}, {"note", "no number"}});
  const std::vector<std::string> records = records_in(folder / "runs");
  ASSERT_EQ(records.size(), 3U);
  EXPECT_NE(records[0].find("brain.Event:2"), std::string::npos);
  EXPECT_NE(records[1].find(std::string("\x3a\x02\x08\x01", 4)), std::string::npos) << "session_log {status: START}";
  EXPECT_NE(records[2].find(std::string("\x10\xac\x02", 3)), std::string::npos) << "step: 300";
  EXPECT_NE(records[2].find(std::string("\x0a\x0atrain/loss\x15\x00\x00\xc0\x3f", 17)), std::string::npos);
  EXPECT_NE(records[2].find(std::string("\x0a\x09"
                                        "eval/loss\x15\x00\x00\x80\x3e",
                                        16)),
            std::string::npos);
  EXPECT_EQ(records[2].find("note"), std::string::npos);
}

TEST(EventFile, AFolderThatCannotBeMadeIsAnError) {
  const TemporaryFolder folder;
  folder.write("file", "");
  EXPECT_EQ(code_of([&] { EventFile(folder / "file" / "runs", 0); }), ExitCode::kNoInput);
}

}  // namespace
}  // namespace fettle::train
