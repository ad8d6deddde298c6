// SPDX-License-Identifier: Apache-2.0
/// The adapters that are merged into a model.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "config/config.h"
#include "hub/adapter.h"
#include "model/decoder.h"
#include "model/lora_targets.h"

namespace fettle::train {

/// An adapter as the options name it, and what its change counts for.
struct AdapterName {
  std::string name;
  double weight = 1;
  bool operator==(const AdapterName&) const = default;
};

/// adapter_name_or_path, then merge_adapters: "adapter", or "adapter=weight" unless a folder has that whole name.
/// Throws Error{kConfig} for a weight that is no finite number and for an adapter that is named twice.
std::vector<AdapterName> adapter_names(const config::Config& config);

struct WeightedAdapter {
  AdapterName name;
  hub::AdapterConfig config;
  hub::TensorSource weights;
  model::LoraTargets targets;
};

/// Reads the adapters and checks that they fit the base together; one that names another base is warned about. Throws
/// Error{kNoInput}, {kConfig} or {kData} naming the adapter, and module or tensor; {kConfig} too if two of them want
/// the same module and one of these saves it whole.
std::vector<WeightedAdapter> read_adapters(const config::Config& config, const model::DecoderSpec& spec);

/// Loads all of them into a decoder of the base: one of weight 1 as it is, else as the one adapter that computes the
/// same, its rank the sum of theirs, which is written to `scratch` and removed again.
void load_adapters(model::Decoder& decoder, const std::vector<WeightedAdapter>& adapters,
                   const std::filesystem::path& scratch);

}  // namespace fettle::train
