// SPDX-License-Identifier: Apache-2.0
/// Whether a merged model answers as its base with the adapters beside it does.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "data/batch.h"
#include "data/dataset.h"
#include "model/decoder.h"
#include "text/tokenizer.h"
#include "train/merged_weights.h"
#include "train/metrics.h"

namespace fettle::train {

/// What the three models are compared on.
struct ComparedRecords {
  data::TokenDataset documents;                  ///< a few hundred tokens whose logits are compared
  std::optional<data::TokenDataset> evaluation;  ///< the records whose perplexity is computed; none: none were given
  data::OrderOptions order;
};

/// The beginning of the records, or fixed sentences where there are none.
data::TokenDataset compared_documents(const std::optional<data::TokenDataset>& records,
                                      const text::Tokenizer& tokenizer, int64_t vocabulary);

/// What one of the models says.
struct Answers {
  std::vector<at::Tensor> logits;  ///< [T, V] a document
  std::optional<Evaluation> evaluation;
};
Answers answers_of(const model::Decoder& model, const ComparedRecords& records);

struct LogitDifference {
  double largest = 0;
  double relative = 0;  ///< root mean square, as a part of that of the logits
};
/// Of two models on the same documents; relative to the second.
LogitDifference difference(const Answers& one, const Answers& other);

/// How much of an adapter's change a merged model has: <merged - base, adapted - base> / |adapted - base|². An error
/// that has nothing to do with the change, such as rounding, adds next to nothing to it, however large it is beside the
/// change; a matrix that was left out or scaled wrongly is missing in it. NaN where the adapter changes nothing.
double share_of_change(const Answers& base, const Answers& adapted, const Answers& merged);

/// The relative difference that rounding the changed weights explains: 1e-5 for float32's order of sums, and 20·u where
/// the coarsest type that a tensor was rounded to has the unit roundoff u (2⁻²⁴, 2⁻¹¹, 2⁻⁸). Measured: 5·u with large
/// random adapters on models of random weights, 1·u on a trained model of 30 layers.
double rounding_bound(const MergedWeights& weights);

/// all_results.json of a merge. Throws Error{kDiverged} if logits are not finite, and {kInternal} if the merged model's
/// differ by more than `bound`, or if share_of_change is further from 1 than a tenth and four standard deviations of
/// independent errors of the tokens.
nlohmann::ordered_json compare_merged(const Answers& base, const Answers& adapted, const Answers& merged, double bound);

}  // namespace fettle::train
