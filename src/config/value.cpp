// SPDX-License-Identifier: Apache-2.0
#include "config/value.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::config {
namespace {

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return lower;
}

/// A decimal number as YAML 1.2, JSON and Python write it; nothing else (no separators, no hexadecimal, no infinity).
std::optional<double> parse_number(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || text.find_first_not_of("0123456789.eE+-") != std::string_view::npos) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

/// Also takes 1e+06 and 8.0: Helm writes a large integer of a values file as a float.
std::optional<int64_t> parse_integer(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  constexpr double kExact = 9007199254740992.0;  // 2^53: above, a double no longer holds every integer
  const std::optional<double> number = parse_number(text);
  if (!number || *number != std::trunc(*number) || std::abs(*number) > kExact) return std::nullopt;
  return static_cast<int64_t>(*number);
}

bool in_range(const Range& range, double value) {
  if (range.or_minus_one && value == -1) return true;
  if (range.minimum && (value < *range.minimum || (range.minimum_excluded && value == *range.minimum))) return false;
  if (range.maximum && (value > *range.maximum || (range.maximum_excluded && value == *range.maximum))) return false;
  return !range.whole_from_one || value < 1 || value == std::trunc(value);
}

std::string range_text(const Range& range) {
  std::string text = range.or_minus_one ? ", -1 or" : range.minimum ? "," : "";
  if (range.minimum) text += fmt::format(" {} {}", range.minimum_excluded ? "above" : "at least", *range.minimum);
  if (range.maximum) {
    text += fmt::format("{}{} {}", range.minimum ? " and " : ", ", range.maximum_excluded ? "below" : "at most",
                        *range.maximum);
  }
  if (range.whole_from_one) text += ", whole from 1 on";
  return text;
}

std::vector<std::string> split(std::string_view text, std::string_view separators) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin < text.size();) {
    begin = text.find_first_not_of(separators, begin);
    if (begin == std::string_view::npos) break;
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    items.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return items;
}

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(' ');
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

std::vector<std::string> split_list(std::string_view text, ListSyntax syntax) {
  switch (syntax) {
    case ListSyntax::kWords:
      return split(text, ", ");
    case ListSyntax::kPatterns:
      if (text.find_first_of("*+?()[]{}|^$\\") != std::string_view::npos) return {std::string(text)};
      return split(text, ", ");
    case ListSyntax::kPaths: {
      std::vector<std::string> items;
      for (const std::string& part : split(text, ",")) {
        if (const std::string_view item = trim(part); !item.empty()) items.emplace_back(item);
      }
      return items;
    }
    case ListSyntax::kTexts:
      return text.empty() ? std::vector<std::string>() : std::vector{std::string(text)};
  }
  return {};
}

/// The items of a JSON array of strings; none if `text` is anything else.
std::optional<std::vector<std::string>> json_strings(std::string_view text) {
  const nlohmann::json array = nlohmann::json::parse(text, nullptr, false);
  if (!array.is_array()) return std::nullopt;
  if (!std::ranges::all_of(array, [](const nlohmann::json& item) { return item.is_string(); })) return std::nullopt;
  return array.get<std::vector<std::string>>();
}

/// Meant as a JSON or Python list. A pattern may begin with a bracket too, but no layer's name has a quote in it.
bool looks_like_array(std::string_view text, ListSyntax syntax) {
  return text.starts_with('[') && syntax != ListSyntax::kTexts &&
         (syntax != ListSyntax::kPatterns || text.find_first_of("\"'") != std::string_view::npos);
}

/// A number, true, false or null by its look, as YAML reads what has no quotes; else a string.
nlohmann::json plain_json(const std::string& text) {
  const std::string lower = lower_case(text);
  if (lower == "true" || lower == "false") return lower == "true";
  if (lower == "null") return nullptr;
  const bool looks_whole = text.find_first_of(".eE") == std::string::npos;
  if (const auto integer = parse_integer(text); integer && looks_whole) return *integer;
  if (const auto number = parse_number(text)) return *number;
  return text;
}

/// One assignment; the call operators are the option's possible types.
class Assignment {
 public:
  Assignment(const Option& option, const Value& value, const std::string& where)
      : option_(option), value_(value), where_(where) {}

  void operator()(bool* target) const {
    if (value_.kind == Value::Kind::kFlag) {
      *target = true;
      return;
    }
    const std::optional<bool> parsed = parse_bool(text());
    if (!parsed) refuse("is not true or false", "write true or false");
    *target = *parsed;
  }

  void operator()(int64_t* target) const {
    const std::optional<int64_t> parsed = parse_integer(text());
    if (!parsed) refuse("is not an integer", give_allowed());
    check_range(static_cast<double>(*parsed));
    *target = *parsed;
  }

  void operator()(double* target) const {
    const std::optional<double> parsed = parse_number(text());
    if (!parsed) refuse("is not a number", give_allowed());
    check_range(*parsed);
    *target = *parsed;
  }

  void operator()(std::optional<double>* target) const {
    double number = 0;
    (*this)(&number);
    *target = number;
  }

  void operator()(std::string* target) const {
    if (option_.text_format == TextFormat::kJsonObject) {
      *target = json_object();
      return;
    }
    std::string_view chosen = text();
    check_utf8(chosen);
    for (const ValueAlias& alias : option_.value_aliases) {
      if (chosen == alias.spelling) chosen = alias.value;
    }
    check_choice(chosen);
    if (option_.text_format == TextFormat::kBytes && !parse_bytes(chosen)) refuse("is not a size", give_allowed());
    *target = chosen;
  }

  void operator()(std::vector<std::string>* target) const {
    std::vector<std::string> items;
    if (value_.kind == Value::Kind::kList) {
      for (const Scalar& scalar : value_.scalars) items.push_back(scalar.text);
    } else {
      items = text_items();
    }
    for (const std::string& item : items) {
      check_utf8(item);
      if (item.empty()) refuse("has an empty item", "remove it");
    }
    *target = std::move(items);
  }

 private:
  [[nodiscard]] std::string_view text() const {
    switch (value_.kind) {
      case Value::Kind::kScalar:
        return value_.scalars[0].text;
      case Value::Kind::kFlag:
        refuse_shape("has no value", fmt::format("write --{}=value", option_.name));
      case Value::Kind::kList:
        refuse_shape("takes one value, not a list", "put a text with spaces in quotes");
      default:
        refuse_shape("takes no map", give_allowed());
    }
  }

  [[nodiscard]] std::vector<std::string> text_items() const {
    const std::string_view list = trim(text());
    if (auto items = json_strings(list)) return *std::move(items);
    if (looks_like_array(list, option_.list_syntax)) {
      refuse("is not a JSON array of strings", option_.list_syntax == ListSyntax::kPaths
                                                   ? "write [\"a\", \"b\"]; a file whose name begins with '[' is ./["
                                                   : "write [\"a\", \"b\"]");
    }
    return split_list(text(), option_.list_syntax);
  }

  [[nodiscard]] std::string json_object() const {
    std::vector<Entry> parsed;
    nlohmann::json object = nlohmann::json::object();
    const auto add = [&](const std::string& key, const Scalar& scalar) {
      check_utf8(key);
      check_utf8(scalar.text);
      object[key] = scalar.quoted ? nlohmann::json(scalar.text) : plain_json(scalar.text);
    };
    if (value_.kind == Value::Kind::kMap) {
      for (size_t i = 0; i < value_.keys.size(); ++i) add(value_.keys[i], value_.scalars[i]);
    } else {
      try {
        parsed = read_entries(text(), Syntax::kJson, std::string(option_.name));
      } catch (const Error&) {
        refuse("is not a flat JSON object", "write for instance {\"num_cycles\": 2}");
      }
      for (const Entry& entry : parsed) {
        if (entry.value.kind != Value::Kind::kScalar) refuse("is not a flat JSON object", "give each key one value");
        add(entry.key, entry.value.scalars[0]);
      }
    }
    return object.empty() ? "" : object.dump();
  }

  void check_range(double number) const {
    if (!in_range(option_.range, number)) refuse("is out of range", give_allowed());
  }

  void check_utf8(std::string_view checked) const {
    if (find_invalid_utf8(checked) != std::string_view::npos)
      refuse_shape("is not valid UTF-8", "save the file as UTF-8");
  }

  void check_choice(std::string_view chosen) const {
    const auto& choices = option_.choices;
    if (choices.empty() || std::ranges::find(choices, chosen) != choices.end()) return;
    if (std::ranges::find(option_.unavailable, chosen) != option_.unavailable.end()) {
      refuse("is not available in this version", give_allowed());
    }
    const bool is_path = chosen.find_first_of("/.") != std::string_view::npos;
    std::error_code ignored;
    if (option_.choices_or_file && (is_path || std::filesystem::exists(std::string(chosen), ignored))) return;
    const std::string_view close = nearest(chosen, choices);
    refuse(option_.choices_or_file ? "is neither a known name nor a file that exists" : "is not a known choice",
           (close.empty() ? std::string() : fmt::format("did you mean {}? ", close)) + give_allowed());
  }

  [[nodiscard]] std::string give_allowed() const { return "give " + allowed(option_); }

  [[noreturn]] void refuse(std::string_view problem, const std::string& hint) const {
    if (value_.kind != Value::Kind::kScalar) refuse_shape(problem, hint);
    throw Error(ExitCode::kUsage, fmt::format("{} = {} ({}) {}", option_.name, quote(text()), where_, problem), hint);
  }

  [[noreturn]] void refuse_shape(std::string_view problem, const std::string& hint) const {
    throw Error(ExitCode::kUsage, fmt::format("option {} ({}) {}", option_.name, where_, problem), hint);
  }

  const Option& option_;
  const Value& value_;
  const std::string& where_;
};

bool is_null(const Option& option, const Value& value, Config& config) {
  if (value.kind == Value::Kind::kNull) return true;
  const bool is_text = std::holds_alternative<std::string*>(option.slot(config));
  return value.kind == Value::Kind::kScalar && !is_text && !value.scalars[0].quoted && value.scalars[0].text == "null";
}

}  // namespace

bool assign(const Option& option, const Value& value, const std::string& where, Config& config) {
  if (is_null(option, value, config)) {
    set_default(option, config);
    return false;
  }
  std::visit(Assignment(option, value, where), option.slot(config));
  return true;
}

void set_default(const Option& option, Config& config) {
  Config defaults;
  std::visit([&](auto* member) { *member = *std::get<decltype(member)>(option.slot(defaults)); }, option.slot(config));
}

bool is_default(const Option& option, const Config& config) {
  Config copy = config;
  Config defaults;
  return std::visit([&](auto* member) { return *member == *std::get<decltype(member)>(option.slot(defaults)); },
                    option.slot(copy));
}

std::string allowed(const Option& option) {
  if (!option.choices.empty()) {
    return fmt::format("one of {}{}", fmt::join(option.choices, ", "), option.choices_or_file ? ", or a path" : "");
  }
  if (option.text_format == TextFormat::kBytes) return "a size such as 500MB or 5GB";
  if (option.text_format == TextFormat::kJsonObject) return "a map, or a JSON object as string";
  return std::string(type_name(option)) + range_text(option.range);
}

std::optional<bool> parse_bool(std::string_view text) {
  const std::string lower = lower_case(text);
  for (const std::string_view word : {"true", "yes", "on", "1"}) {
    if (lower == word) return true;
  }
  for (const std::string_view word : {"false", "no", "off", "0"}) {
    if (lower == word) return false;
  }
  return std::nullopt;
}

std::optional<int64_t> parse_bytes(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, double>, 10> kUnits = {{{"", 1},
                                                                                  {"B", 1},
                                                                                  {"KB", 1e3},
                                                                                  {"MB", 1e6},
                                                                                  {"GB", 1e9},
                                                                                  {"TB", 1e12},
                                                                                  {"KIB", 0x1p10},
                                                                                  {"MIB", 0x1p20},
                                                                                  {"GIB", 0x1p30},
                                                                                  {"TIB", 0x1p40}}};
  double value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit;
  for (const char c : text.substr(static_cast<size_t>(end - text.data()))) {
    if (c != ' ') unit += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  const auto* found = std::ranges::find_if(kUnits, [&](const auto& known) { return known.first == unit; });
  if (failure != std::errc() || found == kUnits.end()) return std::nullopt;
  const double bytes = value * found->second;
  return bytes >= 1 && bytes < 0x1p63 ? std::optional(static_cast<int64_t>(bytes)) : std::nullopt;
}

std::string_view nearest(std::string_view text, const std::vector<std::string_view>& candidates) {
  constexpr size_t kLongest = 64;
  if (text.size() > kLongest) return {};
  std::string_view best;
  size_t best_distance = std::max<size_t>(2, text.size() / 3) + 1;
  for (const std::string_view candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);  // Levenshtein distances from text's first i characters
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= text.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t substituted = diagonal + (text[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = std::exchange(row[j], std::min({substituted, row[j] + 1, row[j - 1] + 1}));
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace fettle::config
