// SPDX-License-Identifier: Apache-2.0
#include "data/export.h"

#include "base/file.h"
#include "data/data_support.h"

namespace fettle::data {
namespace {

std::string csv_of(const TemporaryFolder& folder, const std::string& lines) {
  const config::DataConfig config = config_for(folder.write("in.jsonl", lines), folder);
  export_records(config, folder / "out.csv");
  return read_file(folder / "out.csv");
}

TEST(ExportTest, EmptyCellsAndNamesKeepTheirColumns) {
  const TemporaryFolder folder;
  EXPECT_EQ(csv_of(folder, "{\"\": 1, \"b\": \"x,y\"}\n{\"\": \"\", \"b\": null}\n"), ",b\n1,\"x,y\"\n,\n");
}

TEST(ExportTest, AnEmptyRecordOfOneColumnIsNoEmptyLine) {
  const TemporaryFolder folder;
  EXPECT_EQ(csv_of(folder, "{\"text\": \"a\"}\n{\"text\": \"\"}\n{\"text\": null}\n"), "text\na\n\"\"\n\"\"\n");
}

}  // namespace
}  // namespace fettle::data
