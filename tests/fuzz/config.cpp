// SPDX-License-Identifier: Apache-2.0
#include "config/parse.h"
#include "fuzz/target.h"

void fettle::fuzz::run_target(std::string_view input) {
  const auto syntax = input.starts_with('{') ? config::Syntax::kJson : config::Syntax::kYaml;
  config::parse_text(input, syntax, "fuzz.yaml");
}
