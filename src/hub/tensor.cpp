// SPDX-License-Identifier: Apache-2.0
#include "hub/tensor.h"

#include <array>

namespace fettle::hub {
namespace {

struct DTypeFacts {
  std::string_view name;
  BlockLayout layout;
};

/// In the order of the enum.
constexpr std::array<DTypeFacts, 15> kFacts = {{
    {"F64", {1, 8}},
    {"F32", {1, 4}},
    {"F16", {1, 2}},
    {"BF16", {1, 2}},
    {"I64", {1, 8}},
    {"I32", {1, 4}},
    {"I16", {1, 2}},
    {"I8", {1, 1}},
    {"U8", {1, 1}},
    {"BOOL", {1, 1}},
    {"Q8_0", {32, 34}},
    {"Q4_0", {32, 18}},
    {"Q4_1", {32, 20}},
    {"Q5_0", {32, 22}},
    {"Q5_1", {32, 24}},
}};

const DTypeFacts& facts(DType dtype) {
  return kFacts.at(static_cast<size_t>(dtype));
}

}  // namespace

std::string_view dtype_name(DType dtype) {
  return facts(dtype).name;
}

BlockLayout block_layout(DType dtype) {
  return facts(dtype).layout;
}

int64_t element_count(const TensorView& view) {
  int64_t count = 1;
  for (const int64_t size : view.shape) count *= size;
  return count;
}

}  // namespace fettle::hub
