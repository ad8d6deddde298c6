// SPDX-License-Identifier: Apache-2.0
/// A model and its tokenizer as the metadata of a GGUF file, as llama.cpp's conversion scripts write it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hub/gguf_writer.h"
#include "model/spec.h"
#include "text/tokenizer.h"

namespace fettle::train {

/// llama.cpp's name of the architecture. Throws Error{kConfig}, naming the key of config.json, for what llama.cpp
/// would compute differently or not load: sliding windows of some layers, scaled frequencies of Qwen models in Llama
/// 3's way, biases or head sizes that its model has not.
std::string gguf_architecture(const model::DecoderSpec& spec);

/// What both kinds of files, a model's and an adapter's, begin with.
void describe_file(hub::GgufMetadata& metadata, const std::string& architecture, const std::string& type,
                   const std::string& name);
/// general.file_type and general.quantization_version, for matrices of this type.
void describe_types(hub::GgufMetadata& metadata, hub::DType dtype);

/// The sizes, norms and rotary embedding. What llama.cpp does otherwise is logged as a warning.
void describe_model(hub::GgufMetadata& metadata, const model::DecoderSpec& spec);

/// Llama 3's rope scaling as divisors of the frequencies, float32 [head_dim / 2]; empty for another scaling.
std::vector<float> rope_factors(const model::RopeSpec& rope);

/// The vocabulary, the special tokens and the chat template. `stops` are the ids that end an answer besides the
/// tokenizer's EOS. Throws as text::make_gguf_vocabulary, and Error{kConfig} for a tokenizer that puts around a text
/// what llama.cpp cannot.
void describe_tokenizer(hub::GgufMetadata& metadata, const text::Tokenizer& tokenizer, const model::DecoderSpec& spec,
                        const std::vector<int64_t>& stops);

}  // namespace fettle::train
