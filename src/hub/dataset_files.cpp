// SPDX-License-Identifier: Apache-2.0
#include "hub/dataset_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <functional>
#include <map>
#include <set>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::hub {
namespace {

/// A split and the words that speak of it in a name.
struct Keywords {
  const char* split;
  std::vector<std::string_view> words;
};

const std::vector<Keywords>& keywords() {
  static const std::vector<Keywords> all = {{"train", {"train", "training"}},
                                            {"validation", {"validation", "valid", "dev", "val"}},
                                            {"test", {"test", "testing", "eval", "evaluation"}}};
  return all;
}

constexpr std::array<std::string_view, 6> kIgnored = {"README.md",          "config.json",    "dataset_info.json",
                                                      "dataset_infos.json", "dummy_data.zip", "dataset_dict.json"};
/// In the order in which they win where several are as common.
constexpr std::array<std::string_view, 6> kFormats = {"parquet", "csv", "json", "jsonl", "ndjson", "txt"};

std::string_view file_name(std::string_view path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

std::string extension(std::string_view path) {
  const std::string_view name = file_name(path);
  const size_t dot = name.rfind('.');
  std::string text(dot == std::string_view::npos ? "" : name.substr(dot + 1));
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::vector<std::string_view> parts_of(std::string_view path) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// A hidden file, or one in a hidden or __special__ folder.
bool is_hidden(std::string_view path) {
  return std::ranges::any_of(parts_of(path),
                             [](std::string_view part) { return part.starts_with('.') || part.starts_with("__"); });
}

bool is_separator(char c) {
  return std::string_view("-._ 0123456789").find(c) != std::string_view::npos;
}

/// The word stands in `name` between separators, the beginning, and the end if that may end it.
bool has_word(std::string_view name, std::string_view word, bool may_end) {
  for (size_t at = name.find(word); at != std::string_view::npos; at = name.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool begins = at == 0 || is_separator(name[at - 1]);
    const bool ends = end == name.size() ? may_end : is_separator(name[end]);
    if (begins && ends) return true;
  }
  return false;
}

bool speaks_of(std::string_view path, const Keywords& split, bool by_folder) {
  const auto has_any = [&](std::string_view part, bool may_end) {
    return std::ranges::any_of(split.words, [&](std::string_view word) { return has_word(part, word, may_end); });
  };
  std::vector<std::string_view> parts = parts_of(path);
  if (!by_folder) return has_any(parts.back(), /*may_end=*/false);
  parts.pop_back();
  return std::ranges::any_of(parts, [&](std::string_view part) { return has_any(part, /*may_end=*/true); });
}

/// The split of data/<split>-00000-of-00001<anything>.<extension>, or empty.
std::string shard_split(const std::string& path) {
  constexpr std::string_view kFolder = "data/";
  constexpr std::string_view kNumbers = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*";
  if (!path.starts_with(kFolder)) return {};
  const std::string_view name = std::string_view(path).substr(kFolder.size());
  const size_t of = name.find("-of-");
  if (of == std::string_view::npos || of < 7) return {};
  const std::string_view split = name.substr(0, of - 6);
  return matches_glob(kNumbers, name.substr(split.size())) ? std::string(split) : std::string();
}

using Namer = std::function<std::vector<std::string>(const std::string& path)>;

/// The splits that `name_splits` sees in the names; train, validation and test first.
DatasetSplits group(const std::vector<std::string>& paths, const Namer& name_splits) {
  std::map<std::string, std::vector<std::string>> groups;
  for (const std::string& path : paths) {
    for (const std::string& split : name_splits(path)) groups[split].push_back(path);
  }
  DatasetSplits splits;
  for (const Keywords& known : keywords()) {
    if (auto found = groups.extract(known.split)) splits.push_back({known.split, std::move(found.mapped())});
  }
  for (auto& [name, files] : groups) splits.push_back({name, std::move(files)});
  return splits;
}

DatasetSplits splits_by_name(const std::vector<std::string>& paths) {
  DatasetSplits splits = group(paths, [](const std::string& path) -> std::vector<std::string> {
    const std::string split = shard_split(path);
    return split.empty() ? std::vector<std::string>() : std::vector{split};
  });
  for (const bool by_folder : {true, false}) {
    if (!splits.empty()) break;
    splits = group(paths, [by_folder](const std::string& path) {
      std::vector<std::string> found;
      for (const Keywords& split : keywords()) {
        if (speaks_of(path, split, by_folder)) found.emplace_back(split.split);
      }
      return found;
    });
  }
  if (splits.empty() && !paths.empty()) splits.push_back({"train", paths});
  return splits;
}

/// Keeps the commonest format; .json and .jsonl are different ones, as their readers are.
void keep_one_format(DatasetSplits& splits) {
  for (DatasetSplit& split : splits) {
    std::map<std::string, int64_t> counts;
    for (const std::string& path : split.paths) ++counts[extension(path)];
    std::string best;
    for (const std::string_view format : kFormats) {
      const std::string name(format);
      if (counts.contains(name) && (best.empty() || counts[name] > counts[best])) best = name;
    }
    std::erase_if(split.paths, [&](const std::string& path) { return extension(path) != best; });
  }
  std::erase_if(splits, [](const DatasetSplit& split) { return split.paths.empty(); });
}

std::string without_dot(std::string path) {
  while (path.starts_with("./")) path.erase(0, 2);
  return path;
}

/// "data/" for ./data and data/, empty for . and nothing.
std::string folder_prefix(const std::string& data_dir) {
  std::string folder = without_dot(data_dir);
  while (folder.ends_with('/')) folder.pop_back();
  return folder.empty() || folder == "." ? std::string() : folder + '/';
}

/// The files that can be read among those that the patterns match, in the patterns' order.
std::vector<std::string> matching(const std::vector<std::string>& paths, const std::vector<std::string>& patterns) {
  std::vector<std::string> found;
  std::set<std::string_view> seen;
  for (const std::string& pattern : patterns) {
    for (const std::string& path : paths) {
      const bool is_readable = std::ranges::find(kFormats, extension(path)) != kFormats.end();
      if (is_readable && matches_glob(without_dot(pattern), path) && seen.insert(path).second) found.push_back(path);
    }
  }
  return found;
}

/// The pattern's pieces: one character, ?, [set], *, **, or **/ (any folders, or none).
std::vector<std::string_view> glob_tokens(std::string_view pattern) {
  std::vector<std::string_view> tokens;
  for (size_t i = 0; i < pattern.size(); i += tokens.back().size()) {
    size_t length = 1;
    if (pattern[i] == '*') {
      length = std::min(pattern.find_first_not_of('*', i), pattern.size()) - i;
      if (length > 1 && i + length < pattern.size() && pattern[i + length] == '/') ++length;
    } else if (pattern[i] == '[') {
      const size_t end = pattern.find(']', i + 2);
      if (end != std::string_view::npos) length = end - i + 1;
    }
    tokens.push_back(pattern.substr(i, length));
  }
  return tokens;
}

bool matches_one(std::string_view token, char c) {
  if (token == "?") return c != '/';
  if (token.size() < 3) return token[0] == c;
  const bool is_negated = token[1] == '!' || token[1] == '^';
  bool is_found = false;
  for (size_t i = is_negated ? 2 : 1; i + 1 < token.size(); ++i) {
    const bool is_range = i + 3 < token.size() && token[i + 1] == '-';
    is_found = is_found || (is_range ? token[i] <= c && c <= token[i + 2] : token[i] == c);
    if (is_range) i += 2;
  }
  return is_found != is_negated && c != '/';
}

}  // namespace

bool matches_glob(std::string_view pattern, std::string_view path) {
  const std::vector<std::string_view> tokens = glob_tokens(pattern);
  // ends[j]: the tokens from the present one on match the path from its j-th character on.
  std::vector<bool> ends(path.size() + 1, false);
  ends[path.size()] = true;
  for (size_t i = tokens.size(); i-- > 0;) {
    const std::string_view token = tokens[i];
    std::vector<bool> here(path.size() + 1, false);
    for (size_t j = path.size() + 1; j-- > 0;) {
      if (!token.starts_with('*')) {
        here[j] = j < path.size() && matches_one(token, path[j]) && ends[j + 1];
      } else {
        const bool may_stop = !token.ends_with('/') || j == 0 || path[j - 1] == '/';
        const bool may_go_on = j < path.size() && (token.size() > 1 || path[j] != '/');
        here[j] = (may_stop && ends[j]) || (may_go_on && here[j + 1]);
      }
    }
    ends = std::move(here);
  }
  return ends[0];
}

bool is_data_file(std::string_view path) {
  return std::ranges::find(kFormats, extension(path)) != kFormats.end() && !is_hidden(path) &&
         std::ranges::find(kIgnored, file_name(path)) == kIgnored.end();
}

DatasetSplits find_splits(const std::vector<std::string>& paths, const CardConfig& config) {
  const std::string folder = folder_prefix(config.data_dir);
  std::vector<std::string> inside;
  for (const std::string& path : paths) {
    if (path.starts_with(folder)) inside.push_back(path.substr(folder.size()));
  }
  std::ranges::sort(inside);
  DatasetSplits splits;
  for (const auto& [name, patterns] : config.data_files) splits.push_back({name, matching(inside, patterns)});
  if (config.data_files.empty()) {
    std::erase_if(inside, [](const std::string& path) { return !is_data_file(path); });
    splits = splits_by_name(inside);
  }
  keep_one_format(splits);
  for (DatasetSplit& split : splits) {
    for (std::string& path : split.paths) path.insert(0, folder);
  }
  return splits;
}

CardConfig choose_config(const std::vector<CardConfig>& configs, const std::string& name, const std::string& subject) {
  if (configs.empty() && (name.empty() || name == "default")) return {};
  const auto named = [&configs](const std::string& wanted) {
    return std::ranges::find(configs, wanted, &CardConfig::name);
  };
  auto found = configs.end();
  if (!name.empty()) {
    found = named(name);
  } else if (configs.size() == 1) {
    found = configs.begin();
  } else {
    found = std::ranges::find(configs, true, &CardConfig::is_default);
    if (found == configs.end()) found = named("default");
  }
  if (found != configs.end()) return *found;
  std::string names;
  for (const CardConfig& config : configs) names += (names.empty() ? "" : ", ") + config.name;
  const std::string what = name.empty() ? fmt::format("{} has several configurations", subject)
                                        : fmt::format("{} has no configuration {}", subject, quote(name));
  throw Error(ExitCode::kUsage, what,
              names.empty() ? "remove dataset_config_name"
                            : fmt::format("give one of these as dataset_config_name: {}", shorten(names, 300)));
}

std::vector<CardConfig> converted_configs(const std::vector<std::string>& paths) {
  std::map<std::string, std::map<std::string, std::vector<std::string>>> found;
  for (const std::string& path : paths) {
    const auto parts = parts_of(path);
    if (parts.size() != 3 || extension(path) != "parquet") continue;
    std::string_view split = parts[1];
    constexpr std::string_view kPartial = "partial-";
    if (split.starts_with(kPartial)) split.remove_prefix(kPartial.size());
    found[std::string(parts[0])][std::string(split)].push_back(path);
  }
  std::vector<CardConfig> configs;
  for (auto& [name, splits] : found) {
    CardConfig& config = configs.emplace_back();
    config.name = name;
    for (auto& [split, files] : splits) config.data_files.emplace_back(split, std::move(files));
  }
  return configs;
}

bool has_all_shards(const std::vector<std::string>& paths) {
  std::map<std::string, std::set<int>> groups;
  for (const std::string& path : paths) {
    const size_t of = path.rfind("-of-");
    if (of == std::string::npos || of < 6 || path[of - 6] != '-') continue;
    const bool are_numbers =
        matches_glob("[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*", path.substr(of - 5));
    if (are_numbers) groups[path.substr(0, of - 5) + path.substr(of, 9)].insert(std::atoi(path.c_str() + of - 5));
  }
  return std::ranges::all_of(groups, [](const auto& group) {
    return static_cast<int>(group.second.size()) == std::atoi(group.first.c_str() + group.first.size() - 5);
  });
}

}  // namespace fettle::hub
