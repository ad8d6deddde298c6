// SPDX-License-Identifier: Apache-2.0
#include "train/model_card.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>

#include "config/describe.h"

namespace fettle::train {
namespace {

/// Options that were changed, but for paths: they say nothing to a reader elsewhere.
std::string changed_options(const config::Config& config) {
  const nlohmann::ordered_json defaults = config::to_json(config::Config());
  const nlohmann::ordered_json all = config::to_json(config);
  std::string rows;
  for (const auto& [name, value] : all.items()) {
    if (value == defaults[name] || name.ends_with("_dir") || name.ends_with("_directory") || name.ends_with("_file") ||
        name.ends_with("_or_path"))
      continue;
    rows += fmt::format("| {} | {} |\n", name, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return rows;
}

std::string file_names(const std::vector<std::string>& paths) {
  std::vector<std::string> names;
  for (const std::string& path : paths) names.push_back(std::filesystem::path(path).filename().string());
  return fmt::format("{}", fmt::join(names, ", "));
}

/// The hub's name of the base, or the last part of a path: where it lay says nothing to a reader elsewhere.
std::string base_name(const config::Config& config) {
  const std::filesystem::path base = config.model.model_name_or_path;
  std::error_code failure;
  return std::filesystem::exists(base, failure) ? base.filename().string() : base.string();
}

std::string results_table(const nlohmann::ordered_json& results) {
  std::string table = "## Results\n\n| measure | value |\n|---|---|\n";
  for (const auto& [name, value] : results.items()) {
    if (value.is_primitive()) table += fmt::format("| {} | {} |\n", name, value.dump());
  }
  return table;
}

/// How to use a folder that is a model.
std::string model_usage(const config::Config& config) {
  return fmt::format("fettle generate --model_name_or_path=path/to/this/folder{}\n", prompt_arguments(config.data));
}

std::string usage(const config::Config& config) {
  if (!config.lora.use_peft) return model_usage(config);
  const std::string name = base_name(config);
  const std::string base = name == config.model.model_name_or_path ? name : "path/to/" + name;
  return fmt::format("fettle generate --model_name_or_path={} --adapter_name_or_path=path/to/this/folder{}{}\n", base,
                     quantization_arguments(config.model), prompt_arguments(config.data));
}

}  // namespace

std::string quantization_arguments(const config::ModelConfig& model) {
  if (model.load_in_8bit) return " --load_in_8bit=true";
  if (model.load_in_fp8) return " --load_in_fp8=true";
  if (!model.load_in_4bit) return "";
  const bool is_default = model.bnb_4bit_quant_type == config::ModelConfig().bnb_4bit_quant_type;
  return " --load_in_4bit=true" + (is_default ? "" : " --bnb_4bit_quant_type=" + model.bnb_4bit_quant_type);
}

std::string prompt_arguments(const config::DataConfig& data) {
  if (data.dataset_format == "text") return " --raw_prompt --prompt=\"...\"";
  const std::string& style = data.prompt_template;
  return (style == config::DataConfig().prompt_template ? "" : " --prompt_template=" + style) + " --prompt=\"...\"";
}

std::string model_card(const config::Config& config, const nlohmann::ordered_json& results) {
  const bool adapter = config.lora.use_peft;
  std::string card = "---\n";
  card += fmt::format("base_model: {}\n", nlohmann::json(base_name(config)).dump());
  card += adapter ? "library_name: peft\n" : "library_name: transformers\n";
  card += adapter ? "tags: [fettle, lora]\n" : "tags: [fettle]\n";
  card += "pipeline_tag: text-generation\n---\n\n";
  card += fmt::format("# {} of {}\n\n", adapter ? "LoRA adapter" : "Fine-tuned copy", base_name(config));
  const std::string data =
      config.data.train_file.empty() ? config.data.dataset_name : file_names(config.data.train_file);
  if (!data.empty()) card += fmt::format("Trained on {} with Fettle.\n\n", data);
  card += results_table(results);
  card += "\n## Options that differ from the defaults\n\n| option | value |\n|---|---|\n" + changed_options(config);
  card += "\n## Use\n\n```\n" + usage(config) + "```\n";
  return card;
}

std::string merged_model_card(const config::Config& config, const nlohmann::ordered_json& results) {
  const std::string base = base_name(config);
  std::string card = "---\n";
  card += fmt::format("base_model: {}\nbase_model_relation: merge\n", nlohmann::json(base).dump());
  card += "library_name: transformers\ntags: [fettle, merge]\npipeline_tag: text-generation\n---\n\n";
  card += fmt::format("# {} with adapters merged into it\n\n| adapter | weight |\n|---|---|\n", base);
  for (const nlohmann::ordered_json& adapter : results.at("merged_adapters")) {
    const std::filesystem::path name = adapter.at("adapter").get<std::string>();
    std::error_code failure;
    const bool is_folder = std::filesystem::exists(name, failure);
    card += fmt::format("| {} | {} |\n", (is_folder ? name.filename() : name).string(), adapter.at("weight").dump());
  }
  card += "\n" + results_table(results) + "\n## Use\n\n```\n";
  return card + model_usage(config) + "```\n";
}

std::string quantized_model_card(const config::Config& config, const nlohmann::ordered_json& results) {
  const std::string base = base_name(config);
  std::string card = "---\n";
  card += fmt::format("base_model: {}\nbase_model_relation: quantized\n", nlohmann::json(base).dump());
  card += "library_name: transformers\npipeline_tag: text-generation\n";
  card += fmt::format("tags: [fettle, {}]\n---\n\n", config.quantization.woq_algo);
  card += fmt::format("# {} in {} bits\n\n", base, config.quantization.woq_bits);
  card += "The linear layers' weights are whole numbers with scales; embeddings, head and norms are as they were. ";
  card += "Made with Fettle.\n\n" + results_table(results) + "\n## Use\n\n```\n";
  return card + model_usage(config) + "```\n";
}

}  // namespace fettle::train
