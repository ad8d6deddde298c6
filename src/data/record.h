// SPDX-License-Identifier: Apache-2.0
/// One record of a data file, parsed, and what is thrown when it cannot be used.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

namespace fettle::data {

/// Columns in the file's order: chat templates print tool descriptions in the order of their keys.
using Record = nlohmann::ordered_json;

/// What a value is, for messages: "a list".
inline const char* kind_of(const Record& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "a boolean";
  if (value.is_number()) return "a number";
  if (value.is_string()) return "text";
  return value.is_array() ? "a list" : "an object";
}

/// A record that gives no document. on_bad_record decides whether that ends the run or is counted: `kind` is what is
/// counted, `what()` adds the particulars of this record. The place is added by who knows it.
class BadRecord : public std::exception {
 public:
  explicit BadRecord(std::string kind, const std::string& particulars = {})
      : kind_(std::move(kind)), message_(particulars.empty() ? kind_ : kind_ + ": " + particulars) {}

  [[nodiscard]] const std::string& kind() const noexcept { return kind_; }
  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string kind_;
  std::string message_;
};

/// A well-formed record that holds nothing to learn. It is dropped and counted, whatever on_bad_record says.
class EmptyRecord final : public BadRecord {
 public:
  using BadRecord::BadRecord;
};

}  // namespace fettle::data
