// SPDX-License-Identifier: Apache-2.0
#include "data/reader.h"
#include "fuzz/target.h"

void fettle::fuzz::run_target(std::string_view input) {
  data::read_records_from_memory(data::FileFormat::kCsv, input, [](const data::Record& /*record*/) {});
}
