// SPDX-License-Identifier: Apache-2.0
/// The prompt of `fettle generate`, made by the same template path as training records.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"
#include "text/tokenizer.h"

namespace fettle::data {

/// The tokens that come before the model's answer to `generation.prompt`: one user message (after `system_prompt`, if
/// set) through the template that `data.prompt_template` selects, or the text as it is with `raw_prompt`.
/// Throws Error{kConfig} where the template cannot be used with this tokenizer.
std::vector<int32_t> generation_prompt(const config::GenerationConfig& generation, const config::DataConfig& data,
                                       const text::Tokenizer& tokenizer);

/// The same for each of `prompts` in place of `generation.prompt`.
std::vector<std::vector<int32_t>> generation_prompts(const config::GenerationConfig& generation,
                                                     const config::DataConfig& data, const text::Tokenizer& tokenizer,
                                                     const std::vector<std::string>& prompts);

}  // namespace fettle::data
