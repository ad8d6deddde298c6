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

/// Watches the parser: the library itself keeps the last of two equal keys and has no depth limit.
class Watcher {
 public:
  explicit Watcher(std::string_view name) : name_(name) {}

  bool operator()(int /*depth*/, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        keys_.emplace_back();
        if (keys_.size() > kMaximumDepth) {
          throw Error(ExitCode::kData, fmt::format("{}: JSON nested deeper than {} levels", name_, kMaximumDepth));
        }
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        keys_.pop_back();
        break;
      case json::parse_event_t::key:
        if (!keys_.back().insert(parsed.get<std::string>()).second) {
          throw Error(ExitCode::kData,
                      fmt::format("{}: the key {} occurs twice", name_, quote(parsed.get<std::string>())));
        }
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  std::string_view name_;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

json parse_json_object(std::string_view text, std::string_view name) {
  json parsed;
  // The parser takes the watcher by value through std::function: it must share one state.
  Watcher watcher(name);
  const auto watch = [&watcher](int depth, json::parse_event_t event, json& value) {
    return watcher(depth, event, value);
  };
  try {
    parsed = json::parse(text, watch);
  } catch (const json::parse_error& error) {
    throw Error(ExitCode::kData, fmt::format("{}: not valid JSON at byte {}", name, error.byte),
                "the file is damaged or was written by hand with a mistake");
  } catch (const json::exception&) {
    throw Error(ExitCode::kData, fmt::format("{}: a number in the JSON text is out of range", name));
  }
  if (!parsed.is_object()) {
    throw Error(ExitCode::kData, fmt::format("{}: a JSON object is expected, found {}", name, parsed.type_name()));
  }
  return parsed;
}

json read_json_object(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  if (bytes.size() > kMaximumFileSize) {
    throw Error(ExitCode::kData,
                fmt::format("{}: {} bytes are more than a configuration file can have", path.string(), bytes.size()));
  }
  return parse_json_object({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

}  // namespace fettle::hub
