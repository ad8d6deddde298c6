// SPDX-License-Identifier: Apache-2.0
/// What of a result on disk can be checked without having made it: `fettle verify`.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace fettle::train {

/// Takes one line about one check.
using Say = std::function<void(const std::string&)>;

/// Of a folder with a model or an adapter, beside its hashes: tensors have the names and shapes that its configuration
/// says, every value is finite, and, with a probe.safetensors, the model answers as it did. An adapter is tried on its
/// base: `base`, a folder, GGUF file or hub name, or if that is empty the folder that adapter_config.json names. What
/// cannot be checked is said. Other folders: nothing. Throws Error{kData} for what is wrong.
void verify_result(const std::filesystem::path& folder, const std::string& base, const Say& say);

/// Writes probe.safetensors of such a folder, or says why not.
void add_probe(const std::filesystem::path& folder, const std::string& base, const Say& say);

}  // namespace fettle::train
