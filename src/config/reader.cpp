// SPDX-License-Identifier: Apache-2.0
#include "config/reader.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::config {
namespace {

constexpr size_t kLongestReason = 160;  ///< of a parser, which may repeat what it has read

/// Receives either parser's events and stops at the first one that a flat map cannot have, so that neither a deeply
/// nested nor a self-referring document is ever built in memory.
class EntryBuilder {
 public:
  explicit EntryBuilder(std::string name) : name_(std::move(name)) {}

  void begin_map(int line) {
    if (depth_ == 0) {
      depth_ = 1;
    } else {
      begin_collection(Value::Kind::kMap, line);
    }
  }

  void begin_list(int line) {
    if (depth_ == 0) fail(line, "is a list, not a map of options", "write one `option: value` a line");
    begin_collection(Value::Kind::kList, line);
  }

  void end_collection() {
    --depth_;
    in_value_ = false;
  }

  [[nodiscard]] bool expects_key() const {
    return depth_ == 1 ? !in_value_ : depth_ == 2 && value().kind == Value::Kind::kMap && !has_inner_key_;
  }

  void key(std::string text, int line) {
    if (depth_ == 2) {
      if (std::ranges::find(value().keys, text) != value().keys.end()) {
        fail(line, fmt::format("{} has the key {} twice", quote(entries_.back().key), quote(text)), "keep one of them");
      }
      value().keys.push_back(std::move(text));
      has_inner_key_ = true;
      return;
    }
    const auto [first, is_new] = lines_.emplace(text, line);
    if (!is_new) {
      fail(line, fmt::format("option {} is given twice, first in line {}", quote(text), first->second),
           "keep one of them");
    }
    entries_.push_back({std::move(text), {}, fmt::format("{}:{}", name_, line)});
    in_value_ = true;
  }

  void scalar(Scalar scalar, int line) {
    if (depth_ == 0) fail(line, "is not a map of options", "write one `option: value` a line");
    value().scalars.push_back(std::move(scalar));
    has_inner_key_ = false;
    if (depth_ == 1) {
      value().kind = Value::Kind::kScalar;
      in_value_ = false;
    }
  }

  void null(int line) {
    if (depth_ == 2 && value().kind == Value::Kind::kMap) {
      scalar({"null", false}, line);
    } else if (depth_ == 2) {
      fail(line, fmt::format("{} has an empty item", quote(entries_.back().key)), "give it a value");
    }
    if (depth_ == 1) in_value_ = false;
  }

  [[noreturn]] void fail(int line, const std::string& what, const std::string& hint) const {
    throw Error(ExitCode::kConfig, fmt::format("{}:{}: {}", name_, line, what), hint);
  }

  std::vector<Entry> take() { return std::move(entries_); }

 private:
  void begin_collection(Value::Kind kind, int line) {
    if (depth_ == 2 || !in_value_) fail(line, "is nested too deeply", "options are flat: one `option: value` a line");
    value().kind = kind;
    depth_ = 2;
    has_inner_key_ = false;
  }

  [[nodiscard]] Value& value() { return entries_.back().value; }
  [[nodiscard]] const Value& value() const { return entries_.back().value; }

  std::string name_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, int> lines_;
  int depth_ = 0;               // 1: in the map of options, 2: in one option's list or map
  bool in_value_ = false;       // a key was read, its value is not complete
  bool has_inner_key_ = false;  // the same one level down
};

class YamlEvents final : public YAML::EventHandler {
 public:
  explicit YamlEvents(EntryBuilder& builder) : builder_(builder) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) builder_.fail(mark.line + 1, "a second document starts", "keep one document in the file");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    if (builder_.expects_key()) refuse_key(mark);
    if (builder_started_) builder_.null(mark.line + 1);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    builder_.fail(mark.line + 1, "YAML aliases (*name) are not supported", "write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, const std::string& text) override {
    check_tag(mark, tag);
    if (builder_.expects_key()) {
      builder_.key(text, mark.line + 1);
    } else {
      builder_.scalar({text, tag == "!"}, mark.line + 1);
    }
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    start(mark, tag);
    builder_.begin_list(mark.line + 1);
  }
  void OnSequenceEnd() override { builder_.end_collection(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, YAML::EmitterStyle::value) override {
    start(mark, tag);
    builder_.begin_map(mark.line + 1);
  }
  void OnMapEnd() override { builder_.end_collection(); }

 private:
  void start(const YAML::Mark& mark, const std::string& tag) {
    check_tag(mark, tag);
    if (builder_.expects_key()) refuse_key(mark);
    builder_started_ = true;
  }
  // yaml-cpp's own tags: "?" for plain scalars and collections, "!" for quoted scalars.
  void check_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      builder_.fail(mark.line + 1, fmt::format("the YAML tag {} is not supported", quote(tag)), "remove it");
    }
  }
  void refuse_key(const YAML::Mark& mark) {
    builder_.fail(mark.line + 1, "a key is not a name", "write one `option: value` a line");
  }

  EntryBuilder& builder_;
  int documents_ = 0;
  bool builder_started_ = false;
};

void read_yaml(std::string_view text, EntryBuilder& builder) {
  std::istringstream stream{std::string(text)};
  YamlEvents events(builder);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(events)) {
    }
  } catch (const YAML::Exception& error) {
    builder.fail(error.mark.line + 1, "is not valid YAML: " + one_line(error.msg.substr(0, kLongestReason)),
                 "check indentation, quotes and colons there");
  }
}

/// Walks over the text and lets the SAX events see how far the parser has read.
class TrackedIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackedIterator(const char* at, const char** furthest) : at_(at), furthest_(furthest) {}
  reference operator*() const { return *at_; }
  TrackedIterator& operator++() {
    *furthest_ = ++at_;
    return *this;
  }
  bool operator==(const TrackedIterator& other) const { return at_ == other.at_; }

 private:
  const char* at_;
  const char** furthest_;
};

class JsonEvents final : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonEvents(EntryBuilder& builder, const char* begin, const char* const* furthest)
      : builder_(builder), counted_(begin), begin_(begin), furthest_(furthest) {}

  bool null() override {
    builder_.null(line());
    return true;
  }
  bool boolean(bool value) override { return plain(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return plain(fmt::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override { return plain(fmt::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return plain(text); }
  bool string(string_t& value) override {
    builder_.scalar({value, true}, line());
    return true;
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override {
    builder_.begin_map(line());
    return true;
  }
  bool key(string_t& name) override {
    builder_.key(name, line());
    return true;
  }
  bool end_object() override {
    builder_.end_collection();
    return true;
  }
  bool start_array(std::size_t) override {
    builder_.begin_list(line());
    return true;
  }
  bool end_array() override {
    builder_.end_collection();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    std::string reason = error.what();  // "[json.exception.…] parse error at line 1, column 2: <reason>"
    if (const size_t start = reason.find(": "); start != std::string::npos) reason.erase(0, start + 2);
    const auto end = static_cast<std::ptrdiff_t>(position > 0 ? position - 1 : 0);
    const auto lines = 1 + std::count(begin_, std::min(begin_ + end, *furthest_), '\n');
    builder_.fail(static_cast<int>(lines), "is not valid JSON: " + one_line(reason.substr(0, kLongestReason)),
                  "check quotes, commas and braces there");
  }

 private:
  bool plain(std::string text) {
    builder_.scalar({std::move(text), false}, line());
    return true;
  }
  int line() {
    line_ += static_cast<int>(std::count(counted_, *furthest_, '\n'));
    counted_ = *furthest_;
    return line_;
  }

  EntryBuilder& builder_;
  const char* counted_;
  const char* begin_;
  const char* const* furthest_;
  int line_ = 1;
};

void read_json(std::string_view text, EntryBuilder& builder) {
  const char* furthest = text.data();
  JsonEvents events(builder, text.data(), &furthest);
  const TrackedIterator begin(text.data(), &furthest);
  const TrackedIterator end(text.data() + text.size(), &furthest);
  nlohmann::json::sax_parse(begin, end, &events);
}

Error usage(const std::string& what, const std::string& hint) {
  return {ExitCode::kUsage, what, hint};
}

Value value_of(const std::vector<std::string>& texts) {
  Value value;
  value.kind = texts.empty() ? Value::Kind::kFlag : texts.size() == 1 ? Value::Kind::kScalar : Value::Kind::kList;
  for (const std::string& text : texts) value.scalars.push_back({text, false});
  return value;
}

bool is_option(const std::string& argument) {
  return argument.starts_with("--");
}

}  // namespace

std::vector<Entry> read_entries(std::string_view text, Syntax syntax, const std::string& name) {
  if (text.size() > kLargestFile) {
    throw Error(ExitCode::kConfig,
                fmt::format("{} has {} bytes, more than a configuration can have", name, text.size()),
                "give a file of options, not of data");
  }
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  EntryBuilder builder(name);
  if (syntax == Syntax::kYaml) {
    read_yaml(text, builder);
  } else if (text.find_first_not_of(" \t\r\n") != std::string_view::npos) {
    read_json(text, builder);
  }
  return builder.take();
}

Arguments read_arguments(const std::vector<std::string>& arguments) {
  Arguments result;
  size_t i = 0;
  if (!arguments.empty() && !arguments[0].starts_with("-")) result.file = arguments[i++];
  while (i < arguments.size()) {
    const std::string& argument = arguments[i++];
    if (!is_option(argument) || argument.size() == 2) {
      throw usage(fmt::format("argument {} is not an option", quote(argument)),
                  "write --option=value; a configuration file comes first");
    }
    const size_t equals = argument.find('=');
    std::string key = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::ranges::replace(key, '-', '_');
    std::vector<std::string> texts;
    if (equals != std::string::npos) {
      texts.push_back(argument.substr(equals + 1));
    } else {
      while (i < arguments.size() && !is_option(arguments[i])) texts.push_back(arguments[i++]);
    }
    if (key != "config") {
      result.entries.push_back({key, value_of(texts), std::string(kCommandLine)});
    } else if (texts.size() != 1 || result.file) {
      throw usage("--config takes one configuration file", "give the file once");
    } else {
      result.file = texts[0];
    }
  }
  return result;
}

}  // namespace fettle::config
