// SPDX-License-Identifier: Apache-2.0
/// Choosing the next token from its logits.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "config/config.h"

namespace fettle::model {

/// transformers' logits processors in transformers' order: repetition_penalty, and when sampling temperature, top_k,
/// top_p, min_p. `logits` float32 [V] is changed and returned; a removed token has -infinity. `tokens`: all before,
/// prompt included.
at::Tensor process_logits(at::Tensor logits, const std::vector<int32_t>& tokens,
                          const config::GenerationConfig& options);

/// The most likely token, or with do_sample one drawn from the processed distribution. Throws Error{kDiverged} if a
/// logit is not finite.
int32_t next_token(at::Tensor logits, const std::vector<int32_t>& tokens, const config::GenerationConfig& options,
                   const at::Generator& generator);

}  // namespace fettle::model
