// SPDX-License-Identifier: Apache-2.0
#include "model/lora_targets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <numeric>
#include <regex>
#include <set>
#include <string_view>

#include "base/error.h"

namespace fettle::model {
namespace {

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string leaf(const std::string& module) {
  return module.substr(module.rfind('.') + 1);
}

// PEFT: the name itself, or the end of it after a dot.
bool is_or_ends_with(const std::string& module, const std::string& name) {
  return module == name || module.ends_with("." + name);
}

std::regex compile(const std::string& pattern, std::string_view option) {
  try {
    return std::regex(pattern, std::regex::ECMAScript);
  } catch (const std::regex_error& error) {
    throw Error(ExitCode::kConfig,
                fmt::format("{} '{}' is not a regular expression: {}", option, pattern, error.what()),
                "patterns are ECMAScript's: no lookbehind, no named groups, no inline flags; or give a list of names");
  }
}

std::vector<std::string> all_names(const ModuleNames& modules) {
  std::vector<std::string> names = modules.linear;
  names.push_back(modules.head);
  names.insert(names.end(), modules.other.begin(), modules.other.end());
  return names;
}

std::string available(const ModuleNames& modules) {
  std::vector<std::string> leaves;
  for (const std::string& module : modules.linear) {
    if (std::ranges::find(leaves, leaf(module)) == leaves.end()) {
      leaves.push_back(leaf(module));
    }
  }
  return fmt::format("this model's linear layers are {}", fmt::join(leaves, ", "));
}

class Excluded {
 public:
  explicit Excluded(const hub::AdapterConfig& config, const std::vector<std::string>& saved)
      : names_(config.exclude_modules.names), saved_(saved) {
    if (!config.exclude_modules.pattern.empty()) {
      pattern_ = compile(config.exclude_modules.pattern, "lora_exclude_modules");
    }
  }
  bool operator()(const std::string& module) const {
    return std::ranges::find(saved_, module) != saved_.end() ||
           std::ranges::any_of(names_, [&](const std::string& name) { return is_or_ends_with(module, name); }) ||
           (pattern_.has_value() && std::regex_match(module, *pattern_));
  }

 private:
  const std::vector<std::string>& names_;
  const std::vector<std::string>& saved_;
  std::optional<std::regex> pattern_;
};

// PEFT compares ends here without a dot: "norm" also means every "…layernorm".
std::vector<std::string> saved_modules(const ModuleNames& modules, const std::vector<std::string>& wanted) {
  std::vector<std::string> saved;
  const std::vector<std::string> names = all_names(modules);
  for (const std::string& name : wanted) {
    const size_t before = saved.size();
    for (const std::string& module : names) {
      if (module.ends_with(name) && std::ranges::find(saved, module) == saved.end()) {
        saved.push_back(module);
      }
    }
    const bool known = std::ranges::any_of(names, [&](const std::string& module) { return module.ends_with(name); });
    if (saved.size() == before && !known) {
      throw Error(ExitCode::kConfig,
                  fmt::format("lora_modules_to_save: '{}' is no module with weights of this model", name),
                  "lm_head and embed_tokens are usual; " + available(modules));
    }
  }
  return saved;
}

[[noreturn]] void refuse(const std::string& module) {
  throw Error(ExitCode::kConfig, fmt::format("lora_target_modules: LoRA cannot be put on '{}'", module),
              "name it in lora_modules_to_save to train it whole");
}

}  // namespace

std::vector<std::string> LoraTargets::leaf_names() const {
  std::vector<std::string> names;
  std::ranges::transform(counts, std::back_inserter(names), [](const auto& count) { return count.first; });
  return names;
}

hub::ModuleSelection module_selection(const std::vector<std::string>& entries) {
  if (entries.size() == 1) {
    if (lower(entries[0]) == kAllLinear) {
      return {.names = {}, .pattern = std::string(kAllLinear)};
    }
    if (entries[0].find_first_of("*+?|()[]{}^$\\") != std::string::npos) {
      return {.names = {}, .pattern = entries[0]};
    }
  }
  return {.names = entries, .pattern = {}};
}

ModuleNames module_names(const DecoderSpec& spec) {
  ModuleNames names{.linear = {}, .head = "lm_head", .other = {}};
  for (const TensorShape& tensor : expected_tensors(spec)) {
    if (!tensor.name.ends_with(".weight")) continue;
    const std::string module = module_of(tensor.name);
    if (module != names.head) (module.ends_with("_proj") ? names.linear : names.other).push_back(module);
  }
  return names;
}

hub::AdapterConfig adapter_config(const config::LoraConfig& config) {
  return {.r = config.lora_r,
          .lora_alpha = config.lora_alpha,
          .lora_dropout = config.lora_dropout.value_or(0),
          .use_rslora = config.use_rslora,
          .target_modules = module_selection(config.lora_target_modules),
          .exclude_modules = module_selection(config.lora_exclude_modules),
          .modules_to_save = config.lora_modules_to_save,
          .base_model_name_or_path = {},
          .revision = {}};
}

double lora_scaling(const hub::AdapterConfig& config) {
  const auto rank = static_cast<double>(config.r);
  return config.lora_alpha / (config.use_rslora ? std::sqrt(rank) : rank);
}

std::vector<TensorShape> expected_adapter_tensors(const DecoderSpec& spec, const hub::AdapterConfig& config) {
  const LoraTargets targets = select_targets(module_names(spec), config);
  const auto is_in = [](const std::vector<std::string>& names, const std::string& name) {
    return std::ranges::find(names, name) != names.end();
  };
  std::vector<TensorShape> base = expected_tensors(spec);
  if (spec.tied_embeddings) base.push_back({"lm_head.weight", {spec.vocab_size, spec.hidden_size}});
  std::vector<TensorShape> tensors;
  for (const TensorShape& tensor : base) {
    const std::string module = module_of(tensor.name);
    if (is_in(targets.saved, module)) {
      tensors.push_back({kPeftPrefix + tensor.name, tensor.shape});
    } else if (is_in(targets.adapted, module) && tensor.shape.size() == 2) {
      tensors.push_back({kPeftPrefix + module + ".lora_A.weight", {config.r, tensor.shape[1]}});
      tensors.push_back({kPeftPrefix + module + ".lora_B.weight", {tensor.shape[0], config.r}});
    }
  }
  return tensors;
}

LoraTargets select_targets(const ModuleNames& modules, const hub::AdapterConfig& config) {
  LoraTargets targets;
  targets.saved = saved_modules(modules, config.modules_to_save);
  const Excluded excluded(config, targets.saved);
  const hub::ModuleSelection& wanted = config.target_modules;
  const bool all_linear = lower(wanted.pattern) == kAllLinear;
  const std::optional<std::regex> pattern = wanted.pattern.empty() || all_linear
                                                ? std::nullopt
                                                : std::optional(compile(wanted.pattern, "lora_target_modules"));
  const auto is_wanted = [&](const std::string& module) {
    return pattern.has_value() ? std::regex_match(module, *pattern)
                               : std::ranges::any_of(wanted.names, [&](const std::string& name) {
                                   return is_or_ends_with(module, name);
                                 });
  };
  for (const std::string& name : wanted.names) {
    const auto matches = [&](const std::string& module) { return is_or_ends_with(module, name); };
    if (std::ranges::none_of(all_names(modules), matches)) {
      throw Error(ExitCode::kConfig, fmt::format("lora_target_modules: '{}' matches no layer", name),
                  available(modules));
    }
  }
  for (const std::string& module : all_names(modules)) {
    const bool is_linear = std::ranges::find(modules.linear, module) != modules.linear.end();
    if (excluded(module) || !(all_linear ? is_linear : is_wanted(module))) {
      continue;
    }
    if (!is_linear) {
      refuse(module);
    }
    targets.adapted.push_back(module);
    auto count = std::ranges::find(targets.counts, leaf(module), &std::pair<std::string, int64_t>::first);
    if (count == targets.counts.end()) {
      count = targets.counts.insert(count, {leaf(module), 0});
    }
    ++count->second;
  }
  if (targets.adapted.empty()) {
    throw Error(ExitCode::kConfig, "lora_target_modules matches no layer that is not excluded", available(modules));
  }
  return targets;
}

void require_exclusions_match(const ModuleNames& modules, const hub::ModuleSelection& exclude) {
  if (lower(exclude.pattern) == kAllLinear) {
    throw Error(ExitCode::kConfig, "lora_exclude_modules: all-linear leaves no layer", available(modules));
  }
  const std::vector<std::string> all = all_names(modules);
  for (const std::string& name : exclude.names) {
    if (std::ranges::none_of(all, [&](const std::string& module) { return is_or_ends_with(module, name); })) {
      throw Error(ExitCode::kConfig, fmt::format("lora_exclude_modules: '{}' matches no layer", name),
                  available(modules));
    }
  }
  if (exclude.pattern.empty()) return;
  const std::regex pattern = compile(exclude.pattern, "lora_exclude_modules");
  if (std::ranges::none_of(all, [&](const std::string& module) { return std::regex_match(module, pattern); })) {
    throw Error(ExitCode::kConfig,
                fmt::format("lora_exclude_modules: '{}' matches no layer's full name", exclude.pattern),
                available(modules));
  }
}

}  // namespace fettle::model
