// SPDX-License-Identifier: Apache-2.0
/// Which layers an adapter changes: PEFT's rules for target_modules, exclude_modules and modules_to_save.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/config.h"
#include "hub/adapter.h"
#include "model/spec.h"

namespace fettle::model {

/// PEFT's pattern for every linear layer but the head; any case.
inline constexpr std::string_view kAllLinear = "all-linear";

/// The options' list as PEFT would be given it: one entry that is "all-linear" or has the look of a regular expression
/// (a character that no module name has) is a pattern; everything else are names.
hub::ModuleSelection module_selection(const std::vector<std::string>& entries);

/// Names of a model's modules that hold weights.
struct ModuleNames {
  std::vector<std::string> linear;  ///< without the head
  std::string head;                 ///< lm_head
  std::vector<std::string> other;   ///< embedding, norms
};

/// Of a decoder.
ModuleNames module_names(const DecoderSpec& spec);

/// What the options ask for, as an adapter's configuration; the base's name is left empty.
hub::AdapterConfig adapter_config(const config::LoraConfig& config);

struct LoraTargets {
  std::vector<std::string> adapted;                     ///< linear layers with LoRA, in model order
  std::vector<std::string> saved;                       ///< modules trained and saved whole
  std::vector<std::pair<std::string, int64_t>> counts;  ///< leaf name → how often adapted, in model order
  std::vector<std::string> leaf_names() const;
};

/// Throws Error{kConfig}, listing the names there are, if a name or the pattern matches nothing, if a layer is asked
/// for that LoRA cannot change here (embedding, norm, head), or if the pattern cannot be read. A layer matches a name
/// that it is or ends with after a dot; a pattern must match all of its name. Patterns are ECMAScript: what Python's re
/// shares with it.
LoraTargets select_targets(const ModuleNames& modules, const hub::AdapterConfig& config);

/// What an adapter's B·A is multiplied by: lora_alpha / r, or / √r.
double lora_scaling(const hub::AdapterConfig& config);

/// What PEFT puts before a module's name in an adapter's file.
inline constexpr const char* kPeftPrefix = "base_model.model.";

/// The tensors of an adapter's file: its matrices, and the modules that are saved whole. Throws as select_targets.
std::vector<TensorShape> expected_adapter_tensors(const DecoderSpec& spec, const hub::AdapterConfig& config);

/// Throws Error{kConfig}, listing the names there are, if a name or the pattern of lora_exclude_modules matches no
/// module, or the pattern is all-linear. Not for a saved adapter: PEFT writes and loads those that exclude nothing.
void require_exclusions_match(const ModuleNames& modules, const hub::ModuleSelection& exclude);

}  // namespace fettle::model
