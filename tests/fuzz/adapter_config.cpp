// SPDX-License-Identifier: Apache-2.0
#include "fuzz/target.h"
#include "hub/adapter.h"

void fettle::fuzz::run_target(std::string_view input) {
  hub::parse_adapter_config(input, "adapter_config.json");
}
