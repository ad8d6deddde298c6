// SPDX-License-Identifier: Apache-2.0
/// A tensor as it lies in a file: name, type, shape and mapped bytes. No arithmetic but the conversion to float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fettle::hub {

/// Element types of safetensors files, and the block-quantized types of GGUF files (blocks of 32 elements of a row).
enum class DType { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1 };

/// "F32", "BF16", "I64", … as safetensors spells them, "Q8_0", "Q4_0", … as GGUF does.
std::string_view dtype_name(DType dtype);

/// Bytes are stored in whole blocks: one element a block for plain types, 32 for quantized ones.
struct BlockLayout {
  int64_t elements;
  int64_t bytes;
};
BlockLayout block_layout(DType dtype);

/// A tensor of a mapped file; `bytes` lives as long as the TensorSource (or other owner) it came from.
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  ///< outermost first, row-major; empty: a scalar
  std::span<const std::byte> bytes;
  /// 0: rows lie in Hugging Face order. n: `bytes` hold the rows of n attention heads in the order of llama.cpp's
  /// converter (the two halves of each head's rotary rows interleaved); read_floats undoes it, so only code that reads
  /// `bytes` itself must look at this. Only q_proj and k_proj of GGUF llama models have it.
  int64_t interleaved_heads = 0;
};

/// Product of the shape; 1 for a scalar.
int64_t element_count(const TensorView& view);

/// Elements [first, first + out.size()) of the tensor, in row-major Hugging Face order, as float32. Any range may be
/// asked for; ranges that start at whole rows are fastest. Plain f64 f32 f16 bf16 and q8_0 q4_0 q4_1 q5_0 q5_1;
/// integers and bool throw Error{kData} naming the tensor. Thread-safe: parallelism is the caller's.
void read_floats(const TensorView& view, std::span<float> out, int64_t first = 0);

}  // namespace fettle::hub
