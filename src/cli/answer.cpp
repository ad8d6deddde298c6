// SPDX-License-Identifier: Apache-2.0
#include "cli/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "data/permutation.h"
#include "device/device.h"
#include "model/kv_cache.h"

namespace fettle::cli {

std::vector<int32_t> stop_tokens(const train::ModelInputs& inputs, const config::GenerationConfig& generation) {
  const text::Tokenizer& tokenizer = inputs.tokenizer;
  std::set<int32_t> ids;
  for (const int64_t id : hub::configured_eos_ids(inputs.base.generation_config)) ids.insert(static_cast<int32_t>(id));
  if (ids.empty()) ids.insert(inputs.spec.eos_ids.begin(), inputs.spec.eos_ids.end());
  if (tokenizer.eos_id() && (!generation.raw_prompt || ids.empty())) ids.insert(*tokenizer.eos_id());
  for (const std::string& stop : generation.stop_strings) {
    const auto id = tokenizer.token_to_id(stop);
    if (id && tokenizer.is_special(*id)) ids.insert(*id);
  }
  return {ids.begin(), ids.end()};
}

void check_length(const model::Decoder& model, size_t prompt, int64_t max_new_tokens) {
  const int64_t length = static_cast<int64_t>(prompt) + max_new_tokens;
  const double needed = model::KvCache::bytes(model.spec(), length, model.dtype());
  const auto memory = static_cast<double>(device::memory_capacity_bytes(model.device()));
  if (memory > 0 && needed > memory) {
    throw Error(ExitCode::kOutOfMemory,
                fmt::format("{} tokens of prompt and answer need {:.1f} GB for keys and values; there are {:.1f}",
                            length, needed / 1e9, memory / 1e9),
                "give a smaller max_new_tokens");
  }
  if (length > model.spec().max_positions) {
    log::warning("the prompt's {} tokens and max_new_tokens {} exceed the {} positions that the model was made for",
                 prompt, max_new_tokens, model.spec().max_positions);
  }
}

bool print_now(const std::string& text) {
  fmt::print("{}", text);
  return std::fflush(stdout) == 0;
}

uint64_t seed_of(int64_t seed, size_t index) {
  return data::mix(data::mix(static_cast<uint64_t>(seed)) ^ static_cast<uint64_t>(index));
}

std::string StopText::add(const std::string& piece) {
  if (has_ended_) return {};
  held_ += piece;
  size_t end = std::string::npos;
  for (const std::string& string : strings_) {
    const size_t found = held_.find(string);
    if (found != std::string::npos) end = std::min(end, found + string.size());
  }
  if (end != std::string::npos) {
    has_ended_ = true;
    return held_.substr(0, end);
  }
  size_t kept = 0;  // the longest end of the text that one of the strings begins with
  for (const std::string& string : strings_) {
    for (size_t size = std::min(string.size() - 1, held_.size()); size > kept; --size) {
      if (held_.ends_with(std::string_view(string).substr(0, size))) kept = size;
    }
  }
  std::string shown = held_.substr(0, held_.size() - kept);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopText::finish() {
  return has_ended_ ? std::string() : std::exchange(held_, {});
}

}  // namespace fettle::cli
