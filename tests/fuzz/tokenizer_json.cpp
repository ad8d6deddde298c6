// SPDX-License-Identifier: Apache-2.0
#include "fuzz/target.h"
#include "text/tokenizer.h"

void fettle::fuzz::run_target(std::string_view input) {
  const auto tokenizer = text::Tokenizer::from_files({.name = "fuzz", .tokenizer_json = std::string(input)});
  const auto encoding = tokenizer.encode("Hello, wörld! <s>\n12", true);
  (void)tokenizer.decode(encoding.ids, false);
}
