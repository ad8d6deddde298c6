// SPDX-License-Identifier: Apache-2.0
#include "text/parquet.h"

#include <string>

#include "fuzz/target.h"
#include "support/temporary_folder.h"

void fettle::fuzz::run_target(std::string_view input) {
  static const TemporaryFolder folder;  // the reader maps a file: there is no way in for bytes alone
  auto reader = text::ParquetReader::open(folder.write("fuzz.parquet", input));
  for (std::string lines; reader.next_rows(lines);) {
  }
}
