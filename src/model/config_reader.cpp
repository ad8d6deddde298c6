// SPDX-License-Identifier: Apache-2.0
#include "model/config_reader.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "base/error.h"

namespace fettle::model {

using nlohmann::json;

ConfigReader::ConfigReader(const json& object, std::string place) : object_(object), place_(std::move(place)) {
  if (!object.is_object()) {
    throw Error(ExitCode::kConfig, fmt::format("{} is not a JSON object", place_));
  }
}

const json* ConfigReader::find(std::string_view key) {
  ignore(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigReader::has(std::string_view key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

bool ConfigReader::is_null(std::string_view key) const {
  const auto found = object_.find(key);
  return found != object_.end() && found->is_null();
}

void ConfigReader::fail(std::string_view key, const std::string& problem) const {
  throw Error(ExitCode::kConfig, fmt::format("{}: '{}' {}", place_, key, problem), "correct the model's config.json");
}

int64_t ConfigReader::integer(std::string_view key, Range range) {
  const json* value = find(key);
  if (value == nullptr) {
    fail(key, "is missing");
  }
  // An unsigned value above INT64_MAX would wrap.
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
  if (!fits || value->get<int64_t>() < range.least || value->get<int64_t>() > range.most) {
    fail(key, fmt::format("is {}, expected an integer from {} to {}", value->dump(), range.least, range.most));
  }
  return value->get<int64_t>();
}

int64_t ConfigReader::integer_or(std::string_view key, Range range, int64_t fallback) {
  ignore(key);
  return has(key) ? integer(key, range) : fallback;
}

bool ConfigReader::boolean_or(std::string_view key, bool fallback) {
  const json* value = find(key);
  if (value == nullptr) {
    return fallback;
  }
  if (!value->is_boolean()) {
    fail(key, fmt::format("is {}, expected true or false", value->dump()));
  }
  return value->get<bool>();
}

std::string ConfigReader::text_or(std::string_view key, std::string_view fallback) {
  const json* value = find(key);
  if (value == nullptr) {
    return std::string(fallback);
  }
  if (!value->is_string()) {
    fail(key, fmt::format("is {}, expected a string", value->dump()));
  }
  return value->get<std::string>();
}

std::optional<double> ConfigReader::optional_positive(std::string_view key) {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() <= 0) {
    fail(key, fmt::format("is {}, expected a number above 0", value->dump()));
  }
  return value->get<double>();
}

double ConfigReader::positive_or(std::string_view key, double fallback) {
  return optional_positive(key).value_or(fallback);
}

double ConfigReader::positive(std::string_view key) {
  const std::optional<double> value = optional_positive(key);
  if (!value.has_value()) {
    fail(key, "is missing");
  }
  return *value;
}

std::vector<int64_t> ConfigReader::ids(std::string_view key) {
  const json* value = find(key);
  if (value == nullptr) {
    return {};
  }
  std::vector<int64_t> ids;
  for (const json& id : value->is_array() ? *value : json::array({*value})) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0) {
      fail(key, fmt::format("is {}, expected a token id or a list of them", value->dump()));
    }
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

std::vector<std::string> ConfigReader::texts(std::string_view key) {
  const json* value = find(key);
  if (value == nullptr) {
    return {};
  }
  std::vector<std::string> texts;
  for (const json& text : value->is_array() ? *value : json::array({*value})) {
    if (!text.is_string()) {
      fail(key, fmt::format("is {}, expected a list of strings", value->dump()));
    }
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

const json& ConfigReader::raw(std::string_view key) {
  static const json null;
  const json* value = find(key);
  return value == nullptr ? null : *value;
}

void ConfigReader::refuse_unread() const {
  for (const auto& [key, value] : object_.items()) {
    if (!read_.contains(key) && !value.is_null() && !key.starts_with('_')) {
      throw Error(ExitCode::kConfig,
                  fmt::format("{}: key '{}' is not known to this version and may change the mathematics", place_, key),
                  "remove it if it changes nothing for this model, or use a version that knows it");
    }
  }
}

}  // namespace fettle::model
