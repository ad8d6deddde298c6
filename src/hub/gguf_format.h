// SPDX-License-Identifier: Apache-2.0
/// What reading and writing GGUF files share: the format's numbers, and GGUF's names of tensors beside Hugging Face's.
/// Sources: ggml.h, gguf.h, llama.cpp's gguf-py/gguf/tensor_mapping.py and conversion/llama.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "hub/tensor.h"

namespace fettle::hub {

inline constexpr uint32_t kGgufMagic = 0x46554747;     ///< "GGUF"
inline constexpr uint64_t kGgufDefaultAlignment = 32;  ///< of tensors' bytes, unless general.alignment says otherwise
inline constexpr uint32_t kGgufMaximumDimensions = 4;

/// ggml's value types in the metadata.
enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

/// One of ggml's tensor types.
struct GgufTensorType {
  uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;  ///< none: known to ggml, not supported here
};

/// Null for an unknown number.
const GgufTensorType* find_gguf_type(uint32_t id);
/// Throws Error{kInternal} for a type that GGUF files of models do not have (integers, float64).
const GgufTensorType& gguf_type(DType dtype);

/// An architecture of llama.cpp that Fettle's models have.
struct GgufArchitecture {
  std::string_view name;      ///< general.architecture, and the first part of its keys
  std::string_view hf_class;  ///< of transformers
};
/// Null for one that is not supported.
const GgufArchitecture* find_gguf_architecture(std::string_view name);

/// The divisors of the rotary frequencies in which llama.cpp states Llama 3's rope scaling.
inline constexpr std::string_view kGgufRopeFactors = "rope_freqs.weight";

/// blk.<n>.attn_q.weight ↔ model.layers.<n>.self_attn.q_proj.weight and so on; nothing if there is no counterpart.
std::optional<std::string> hf_tensor_name(std::string_view gguf);
std::optional<std::string> gguf_tensor_name(std::string_view hf);

/// Whether a tensor (Hugging Face's name) holds rows of queries or of keys, in whose heads llama.cpp interleaves the
/// two halves for the llama architecture.
bool is_query(std::string_view hf_name);
bool is_key(std::string_view hf_name);

/// In a head of D rows, Hugging Face's row half·D/2 + i is llama.cpp's row 2·i + half. Rows are counted over all heads.
int64_t interleaved_row(int64_t hf_row, int64_t rows_a_head);
/// The inverse.
int64_t separated_row(int64_t interleaved, int64_t rows_a_head);

}  // namespace fettle::hub
