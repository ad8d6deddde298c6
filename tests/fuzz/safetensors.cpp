// SPDX-License-Identifier: Apache-2.0
#include "hub/safetensors.h"

#include <vector>

#include "fuzz/target.h"

void fettle::fuzz::run_target(std::string_view input) {
  const auto content = hub::parse_safetensors(std::as_bytes(std::span(input)), "fuzz.safetensors");
  for (const hub::TensorView& view : content.tensors) {
    std::vector<float> values(static_cast<size_t>(hub::element_count(view)));
    hub::read_floats(view, values);
  }
}
