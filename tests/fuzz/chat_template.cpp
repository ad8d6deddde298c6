// SPDX-License-Identifier: Apache-2.0
#include "text/chat_template.h"

#include <string>

#include "fuzz/target.h"

void fettle::fuzz::run_target(std::string_view input) {
  const text::ChatTemplate chat_template(std::string(input), {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  const auto messages = text::OrderedJson::parse(R"([{"role": "system", "content": "Be brief."},
      {"role": "user", "content": " Hello {{ x }} "}, {"role": "assistant", "content": "Hi", "tool_calls": null}])");
  const auto tools = text::OrderedJson::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {}}}])");
  (void)chat_template.render(messages, /*add_generation_prompt=*/true, {{"tools", tools}});
}
