// SPDX-License-Identifier: Apache-2.0
#include "fuzz/target.h"
#include "hub/safetensors.h"

void fettle::fuzz::run_target(std::string_view input) {
  hub::parse_safetensors_index(input, "model.safetensors.index.json");
}
