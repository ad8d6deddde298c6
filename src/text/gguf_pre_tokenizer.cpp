// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "text/gguf_vocabulary.h"
#include "text/tokenizer_class.h"

namespace fettle::text {
namespace {

using nlohmann::json;
using Steps = std::vector<std::string>;

constexpr const char* kBytes = "ByteLevel";                // bytes become characters
constexpr const char* kWordsAndBytes = "ByteLevel+regex";  // GPT-2's words first
constexpr const char* kDigits = "Digits";                  // each digit alone

constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
    R"(\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                                R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
                                R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// What llama.cpp knows by name (llama-vocab.cpp) of the families that Fettle has. Many of its other names mean the
/// same as one of these.
struct PreTokenizer {
  std::string_view name;
  Steps steps;
  bool ignore_merges;
};
const std::vector<PreTokenizer>& known() {
  static const std::vector<PreTokenizer> table = {
      {"gpt-2", {kWordsAndBytes}, false},     {"smollm", {kDigits, kWordsAndBytes}, false},
      {"llama-bpe", {kLlama3, kBytes}, true}, {"smaug-bpe", {kLlama3, kBytes}, false},
      {"qwen2", {kQwen2, kBytes}, false},     {"tekken", {kTekken, kBytes}, true},
  };
  return table;
}

/// One step as the table spells it; its JSON where the table could not.
std::string step_of(const json& part) {
  const std::string type = text_at(part, "type");
  if (type == "ByteLevel" && !flag_at(part, "add_prefix_space", true)) {
    return flag_at(part, "use_regex", true) ? kWordsAndBytes : kBytes;
  }
  if (type == "Digits" && flag_at(part, "individual_digits", false)) return kDigits;
  if (type == "Split") {
    // The patterns match every character, so that what lies between matches is nothing.
    const bool invert = flag_at(part, "invert", false);
    const std::string behavior = text_at(part, "behavior");
    const std::string pattern = text_at(part.value("pattern", json::object()), "Regex");
    if (!pattern.empty() && ((behavior == "Isolated" && !invert) || (behavior == "Removed" && invert))) return pattern;
  }
  return part.dump();
}

Steps steps_of(const json& pre_tokenizer) {
  if (!pre_tokenizer.is_object()) return {};
  if (text_at(pre_tokenizer, "type") != "Sequence") return {step_of(pre_tokenizer)};
  Steps steps;
  for (const json& part : pre_tokenizer.value("pretokenizers", json::array())) {
    const Steps inner = steps_of(part);
    steps.insert(steps.end(), inner.begin(), inner.end());
  }
  return steps;
}

}  // namespace

std::string gguf_pre_tokenizer(const json& pre_tokenizer, bool ignore_merges) {
  const Steps steps = steps_of(pre_tokenizer);
  const auto found = std::ranges::find_if(known(), [&](const PreTokenizer& candidate) {
    return candidate.steps == steps && candidate.ignore_merges == ignore_merges;
  });
  if (found != known().end()) return std::string(found->name);
  throw Error(ExitCode::kConfig,
              fmt::format("the tokenizer's pre_tokenizer {}{} has no counterpart in llama.cpp that Fettle knows",
                          shorten(pre_tokenizer.dump(), 200), ignore_merges ? " with ignore_merges" : ""),
              "convert the model with llama.cpp's convert_hf_to_gguf.py");
}

}  // namespace fettle::text
