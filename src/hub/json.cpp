// SPDX-License-Identifier: Apache-2.0
#include "hub/json.h"

#include <fmt/format.h>

#include <set>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"

namespace fettle::hub {
namespace {

using nlohmann::json;

constexpr size_t kMaximumDepth = 64;
constexpr size_t kMaximumFileSize = 64'000'000;

/// Checks the text before it is parsed: the library keeps the last of two equal keys and has no depth limit, and its
/// parser with a callback walks all of an object's values after each of them.
class Checker final : public nlohmann::json_sax<json> {
 public:
  explicit Checker(std::string_view name) : name_(name) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& key) override {
    if (!keys_.back().insert(key).second) fail(fmt::format("the key {} occurs twice", quote(key)));
    return true;
  }

  bool parse_error(size_t position, const std::string& token, const json::exception& error) override {
    if (dynamic_cast<const json::out_of_range*>(&error) != nullptr) {
      fail(fmt::format("the number {} is out of range", quote(token)));
    }
    fail(fmt::format("not valid JSON at byte {}", position));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ExitCode::kData, fmt::format("{}: {}", name_, what), kWrongContentHint);
  }

  bool open() {
    keys_.emplace_back();
    if (keys_.size() > kMaximumDepth) fail(fmt::format("JSON nested deeper than {} levels", kMaximumDepth));
    return true;
  }

  bool close() {
    keys_.pop_back();
    return true;
  }

  std::string_view name_;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

json parse_json_object(std::string_view text, std::string_view name) {
  Checker checker(name);
  json::sax_parse(text, &checker);
  json parsed = json::parse(text);
  if (!parsed.is_object()) {
    throw Error(ExitCode::kData, fmt::format("{}: a JSON object is expected, found {}", name, parsed.type_name()),
                kWrongContentHint);
  }
  return parsed;
}

json read_json_object(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  if (bytes.size() > kMaximumFileSize) {
    throw Error(ExitCode::kData,
                fmt::format("{}: {} bytes are more than a configuration file can have", path.string(), bytes.size()),
                kWrongContentHint);
  }
  return parse_json_object({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

}  // namespace fettle::hub
