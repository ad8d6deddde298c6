// SPDX-License-Identifier: Apache-2.0
/// Loss and perplexity of a model on documents. The model must not be in training mode: dropout would be active.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/batch.h"
#include "data/dataset.h"
#include "dist/group.h"
#include "model/decoder.h"
#include "train/metrics.h"

namespace fettle::train {

/// The mean loss over all target tokens and its perplexity. Packed or not, and whatever the batch size,
/// the result is the same to rounding: documents never see each other. `order.shuffle` must be false. Stops
/// after `most_batches` with targets. Throws Error{kData} if no token is a target, {kDiverged} if the loss is not
/// finite.
Evaluation evaluate(const model::Decoder& model, const data::TokenDataset& dataset, const data::OrderOptions& order,
                    int64_t most_batches = std::numeric_limits<int64_t>::max());

/// The same with the micro-batches dealt to the ranks; every rank gets the result. A stop signal to any of them ends it
/// on all with Error{kPreempted}.
Evaluation evaluate_over_ranks(dist::Group& group, const model::Decoder& model, const data::TokenDataset& dataset,
                               const data::OrderOptions& order);

/// The same document by document, and writes one JSON line a record to `file`, over all documents that bfd_split made
/// of it: {"record": its place in its file, "loss": mean over its targets, null without, "target_tokens", "tokens"}.
Evaluation evaluate_records(const model::Decoder& model, const data::TokenDataset& dataset,
                            const std::filesystem::path& file);

/// The same, with the lines appended to `lines`.
Evaluation evaluate_records(const model::Decoder& model, const data::TokenDataset& dataset,
                            std::vector<nlohmann::ordered_json>& lines);

/// One a line; readers see the old file or the whole new one. Throws as write_file.
void write_json_lines(const std::filesystem::path& file, const std::vector<nlohmann::ordered_json>& lines);

/// Writes the float32 logits of every document to a safetensors file, one document at a time: tensor record.<place of
/// the record in its file> [T, V], or record.<place>.<part> where bfd_split made several documents of it. Throws
/// Error{kIo} or {kPermission}; `file` is complete or not there.
void write_logits(const model::Decoder& model, const data::TokenDataset& dataset, const std::filesystem::path& file);

}  // namespace fettle::train
