// SPDX-License-Identifier: Apache-2.0
/// The option table: every option once, bound to its member in config.h. Parsing, checks, help, schema, documentation
/// and the log of the effective configuration are all made from it. Defaults are read from the structs' initializers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <variant>
#include <vector>

#include "config/config.h"

namespace fettle::config {

/// The commands that take options. The values are bits, so that an option can name several.
enum class Command : unsigned {
  kTrain = 1,
  kEval = 2,
  kGenerate = 4,
  kPreprocess = 8,
  kCheck = 16,
  kDownload = 32,
  kChat = 64,
  kMerge = 128,
  kQuantize = 256,
  kBenchmark = 512,
  kExport = 1024,
};

std::string_view to_string(Command command);

/// The option's member in one Config; the alternative is the option's type.
using Slot = std::variant<bool*, int64_t*, double*, std::optional<double>*, std::string*, std::vector<std::string>*>;

/// The numbers an option takes. An infinite bound is none.
struct Range {
  std::optional<double> minimum = std::nullopt;
  std::optional<double> maximum = std::nullopt;
  bool minimum_excluded = false;
  bool maximum_excluded = false;
  bool whole_from_one = false;  ///< below 1 a ratio of all steps, from 1 on a whole number of steps
  bool or_minus_one = false;    ///< -1 is taken too, for "all"
};

/// How one string becomes the items of a list option. A YAML or JSON list is always taken as it is, also a JSON array
/// of strings that is written as a string, as on the command line.
enum class ListSyntax {
  kWords,     ///< separated by spaces or commas
  kPatterns,  ///< the same, but a string with a regular expression's characters is one item
  kPaths,     ///< separated by commas: a path may contain spaces
  kTexts,     ///< one item, whatever is in it
};

/// What a string option's text has to be.
enum class TextFormat {
  kPlain,
  kBytes,       ///< a size, see parse_bytes
  kJsonObject,  ///< a flat JSON object, written as a map or as a string; stored as JSON, empty when it has no keys
};

/// Another spelling of a value, taken for `value` without a word.
struct ValueAlias {
  std::string_view spelling;
  std::string_view value;
};

struct Option {
  std::string_view name;
  Slot (*slot)(Config&);
  std::string_view help;  ///< one sentence, without the default and the allowed values
  unsigned commands;      ///< Command bits
  Range range = {};
  std::vector<std::string_view> choices = {};
  std::vector<ValueAlias> value_aliases = {};
  std::vector<std::string_view> unavailable = {};  ///< values other systems know and this version refuses by name
  ListSyntax list_syntax = ListSyntax::kWords;
  TextFormat text_format = TextFormat::kPlain;
  bool choices_or_file = false;  ///< a file's path may stand in place of one of the choices

  /// `fettle check` takes the options of `fettle train`.
  [[nodiscard]] bool used_by(Command command) const {
    return (commands & static_cast<unsigned>(command == Command::kCheck ? Command::kTrain : command)) != 0;
  }
};

struct Section {
  std::string_view title;
  std::vector<Option> options;  ///< in the order of the struct's members
};

/// All sections, in the order of Config's members.
const std::vector<Section>& sections();

/// The option of exactly this name, or null.
const Option* find_option(std::string_view name);

/// The option's type in a reader's words: boolean, integer, number, string, list of strings.
std::string_view type_name(const Option& option);

// What the files of the table share.
namespace table {

inline constexpr unsigned kTrain = static_cast<unsigned>(Command::kTrain);
inline constexpr unsigned kEval = static_cast<unsigned>(Command::kEval);
inline constexpr unsigned kGenerate = static_cast<unsigned>(Command::kGenerate);
inline constexpr unsigned kPreprocess = static_cast<unsigned>(Command::kPreprocess);
inline constexpr unsigned kDownload = static_cast<unsigned>(Command::kDownload);
inline constexpr unsigned kChat = static_cast<unsigned>(Command::kChat);
inline constexpr unsigned kMerge = static_cast<unsigned>(Command::kMerge);
inline constexpr unsigned kQuantize = static_cast<unsigned>(Command::kQuantize);
inline constexpr unsigned kBenchmark = static_cast<unsigned>(Command::kBenchmark);
inline constexpr unsigned kExport = static_cast<unsigned>(Command::kExport);
/// Commands that read records; that turn text of a user into a prompt; that compute; that read a model; all.
inline constexpr unsigned kReadRecords = kTrain | kEval | kPreprocess | kMerge | kQuantize;
inline constexpr unsigned kAnswer = kGenerate | kChat;
inline constexpr unsigned kCompute = kTrain | kEval | kAnswer | kMerge | kQuantize | kBenchmark;
inline constexpr unsigned kAll = kCompute | kPreprocess | kDownload | kExport;

template <typename Struct, typename Value>
Slot slot_of(Config& config, Value Struct::*member) {
  auto structs = std::tie(config.model, config.lora, config.data, config.training, config.output, config.eval,
                          config.generation, config.merge, config.quantization, config.benchmark, config.gguf_export,
                          config.preprocess, config.device, config.distributed);
  return &(std::get<Struct&>(structs).*member);
}

template <auto kMember>
Slot slot(Config& config) {
  return slot_of(config, kMember);
}

constexpr Range at_least(double minimum) {
  return {.minimum = minimum};
}
constexpr Range above(double minimum) {
  return {.minimum = minimum, .minimum_excluded = true};
}
constexpr Range between(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum};
}
constexpr Range from_to_below(double minimum, double maximum) {
  return {.minimum = minimum, .maximum = maximum, .maximum_excluded = true};
}

constexpr Range count_or_all() {
  return {.minimum = 1, .or_minus_one = true};
}

/// A section's parts, one after the other.
std::vector<Option> join(std::initializer_list<std::vector<Option>> parts);

std::vector<Option> data_options();
std::vector<Option> training_options();
std::vector<Option> merge_options();
std::vector<Option> quantization_options();
std::vector<Option> benchmark_options();
std::vector<Option> export_options();

}  // namespace table
}  // namespace fettle::config
