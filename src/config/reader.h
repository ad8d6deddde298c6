// SPDX-License-Identifier: Apache-2.0
/// Reads YAML, JSON and command lines into the same list of entries, without knowing which options exist.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fettle::config {

/// One value as it was written. A number stays text: the option's type decides how it is read.
struct Scalar {
  std::string text;
  bool quoted = false;  ///< written in quotes: never null, and a string inside a map of parameters

  bool operator==(const Scalar&) const = default;
};

struct Value {
  enum class Kind {
    kNull,
    kFlag,  ///< an argument without a value
    kScalar,
    kList,
    kMap,
  };
  Kind kind = Kind::kNull;
  std::vector<Scalar> scalars = {};    ///< kScalar: one; kList: the items; kMap: the values, null as the word
  std::vector<std::string> keys = {};  ///< kMap: one a value

  bool operator==(const Value&) const = default;
};

struct Entry {
  std::string key;
  Value value;
  std::string where;  ///< "config.yaml:3" or "the command line"
};

inline constexpr std::string_view kCommandLine = "the command line";

/// Files above this size are no configuration.
inline constexpr size_t kLargestFile = 1 << 20;

enum class Syntax { kYaml, kJson };

/// The entries of a flat map; a value may be a scalar, a list of scalars or a map of scalars. An empty document has
/// none. `name` stands for the text in messages. Throws Error{kConfig} with name and line for what is no such map: a
/// syntax error, deeper nesting, a key given twice, YAML aliases, tags or several documents, more than kLargestFile.
std::vector<Entry> read_entries(std::string_view text, Syntax syntax, const std::string& name);

struct Arguments {
  std::optional<std::string> file;  ///< the first argument, if it is no option, or --config
  std::vector<Entry> entries;
};

/// `[file] --key=value --key value --key value value … --key`. Dashes inside a key are read as underscores.
/// Throws Error{kUsage} for anything else.
Arguments read_arguments(const std::vector<std::string>& arguments);

}  // namespace fettle::config
