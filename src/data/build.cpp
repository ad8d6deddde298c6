// SPDX-License-Identifier: Apache-2.0
#include "data/build.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "base/log.h"
#include "data/document_hash.h"
#include "data/format.h"
#include "data/parallel.h"
#include "data/reader.h"

namespace fettle::data {
namespace {

using config::DataConfig;

constexpr size_t kChunkRecords = 256;
constexpr size_t kChunkBytes = 256U << 10;

/// Records of one file that one thread turns into documents.
struct Chunk {
  std::shared_ptr<const RecordReader> reader;
  RecordFormat format = RecordFormat::kText;
  std::vector<RawRecord> records;
};

/// What became of one record: documents, or the reason why there are none.
struct Outcome {
  std::vector<Example> documents;
  bool truncated = false;      ///< its document lost its end
  int64_t dropped_pieces = 0;  ///< pieces of a long record without a target, beside those that are documents
  int64_t ended = 0;
  std::string dropped;  ///< kind; empty for a record that gave documents
  std::string error;    ///< place and reason of a bad record
};

bool learns(const Example& example) {
  return count_targets(example.labels) > 0;
}

Example piece_of(const Example& whole, size_t begin, size_t length) {
  const auto from = static_cast<ptrdiff_t>(begin);
  const auto to = static_cast<ptrdiff_t>(std::min(begin + length, whole.input_ids.size()));
  return {{whole.input_ids.begin() + from, whole.input_ids.begin() + to},
          {whole.labels.begin() + from, whole.labels.begin() + to}};
}

/// Cuts a long document off, or into several with packing_strategy bfd_split; pieces without a target are left out.
Outcome fit(Example example, const DataConfig& config) {
  const auto limit = static_cast<size_t>(config.max_seq_length);
  Outcome outcome;
  if (!learns(example)) {
    outcome.dropped = "no target tokens";
    return outcome;
  }
  if (example.input_ids.size() <= limit) {
    outcome.documents.push_back(std::move(example));
    return outcome;
  }
  const bool split = config.packing && config.packing_strategy == "bfd_split";
  const size_t end = split ? example.input_ids.size() : limit;
  for (size_t begin = 0; begin < end; begin += limit) {
    Example piece = piece_of(example, begin, limit);
    if (learns(piece)) {
      outcome.documents.push_back(std::move(piece));
    } else {
      ++outcome.dropped_pieces;
    }
  }
  if (outcome.documents.empty()) {
    outcome.dropped = "no target tokens within max_seq_length";
    outcome.dropped_pieces = 0;  // the record as a whole is counted
  }
  outcome.truncated = !split && !outcome.documents.empty();
  return outcome;
}

Outcome prepare_record(const Chunk& chunk, const RawRecord& raw, const DataConfig& config,
                       const PromptBuilder& prompts) {
  Outcome outcome;
  try {
    outcome = fit(prompts.build(to_sample(chunk.reader->parse(raw), chunk.format, config)), config);
    outcome.ended = std::count_if(outcome.documents.begin(), outcome.documents.end(),
                                  [&](const Example& document) { return prompts.ends_with_mark(document); });
  } catch (const EmptyRecord& empty) {
    outcome.dropped = empty.kind();
  } catch (const BadRecord& bad) {
    outcome.dropped = bad.kind();
    outcome.error = fmt::format("{}: {}", chunk.reader->place(raw), bad.what());
  }
  return outcome;
}

/// The records of a split, a chunk at a time.
class ChunkSource {
 public:
  ChunkSource(const SplitPlan& plan, const DataConfig& config, const PromptBuilder& prompts)
      : plan_(plan), config_(config), prompts_(prompts) {}

  std::optional<Chunk> next() {
    while (taken_ != plan_.limit) {
      if (!reader_ && !open_next()) return std::nullopt;
      Chunk chunk{reader_, RecordFormat::kText, {}};
      const bool more = fill(chunk);
      if (!chunk.records.empty()) chunk.format = format_for(chunk);
      if (!more) reader_.reset();
      if (!chunk.records.empty()) return chunk;
    }
    return std::nullopt;
  }

 private:
  bool open_next() {
    if (file_ == plan_.files.size()) return false;
    reader_ = open_records(plan_.files[file_++], config_);
    format_.reset();
    return true;
  }

  /// False at the end of the file.
  bool fill(Chunk& chunk) {
    size_t bytes = 0;
    while (chunk.records.size() < kChunkRecords && bytes < kChunkBytes && taken_ != plan_.limit) {
      RawRecord raw;
      if (!reader_->next(raw)) return false;
      const auto index = static_cast<size_t>(seen_++);
      if (!plan_.members.empty() && !plan_.members.at(index)) continue;
      ++taken_;
      bytes += raw.bytes.size();
      chunk.records.push_back(std::move(raw));
    }
    return true;
  }

  /// The format of the file, by its first record that can be read at all; with on_bad_record skip, by the first that a
  /// format fits. Throws if the chunk has records that can be read, but none such.
  RecordFormat format_for(const Chunk& chunk) {
    std::optional<Error> misfit;
    for (const RawRecord& raw : chunk.records) {
      if (format_) break;
      try {
        detect(reader_->parse(raw), reader_->place(raw));
      } catch (const BadRecord&) {
        continue;  // reported when its turn comes
      } catch (const Error& error) {
        if (error.code() != ExitCode::kData || config_.on_bad_record != "skip") throw;
        if (!misfit) misfit = error;
      }
    }
    if (!format_ && misfit) {
      throw Error(ExitCode::kData,
                  fmt::format("{} (the first of {} records, none of which fits)", misfit->what(), chunk.records.size()),
                  misfit->hint());
    }
    return format_.value_or(RecordFormat::kText);
  }

  void detect(const Record& record, const std::string& place) {
    format_ = detect_format(record, config_, place);
    log::info("{}: {} records, as {}{}", plan_.files[file_ - 1].filename().string(), plan_.name, format_name(*format_),
              uses_template(record) ? ", template " + prompts_.template_name() : "");
  }

  /// Text and tokens are taken as they are, and so is a prompt with its completion unless a template is asked for.
  [[nodiscard]] bool uses_template(const Record& record) const {
    if (format_ == RecordFormat::kText || format_ == RecordFormat::kTokenized) return false;
    return format_ != RecordFormat::kPromptCompletion || config_.prompt_template != "auto" ||
           record.at(config_.prompt_column).is_array();
  }

  const SplitPlan& plan_;
  const DataConfig& config_;
  const PromptBuilder& prompts_;
  std::shared_ptr<RecordReader> reader_;
  std::optional<RecordFormat> format_;
  size_t file_ = 0;
  int64_t seen_ = 0;
  int64_t taken_ = 0;
};

/// Adds outcomes up, in the records' order.
class Collector {
 public:
  explicit Collector(const DataConfig& config) : fail_(config.on_bad_record != "skip") {}

  void add(const Outcome& outcome) {
    Preparation& counts = builder_.preparation();
    if (!outcome.error.empty() && fail_) {
      throw Error(ExitCode::kData, outcome.error, "correct the record, or set on_bad_record to skip");
    }
    if (!outcome.error.empty() && skipped_++ < kShownErrors) log::warning("skipped {}", outcome.error);
    for (const Example& document : outcome.documents) {
      builder_.add(document, counts.records);
      if (!hashes_.insert(document_hash(document.input_ids, document.labels)).second) ++counts.duplicates;
    }
    ++counts.records;
    counts.truncated += outcome.truncated ? 1 : 0;
    counts.dropped_pieces += outcome.dropped_pieces;
    counts.ended += outcome.ended;
    if (outcome.documents.empty()) {
      ++counts.dropped;
      ++counts.dropped_why[outcome.dropped];
    }
  }

  StorageBuilder& builder() { return builder_; }

 private:
  static constexpr int64_t kShownErrors = 5;

  bool fail_;
  int64_t skipped_ = 0;
  StorageBuilder builder_;
  std::unordered_set<uint64_t> hashes_;
};

std::string file_list(const SplitPlan& plan) {
  std::string list;
  for (const auto& file : plan.files) list += (list.empty() ? "" : ", ") + file.string();
  return list;
}

void require_documents(const SplitPlan& plan, const Preparation& counts) {
  if (counts.records == 0) {
    throw Error(ExitCode::kData, fmt::format("{} holds no records", file_list(plan)), "is it the right file?");
  }
  if (counts.documents > 0) return;
  std::string reasons;
  for (const auto& [reason, count] : counts.dropped_why) {
    reasons += fmt::format("{}{} × {}", reasons.empty() ? "" : ", ", reason, count);
  }
  throw Error(ExitCode::kData,
              fmt::format("{}: none of {} {} records gives anything to learn ({})", file_list(plan), counts.records,
                          plan.name, reasons),
              "check the columns, prompt_template and max_seq_length; fettle preprocess shows what is masked");
}

int64_t worker_count(const DataConfig& config) {
  if (config.preprocessing_num_workers > 0) return config.preprocessing_num_workers;
  return std::max<int64_t>(1, std::thread::hardware_concurrency());
}

}  // namespace

int64_t count_records(const std::vector<std::filesystem::path>& files, const DataConfig& config) {
  int64_t count = 0;
  for (const auto& file : files) count += open_records(file, config)->count();
  return count;
}

config::RecordRange slice_range(const config::SplitExpression& slice, int64_t records) {
  const config::RecordRange range = config::records_of(slice, records);
  if (range.begin == range.end) {
    throw Error(ExitCode::kConfig, fmt::format("{} has no records: the split has {}", slice.text, records),
                "give a part that has some");
  }
  if (!slice.is_percent && slice.to.value_or(0) > records) {
    log::warning("{}: the split has only {} records", slice.text, records);
  }
  return range;
}

std::shared_ptr<TokenDataset::Storage> build_split(const SplitPlan& plan, const DataConfig& config,
                                                   const PromptBuilder& prompts, std::string fingerprint) {
  ChunkSource source(plan, config, prompts);
  Collector collector(config);
  OrderedPipeline<Chunk, std::vector<Outcome>> pipeline;
  pipeline.produce = [&] { return source.next(); };
  pipeline.work = [&](const Chunk& chunk) {
    std::vector<Outcome> outcomes;
    outcomes.reserve(chunk.records.size());
    for (const RawRecord& raw : chunk.records) outcomes.push_back(prepare_record(chunk, raw, config, prompts));
    return outcomes;
  };
  pipeline.consume = [&](const std::vector<Outcome>& outcomes) {
    for (const Outcome& outcome : outcomes) collector.add(outcome);
  };
  pipeline.run(worker_count(config));
  require_documents(plan, collector.builder().preparation());
  return collector.builder().finish(std::move(fingerprint));
}

}  // namespace fettle::data
