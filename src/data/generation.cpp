// SPDX-License-Identifier: Apache-2.0
#include "data/generation.h"

#include "data/prompt.h"

namespace fettle::data {

std::vector<int32_t> generation_prompt(const config::GenerationConfig& generation, const config::DataConfig& data,
                                       const text::Tokenizer& tokenizer) {
  if (generation.raw_prompt) return tokenizer.encode(generation.prompt, true).ids;
  return PromptBuilder(data, tokenizer).generation_prompt(generation.prompt, generation.system_prompt);
}

}  // namespace fettle::data
