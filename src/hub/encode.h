// SPDX-License-Identifier: Apache-2.0
/// float32 to the types of a GGUF file: the way back from read_floats.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "hub/tensor.h"

namespace fettle::hub {

/// Writes `values`, whole blocks of them, to `out`, bit for bit as ggml's quantize_row_*_ref do (and the gguf package's
/// quants): f16 and bf16 are rounded to nearest, ties to even; q8_0 q4_0 q4_1 q5_0 q5_1 have a scale of their own for
/// each 32 values. Every value must be one that the type can hold, see find_unstorable.
void encode_floats(std::span<const float> values, DType dtype, std::byte* out);

/// The first value that the type cannot hold: NaN, infinity, or one that float16 (the scales' type, too) or bfloat16
/// would round to infinity.
std::optional<float> find_unstorable(std::span<const float> values, DType dtype);

}  // namespace fettle::hub
