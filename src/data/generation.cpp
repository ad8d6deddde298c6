// SPDX-License-Identifier: Apache-2.0
#include "data/generation.h"

#include <optional>

#include "data/prompt.h"

namespace fettle::data {

std::vector<int32_t> generation_prompt(const config::GenerationConfig& generation, const config::DataConfig& data,
                                       const text::Tokenizer& tokenizer) {
  return generation_prompts(generation, data, tokenizer, {generation.prompt}).front();
}

std::vector<std::vector<int32_t>> generation_prompts(const config::GenerationConfig& generation,
                                                     const config::DataConfig& data, const text::Tokenizer& tokenizer,
                                                     const std::vector<std::string>& prompts) {
  std::optional<PromptBuilder> builder;
  if (!generation.raw_prompt) builder.emplace(data, tokenizer);
  std::vector<std::vector<int32_t>> all;
  for (const std::string& prompt : prompts) {
    all.push_back(builder ? builder->generation_prompt(prompt, generation.system_prompt)
                          : tokenizer.encode(prompt, true).ids);
  }
  return all;
}

}  // namespace fettle::data
