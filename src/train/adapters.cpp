// SPDX-License-Identifier: Apache-2.0
#include "train/adapters.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "hub/model_folder.h"
#include "hub/path.h"
#include "hub/safetensors.h"
#include "model/weights.h"
#include "train/tensor_file.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kOption = "adapter_name_or_path";

AdapterName parse_name(const std::string& text) {
  const size_t sign = text.rfind('=');
  if (sign == std::string::npos || hub::is_folder(text)) return {text};
  AdapterName parsed{text.substr(0, sign)};
  const char* end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data() + sign + 1, end, parsed.weight);
  if (failure != std::errc() || stop != end || !std::isfinite(static_cast<float>(parsed.weight)) || parsed.name.empty()) {
    throw Error(ExitCode::kConfig,
                fmt::format("merge_adapters: '{}' in '{}' is not a weight", text.substr(sign + 1), text),
                "write adapter=weight, for instance runs/poems=0.5, or the adapter alone for 1");
  }
  return parsed;
}

/// Where the base lay at the training says nothing here; its name does.
void warn_of_another_base(const WeightedAdapter& adapter, const std::string& base) {
  const std::string& trained_on = adapter.config.base_model_name_or_path;
  const auto last_part = [](const std::string& path) {
    const fs::path trimmed = fs::path(path).lexically_normal();
    return trimmed.has_filename() ? trimmed.filename() : trimmed.parent_path().filename();
  };
  if (trained_on.empty() || last_part(trained_on) == last_part(base)) return;
  log::warning("adapter {} says that its base is {}, not {}", adapter.name.name, trained_on, base);
}

WeightedAdapter read_adapter(const AdapterName& name, const config::ModelConfig& model,
                             const model::DecoderSpec& spec) {
  const fs::path folder = hub::resolve_folder(name.name, model, kOption);
  const hub::AdapterConfig config = hub::read_adapter_config(folder);
  try {
    WeightedAdapter adapter{name, config, hub::open_adapter_weights(folder),
                            model::select_targets(model::module_names(spec), config)};
    model::check_names(adapter.weights, model::expected_adapter_tensors(spec, config), /*tied_embeddings=*/false,
                       "the adapter");
    return adapter;
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("adapter {}: {}", name.name, error.what()),
                error.code() == ExitCode::kNoInput ? error.hint() : "give the model that it was trained on");
  }
}

/// Two adapters' changes of a module add up, but a module that one of them replaces has no place for another's.
void require_compatible(const std::vector<WeightedAdapter>& adapters) {
  std::map<std::string, std::string> saved_by;
  for (const WeightedAdapter& adapter : adapters) {
    for (const std::string& module : adapter.targets.saved) {
      const auto [first, is_new] = saved_by.emplace(module, adapter.name.name);
      if (is_new) continue;
      throw Error(ExitCode::kConfig,
                  fmt::format("the adapters {} and {} both hold {} whole (modules_to_save)", first->second,
                              adapter.name.name, module),
                  "merge one of them");
    }
  }
  for (const WeightedAdapter& adapter : adapters) {
    for (const std::string& module : adapter.targets.adapted) {
      const auto found = saved_by.find(module);
      if (found == saved_by.end()) continue;
      throw Error(ExitCode::kConfig,
                  fmt::format("the adapter {} changes {}, which {} holds whole (modules_to_save)", adapter.name.name,
                              module, found->second),
                  "merge one of them");
    }
  }
}

/// The one adapter that computes what `adapters` do together: A below each other, w·s·B beside each other.
struct Stack {
  hub::AdapterConfig config;
  std::vector<model::NamedTensor> tensors;
};

at::Tensor read_floats(const WeightedAdapter& adapter, const std::string& name) {
  const auto source = std::make_shared<const hub::TensorSource>(adapter.weights);
  return model::read_tensor(source, *source->find(model::kPeftPrefix + name), at::kFloat);
}

/// One module's matrices, A [R, in] and B [out, R]; the rows of an adapter that leaves it alone stay zero.
void stack_module(Stack& stack, const std::string& module, const std::vector<WeightedAdapter>& adapters) {
  at::Tensor a;
  at::Tensor b;
  int64_t first = 0;
  for (const WeightedAdapter& adapter : adapters) {
    const int64_t rank = adapter.config.r;
    if (std::ranges::find(adapter.targets.adapted, module) != adapter.targets.adapted.end()) {
      const at::Tensor own_a = read_floats(adapter, module + ".lora_A.weight");
      const at::Tensor own_b = read_floats(adapter, module + ".lora_B.weight");
      if (!a.defined()) {
        a = at::zeros({stack.config.r, own_a.size(1)}, at::kFloat);
        b = at::zeros({own_b.size(0), stack.config.r}, at::kFloat);
      }
      a.narrow(0, first, rank).copy_(own_a);
      b.narrow(1, first, rank).copy_(own_b * (adapter.name.weight * model::lora_scaling(adapter.config)));
    }
    first += rank;
  }
  stack.tensors.push_back({model::kPeftPrefix + module + ".lora_A.weight", a});
  stack.tensors.push_back({model::kPeftPrefix + module + ".lora_B.weight", b});
}

Stack stack_up(const std::vector<WeightedAdapter>& adapters) {
  Stack stack;
  stack.config.r = 0;
  std::set<std::string> adapted;
  for (const WeightedAdapter& adapter : adapters) {
    stack.config.r += adapter.config.r;
    adapted.insert(adapter.targets.adapted.begin(), adapter.targets.adapted.end());
    for (const std::string& module : adapter.targets.saved) {
      stack.config.modules_to_save.push_back(module);
      for (const hub::TensorView& view : adapter.weights.tensors()) {
        const std::string name = view.name.substr(std::string_view(model::kPeftPrefix).size());
        if (model::module_of(name) == module) stack.tensors.push_back({view.name, read_floats(adapter, name)});
      }
    }
  }
  stack.config.lora_alpha = static_cast<double>(stack.config.r);
  stack.config.target_modules.names.assign(adapted.begin(), adapted.end());
  for (const std::string& module : adapted) stack_module(stack, module, adapters);
  return stack;
}

}  // namespace

std::vector<AdapterName> adapter_names(const config::Config& config) {
  std::vector<AdapterName> names;
  if (!config.model.adapter_name_or_path.empty()) names.push_back({config.model.adapter_name_or_path});
  for (const std::string& text : config.merge.merge_adapters) names.push_back(parse_name(text));
  std::set<fs::path> seen;
  for (const AdapterName& each : names) {
    std::error_code failure;
    const fs::path place = fs::canonical(each.name, failure);  // of one that is on the hub there is none
    if (seen.insert(failure ? fs::path(each.name) : place).second) continue;
    throw Error(ExitCode::kConfig, fmt::format("the adapter {} is named twice", each.name),
                fmt::format("name it once; merge_adapters={}=2 counts it twice", each.name));
  }
  return names;
}

std::vector<WeightedAdapter> read_adapters(const config::Config& config, const model::DecoderSpec& spec) {
  std::vector<WeightedAdapter> adapters;
  for (const AdapterName& name : adapter_names(config)) {
    adapters.push_back(read_adapter(name, config.model, spec));
    const WeightedAdapter& adapter = adapters.back();
    warn_of_another_base(adapter, config.model.model_name_or_path);
    if (name.weight != 1 && !adapter.targets.saved.empty()) {
      log::warning("adapter {}: its weight {} does not count for {}, which it holds whole", name.name, name.weight,
                   fmt::join(adapter.targets.saved, ", "));
    }
  }
  require_compatible(adapters);
  return adapters;
}

void load_adapters(model::Decoder& decoder, const std::vector<WeightedAdapter>& adapters, const fs::path& scratch) {
  if (adapters.size() == 1 && adapters[0].name.weight == 1) {
    decoder.load_adapter(adapters[0].config, adapters[0].weights);
    return;
  }
  const Stack stack = stack_up(adapters);
  hub::write_safetensors(scratch, TensorViews(stack.tensors).views(), {});
  const hub::TensorSource source = hub::TensorSource::open_safetensors(scratch);  // stays mapped
  fs::remove(scratch);
  decoder.load_adapter(stack.config, source);
}

}  // namespace fettle::train
