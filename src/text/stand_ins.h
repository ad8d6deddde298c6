// SPDX-License-Identifier: Apache-2.0
/// Special tokens spelled in a record's text, on their way through a chat template.
///
/// A template trims, splits, compares and drops what it is given, so where a record's text came to stand cannot be told
/// from the rendering. It need not be: what matters is where that text spells a special token. There one private-use
/// character stands in while the template works, which survives everything a template does to text, and is replaced by
/// the spelling afterwards.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text/chat_template.h"

namespace fettle::text {

/// The spellings of a tokenizer's special tokens. Immutable.
class Spellings {
 public:
  explicit Spellings(const std::vector<std::string>& spellings);

  /// The first one in `text` from byte `from` on; of several that begin there the longest, which is the tokenizer's
  /// choice, too.
  [[nodiscard]] std::optional<Span> find(std::string_view text, size_t from = 0) const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_set<std::string, Hash, std::equal_to<>> spellings_;
  std::vector<size_t> lengths_;  // descending
  std::string first_bytes_;
};

/// The stand-ins of one rendering.
class StandIns {
 public:
  /// Characters that occur in `source` (the template) or `variables` (as JSON text) stand for nothing. All arguments
  /// must outlive the object.
  StandIns(const Spellings& spellings, std::string_view source, std::string_view variables);

  /// Puts stand-ins into every string and key of `value`; false if it spells no special token. Throws Error{kData} if
  /// no character is free.
  bool put_into(OrderedJson& value);

  /// Two more free characters, to be written around {% generation %} blocks.
  const std::string& block_marks();

  struct Restored {
    ChatTemplate::Rendered rendered;
    bool balanced = true;  ///< every block that begins ends before the next begins
  };
  /// What the template wrote, with the spellings again and without block marks, and where they stood.
  [[nodiscard]] Restored restore(std::string_view written) const;

 private:
  std::string free_character();
  bool put_into(std::string& text);
  const std::string& stand_in_for(std::string_view spelling);

  const Spellings& spellings_;
  std::string_view source_;
  std::string_view variables_;
  uint32_t next_;
  std::unordered_map<std::string, std::string> stand_ins_;   // spelling → character
  std::unordered_map<std::string, std::string> stands_for_;  // character → spelling
  std::string block_marks_;
};

}  // namespace fettle::text
