// SPDX-License-Identifier: Apache-2.0
#include "train/merge_check.h"

#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "train/evaluate.h"
#include "train/probe.h"

namespace fettle::train {
namespace {

constexpr const char* kReportHint = "please report it; verify_saved_model=false merges without the comparison";
constexpr size_t kComparedTokens = 256;  // of three models, in a large vocabulary half a megabyte each

int64_t tokens_of(const Answers& answers) {
  int64_t tokens = 0;
  for (const at::Tensor& each : answers.logits) tokens += each.size(0);
  return tokens;
}

void add_perplexity(nlohmann::ordered_json& results, const char* name, const std::optional<Evaluation>& evaluation) {
  if (evaluation) results[name] = evaluation->perplexity();
}

}  // namespace

data::TokenDataset compared_documents(const std::optional<data::TokenDataset>& records,
                                      const text::Tokenizer& tokenizer, int64_t vocabulary) {
  if (!records) return one_document(fixed_tokens(tokenizer, vocabulary, kComparedTokens));
  std::vector<data::Example> documents;
  size_t left = kComparedTokens;
  for (int64_t i = 0; i < records->size() && left > 0; ++i) {
    const auto ids = records->input_ids(i).first(std::min(left, static_cast<size_t>(records->length(i))));
    documents.push_back({{ids.begin(), ids.end()}, {ids.begin(), ids.end()}});
    left -= ids.size();
  }
  return data::TokenDataset::from_examples(documents);
}

Answers answers_of(const model::Decoder& model, const ComparedRecords& records) {
  Answers answers;
  for (int64_t i = 0; i < records.documents.size(); ++i) {
    answers.logits.push_back(document_logits(model, records.documents, i));
  }
  if (records.evaluation) answers.evaluation = evaluate(model, *records.evaluation, records.order);
  return answers;
}

LogitDifference difference(const Answers& one, const Answers& other) {
  TORCH_CHECK(one.logits.size() == other.logits.size(), "difference: answers to different documents");
  LogitDifference found;
  double squares = 0;
  double reference = 0;
  for (size_t i = 0; i < one.logits.size(); ++i) {
    const at::Tensor change = one.logits[i] - other.logits[i];
    const auto largest = change.abs().max().item<double>();
    if (!(largest <= found.largest)) found.largest = largest;  // a NaN stays
    squares += change.square().sum(at::kDouble).item<double>();
    reference += other.logits[i].square().sum(at::kDouble).item<double>();
  }
  found.relative = std::sqrt(squares / reference);
  return found;
}

double share_of_change(const Answers& base, const Answers& adapted, const Answers& merged) {
  double product = 0;
  double squares = 0;
  for (size_t i = 0; i < base.logits.size(); ++i) {
    const at::Tensor change = adapted.logits[i] - base.logits[i];
    product += (merged.logits[i] - base.logits[i]).mul_(change).sum(at::kDouble).item<double>();
    squares += change.square().sum(at::kDouble).item<double>();
  }
  return product / squares;
}

double rounding_bound(const MergedWeights& weights) {
  double coarsest = 0;
  for (const auto& [type, unit] : {std::pair(hub::DType::kF32, 0x1p-24), std::pair(hub::DType::kF16, 0x1p-11),
                                   std::pair(hub::DType::kBF16, 0x1p-8)}) {
    if (weights.rounds_to(type)) coarsest = unit;
  }
  return 1e-5 + 20 * coarsest;
}

nlohmann::ordered_json compare_merged(const Answers& base, const Answers& adapted, const Answers& merged,
                                      double bound) {
  const LogitDifference effect = difference(adapted, base);
  const LogitDifference error = difference(merged, adapted);
  log::info("on {} tokens the adapter changes logits by up to {:.3g}; the merged model's differ by up to {:.3g}",
            tokens_of(merged), effect.largest, error.largest);
  if (!std::isfinite(error.relative)) {
    throw Error(ExitCode::kDiverged,
                "logits of the base, of the adapter beside it or of the merged model are not finite",
                "the weights, lora_alpha or the weights of merge_adapters are too large");
  }
  if (!(error.relative <= bound)) {
    throw Error(ExitCode::kInternal,
                fmt::format("the merged model's logits differ by {:.3g} of their size, and rounding explains {:.3g}",
                            error.relative, bound),
                kReportHint);
  }
  const double share = share_of_change(base, adapted, merged);
  const double share_bound =
      0.1 + 4 * error.relative / effect.relative / std::sqrt(static_cast<double>(tokens_of(merged)));
  if (std::abs(share - 1) > share_bound) {  // not if the adapter changes nothing
    throw Error(ExitCode::kInternal,
                fmt::format("the merged model has {:.3g} of the change that the adapter makes, and rounding explains "
                            "{:.3g} less or more than 1",
                            share, share_bound),
                kReportHint);
  }
  if (error.relative > effect.relative / 2) {
    log::warning(
        "rounding to the base's type changes the logits by {:.3g} of their size, the adapter itself by {:.3g}: "
        "use the adapter beside its base, or a base in float32",
        error.relative, effect.relative);
  }
  nlohmann::ordered_json results = {{"max_logit_difference", error.largest},
                                    {"relative_logit_difference", error.relative},
                                    {"relative_logit_bound", bound},
                                    {"max_logit_change_of_adapter", effect.largest},
                                    {"share_of_change", share},
                                    {"compared_tokens", tokens_of(merged)}};
  add_perplexity(results, "eval_perplexity_base", base.evaluation);
  add_perplexity(results, "eval_perplexity_adapter", adapted.evaluation);
  add_perplexity(results, "eval_perplexity", merged.evaluation);
  if (merged.evaluation) results["eval_records"] = merged.evaluation->records;
  return results;
}

}  // namespace fettle::train
