// SPDX-License-Identifier: Apache-2.0
/// Which bytes of a rendered chat came from the record. The template is not ours and may test, trim, split or drop the
/// strings it is given, so what it wrote is found by marks that are taken out again, and checked against a rendering
/// without marks.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_template.h"

namespace fettle::text {

/// Two characters that occur nowhere in the texts of a rendering.
struct Marks {
  std::string begin;
  std::string end;
};

/// Marks that do not occur in `texts`: noncharacters of Unicode, or private-use characters if it has all of those.
Marks choose_marks(std::string_view texts);

/// A copy of messages, tools or documents in which every string of the user's stands between marks, inside the white
/// space at its ends (so that trimming still works). Not marked: role and type, which templates compare.
OrderedJson mark_strings(const OrderedJson& value, const Marks& marks);

struct Unmarked {
  std::string text;
  std::vector<Span> spans;
  bool balanced = true;  ///< every begin was followed by its end before the next begin
};

/// The text without marks, and where they stood.
Unmarked remove_marks(std::string_view text, const Marks& marks);

/// The ranges of `text` that spell something of the user's strings, for a template that breaks the marks: every place
/// where a string stands whole or, if none does, one of its lines, and always every place where something bracketed
/// (<…>, […]) of it stands. So more is taken for the user's than came from the user, never less that could spell a
/// special token.
std::vector<Span> search_strings(std::string_view text, const std::vector<OrderedJson>& sources);

}  // namespace fettle::text
