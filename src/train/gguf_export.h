// SPDX-License-Identifier: Apache-2.0
/// GGUF files for llama.cpp and what is built on it.
#pragma once

#include "config/config.h"

namespace fettle::train {

/// Writes the file `output`: the model, with its tokenizer, or, with adapter_name_or_path, that LoRA adapter of it.
/// Matrices get the type that is asked for; vectors are f32; where a row is no whole number of blocks, f16, and the
/// output projection in a file of 4 or 5 bits q8_0. Throws Error{kConfig} for an output that is there and may not be
/// overwritten, a model that is quantized already, and what has no counterpart in llama.cpp, by name; {kData} for
/// tensors that do not fit the configuration or hold what the type cannot (NaN, too large for float16); else as
/// hub::resolve_model, text::Tokenizer::load, hub::read_adapter_config and AtomicFile.
void export_gguf(const config::ModelConfig& model, const config::ExportConfig& options,
                 const config::PreprocessConfig& files);

}  // namespace fettle::train
