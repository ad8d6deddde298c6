// SPDX-License-Identifier: Apache-2.0
#include "hub/gguf.h"

#include "fuzz/target.h"

void fettle::fuzz::run_target(std::string_view input) {
  const auto file = hub::GgufFile::parse(std::as_bytes(std::span(input)), "fuzz.gguf");
  for (const hub::TensorView& view : file.model_tensors()) {
    std::vector<float> values(static_cast<size_t>(hub::element_count(view)));
    hub::read_floats(view, values);
  }
}
