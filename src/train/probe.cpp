// SPDX-License-Identifier: Apache-2.0
#include "train/probe.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "hub/safetensors.h"
#include "hub/tensor_source.h"
#include "model/weights.h"
#include "train/loop.h"
#include "train/tensor_file.h"
#include "train/training_inputs.h"

namespace fettle::train {
namespace fs = std::filesystem;
namespace {

constexpr size_t kProbeTokens = 64;
constexpr const char* kFormat = "fettle probe 1";

/// Prose, figures, a question, code and other languages: rare and frequent tokens.
constexpr std::string_view kSentences =
    "Once upon a time there was a little girl who lived near the sea. One day she found a red boat on the beach, and "
    "she asked her friend: \"Shall we see where it goes?\" In 1969, 2 of the 3 astronauts of Apollo 11 walked on the "
    "Moon, 384,400 km away. What is the capital of France? The capital of France is Paris. Water boils at 100 degrees "
    "Celsius because its vapour pressure then equals that of the air above it. def add(a, b): return a + b  # the sum "
    "of two numbers. Der schnelle braune Fuchs springt über den faulen Hund. La vie est belle quand il fait beau. "
    "The committee published its report on Tuesday; critics called it late, incomplete and far too optimistic about "
    "the costs of housing, transport and energy in the coming decade.";

[[noreturn]] void fail_probe(const fs::path& file, std::string_view reason) {
  throw Error(ExitCode::kData, fmt::format("{}: {}", file.string(), reason),
              "remove it and run fettle verify --write on a folder that is known to be good");
}

}  // namespace

std::vector<int32_t> fixed_tokens(const text::Tokenizer& tokenizer, int64_t vocabulary, size_t most) {
  std::vector<int32_t> ids = tokenizer.encode(kSentences, /*add_special_tokens=*/true).ids;
  std::erase_if(ids, [vocabulary](int32_t id) { return id >= vocabulary; });
  constexpr size_t kFew = 2;
  if (ids.size() < kFew) {
    ids.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(kProbeTokens); ++i) {
      ids.push_back(static_cast<int32_t>((i * 7919 + 1) % vocabulary));
    }
  }
  ids.resize(std::min(ids.size(), most));
  return ids;
}

data::TokenDataset one_document(const std::vector<int32_t>& tokens) {
  return data::TokenDataset::from_examples({{tokens, tokens}});
}

at::Tensor document_logits(const model::Decoder& model, const data::TokenDataset& documents, int64_t index) {
  const c10::NoGradGuard no_gradients;
  const data::Batch batch = fitted_document(documents, index, model.device());
  return model.logits(model.hidden_states(to_tensors(batch)))
      .to(at::kCPU, at::kFloat)
      .narrow(0, 0, documents.length(index))
      .contiguous();
}

Probe make_probe(const model::Decoder& model, const text::Tokenizer& tokenizer) {
  TORCH_CHECK(model.dtype() == at::kFloat, "make_probe: the model computes in another type than float32");
  std::vector<int32_t> tokens = fixed_tokens(tokenizer, model.spec().vocab_size, kProbeTokens);
  const at::Tensor logits = document_logits(model, one_document(tokens), 0);
  return {std::move(tokens), logits[-1].clone()};
}

void write_probe(const fs::path& folder, const Probe& probe) {
  const std::vector<int64_t> tokens(probe.tokens.begin(), probe.tokens.end());
  const TensorViews views({{"tokens", at::tensor(tokens, at::kLong)}, {"logits", probe.logits}});
  hub::write_safetensors(folder / kProbeFile, views.views(), {{"format", kFormat}});
}

Probe read_probe(const fs::path& folder) {
  const fs::path file = folder / kProbeFile;
  const auto mapped = MappedFile::open(file);
  const hub::Safetensors content = hub::parse_safetensors(mapped->bytes(), file.string());
  const auto format = content.metadata.find("format");
  if (format == content.metadata.end() || format->second != kFormat) fail_probe(file, "it is of another version");
  const hub::TensorSource source = hub::TensorSource::open_safetensors(file);
  const hub::TensorView* tokens = source.find("tokens");
  const hub::TensorView* logits = source.find("logits");
  if (tokens == nullptr || tokens->dtype != hub::DType::kI64 || tokens->shape.size() != 1 || tokens->shape[0] < 1 ||
      tokens->shape[0] > static_cast<int64_t>(kProbeTokens) || logits == nullptr || logits->dtype != hub::DType::kF32 ||
      logits->shape.size() != 1) {
    fail_probe(file, "it does not hold tokens [at most 64] and logits [V]");
  }
  Probe probe;
  probe.logits = model::read_tensor(std::make_shared<const hub::TensorSource>(source), *logits, at::kFloat).clone();
  std::vector<int64_t> ids(static_cast<size_t>(tokens->shape[0]));
  std::memcpy(ids.data(), tokens->bytes.data(), tokens->bytes.size());
  for (const int64_t id : ids) {
    if (id < 0 || id >= probe.logits.size(0)) fail_probe(file, fmt::format("token {} is not of its vocabulary", id));
    probe.tokens.push_back(static_cast<int32_t>(id));
  }
  return probe;
}

ProbeResult compare_with_probe(const model::Decoder& model, const Probe& probe) {
  if (probe.logits.size(0) != model.spec().vocab_size) {
    throw Error(ExitCode::kData,
                fmt::format("{} holds logits of {} tokens, and the model's vocabulary has {}", kProbeFile,
                            probe.logits.size(0), model.spec().vocab_size),
                "the files belong to another model");
  }
  const at::Tensor logits = document_logits(model, one_document(probe.tokens), 0)[-1];
  return {(logits - probe.logits).abs().max().item<double>(), probe.logits.abs().max().item<double>()};
}

}  // namespace fettle::train
