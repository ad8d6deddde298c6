// SPDX-License-Identifier: Apache-2.0
/// probe.safetensors: what a model answers to one fixed document, so that a copy of it elsewhere can be tried.
///
/// Format: "tokens" I64 [T], "logits" F32 [V] of the last token, computed in float32 whatever the weights' type; in the
/// metadata "format": "fettle probe 1". Kept beside a model, or beside an adapter for it on its unquantized base.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/dataset.h"
#include "model/decoder.h"
#include "text/tokenizer.h"

namespace fettle::train {

inline constexpr const char* kProbeFile = "probe.safetensors";

/// How far logits may be from the stored ones, as a part of the largest of these: what the order of sums in float32
/// makes, on whatever machine.
inline constexpr double kProbeTolerance = 1e-4;

/// The first tokens, at most `most`, of some fixed sentences, without those that the model has no embedding for.
/// Never empty: where the tokenizer has nothing of use, a fixed pattern.
std::vector<int32_t> fixed_tokens(const text::Tokenizer& tokenizer, int64_t vocabulary, size_t most);

/// Every token a target.
data::TokenDataset one_document(const std::vector<int32_t>& tokens);

/// Logits of a whole document, float32 [T, V] on the CPU.
at::Tensor document_logits(const model::Decoder& model, const data::TokenDataset& documents, int64_t index);

struct Probe {
  std::vector<int32_t> tokens;  ///< at most 64
  at::Tensor logits;            ///< [V]
};

/// `model` computes in float32.
Probe make_probe(const model::Decoder& model, const text::Tokenizer& tokenizer);
/// Throws Error{kIo} or {kPermission}.
void write_probe(const std::filesystem::path& folder, const Probe& probe);
/// Throws Error{kData} for a file that is no probe.
Probe read_probe(const std::filesystem::path& folder);

struct ProbeResult {
  double difference = 0;  ///< largest of a logit
  double scale = 0;       ///< the largest stored logit, without its sign
  [[nodiscard]] bool agrees() const { return difference <= kProbeTolerance * scale; }
};
/// Throws Error{kData} if the probe is of a model with another vocabulary.
ProbeResult compare_with_probe(const model::Decoder& model, const Probe& probe);

}  // namespace fettle::train
