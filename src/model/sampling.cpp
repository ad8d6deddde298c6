// SPDX-License-Identifier: Apache-2.0
#include "model/sampling.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/multinomial.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace fettle::model {
namespace {

constexpr double kRemoved = -std::numeric_limits<double>::infinity();

// Logits of tokens that have occurred, in the prompt or since, are pushed down: CTRL's rule (arXiv 1909.05858).
void penalize_repetition(at::Tensor& logits, const std::vector<int32_t>& tokens, double penalty) {
  std::vector<int64_t> seen(tokens.begin(), tokens.end());
  std::ranges::sort(seen);
  seen.erase(std::ranges::unique(seen).begin(), seen.end());
  auto* values = logits.mutable_data_ptr<float>();
  for (const int64_t token : seen) {
    values[token] =
        values[token] < 0 ? values[token] * static_cast<float>(penalty) : values[token] / static_cast<float>(penalty);
  }
}

void keep_top_k(at::Tensor& logits, int64_t k) {
  const at::Tensor least = std::get<0>(logits.topk(std::min(k, logits.size(0))))[-1];
  logits.masked_fill_(logits < least, kRemoved);
}

// The smallest set of most likely tokens whose probabilities reach `p`; at least one.
void keep_top_p(at::Tensor& logits, double p) {
  const auto [sorted, order] = logits.sort(/*dim=*/0, /*descending=*/false);
  const at::Tensor below = sorted.softmax(0).cumsum(0);
  at::Tensor removed = below <= 1 - p;
  removed.narrow(0, removed.size(0) - 1, 1).fill_(false);
  logits.masked_fill_(removed.new_zeros(removed.sizes()).scatter_(0, order, removed), kRemoved);
}

// Tokens of at least `p` times the likeliest one's probability (arXiv 2407.01082).
void keep_min_p(at::Tensor& logits, double p) {
  const at::Tensor probabilities = logits.softmax(0);
  logits.masked_fill_(probabilities < probabilities.max() * p, kRemoved);
}

}  // namespace

at::Tensor process_logits(at::Tensor logits, const std::vector<int32_t>& tokens,
                          const config::GenerationConfig& options) {
  if (options.repetition_penalty != 1.0) {
    penalize_repetition(logits, tokens, options.repetition_penalty);
  }
  if (!options.do_sample) {
    return logits;
  }
  if (options.temperature != 1.0) {
    logits.div_(options.temperature);
  }
  if (options.top_k > 0) {
    keep_top_k(logits, options.top_k);
  }
  if (options.top_p < 1.0) {
    keep_top_p(logits, options.top_p);
  }
  if (options.min_p > 0.0) {
    keep_min_p(logits, options.min_p);
  }
  return logits;
}

int32_t next_token(at::Tensor logits, const std::vector<int32_t>& tokens, const config::GenerationConfig& options,
                   const at::Generator& generator) {
  if (!logits.isfinite().all().item<bool>()) {
    throw Error(ExitCode::kDiverged, fmt::format("the logits of token {} are not finite", tokens.size()),
                "the model or adapter holds NaN or infinity, or overflows: try bf16=false");
  }
  const at::Tensor processed = process_logits(std::move(logits), tokens, options);
  const at::Tensor chosen = options.do_sample
                                ? at::multinomial(processed.softmax(0), 1, /*replacement=*/false, generator)
                                : processed.argmax();
  return static_cast<int32_t>(chosen.item<int64_t>());
}

}  // namespace fettle::model
