// SPDX-License-Identifier: Apache-2.0
#include "hub/dataset_card.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::hub {
namespace {

constexpr size_t kLargestFrontMatter = size_t{8} << 20;

std::string_view without_carriage_return(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

/// What is between a first line "---" and the next one; empty if there is none.
std::string_view front_matter(std::string_view readme) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (readme.starts_with(kByteOrderMark)) readme.remove_prefix(kByteOrderMark.size());
  size_t end = readme.find('\n');
  if (end == std::string_view::npos || without_carriage_return(readme.substr(0, end)) != "---") return {};
  const size_t begin = end + 1;
  for (size_t line = begin; line < readme.size(); line = end + 1) {
    end = std::min(readme.find('\n', line), readme.size());
    if (without_carriage_return(readme.substr(line, end - line)) == "---") return readme.substr(begin, line - begin);
  }
  return {};
}

std::vector<std::string> strings_of(const YAML::Node& node) {
  if (node.IsScalar()) return {node.Scalar()};
  std::vector<std::string> strings;
  if (!node.IsSequence()) return strings;
  for (const YAML::Node& item : node) {
    if (item.IsScalar()) strings.push_back(item.Scalar());
  }
  return strings;
}

/// A string, a list of strings (both: train), or a list of {split, path}.
void read_data_files(const YAML::Node& node, CardConfig& config) {
  if (!node) return;
  const bool has_splits = node.IsSequence() && node.size() > 0 && node[0].IsMap();
  if (!has_splits) {
    config.data_files.emplace_back("train", strings_of(node));
    return;
  }
  for (const YAML::Node& item : node) {
    if (!item.IsMap() || !item["split"] || !item["path"] || !item["split"].IsScalar()) continue;
    config.data_files.emplace_back(item["split"].Scalar(), strings_of(item["path"]));
  }
}

std::string text_of(const YAML::Node& node) {
  return node && node.IsScalar() ? node.Scalar() : std::string();
}

}  // namespace

std::vector<CardConfig> read_dataset_card(std::string_view readme, const std::string& subject) {
  const std::string_view text = front_matter(readme);
  if (text.size() > kLargestFrontMatter) {
    throw Error(ExitCode::kData, fmt::format("{}: the front matter of README.md has more than 8 MB", subject),
                "name the dataset's files with train_file");
  }
  std::vector<CardConfig> configs;
  try {
    const YAML::Node card = YAML::Load(std::string(text));
    if (!card.IsMap() || !card["configs"] || !card["configs"].IsSequence()) return configs;
    for (const YAML::Node& node : card["configs"]) {
      if (!node.IsMap()) continue;
      CardConfig& config = configs.emplace_back();
      config.name = text_of(node["config_name"]);
      config.is_default = text_of(node["default"]) == "true";
      config.data_dir = text_of(node["data_dir"]);
      read_data_files(node["data_files"], config);
    }
  } catch (const YAML::Exception& error) {
    throw Error(ExitCode::kData,
                fmt::format("{}: the front matter of README.md is not valid YAML: {}", subject, one_line(error.msg)),
                "name the dataset's files with train_file");
  }
  return configs;
}

}  // namespace fettle::hub
