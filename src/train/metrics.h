// SPDX-License-Identifier: Apache-2.0
/// metrics.jsonl: what a run measured, one JSON object a line, for programs.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "train/event_file.h"

namespace fettle::train {

/// Numbers of one optimizer step or of the steps since the last logged one.
struct StepMetrics {
  int64_t step = 0;      ///< updates done
  double epoch = 0;      ///< passes over the data done, with the fraction
  double loss = 0;       ///< mean of the steps' losses since the last line; a step's loss is the mean over its targets
  double grad_norm = 0;  ///< of the last step, before clipping
  double learning_rate = 0;  ///< that the last step used
  int64_t tokens = 0;        ///< since the start of training, prompts included
  int64_t target_tokens = 0;
  double tokens_per_second = 0;  ///< since the last line, evaluation and checkpoints left out
  double model_flops_per_second = 0;
  double mfu =
      0;  ///< model_flops_per_second ÷ the rate of a large matrix product measured at the start; 0: not measured
  int64_t memory_bytes = 0;      ///< of the device; of a CPU: resident; 0: not known
  int64_t compiled_graphs = -1;  ///< as device::compiled_graphs
};

/// Loss of one evaluation.
struct Evaluation {
  double loss = 0;  ///< mean over all target tokens
  int64_t target_tokens = 0;
  int64_t records = 0;
  /// e^loss; infinite above a loss of 709, which JSON writes as null.
  [[nodiscard]] double perplexity() const { return std::exp(loss); }
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Evaluation, loss, target_tokens, records)

nlohmann::ordered_json step_line(const StepMetrics& metrics);
/// {"step", "epoch", "eval_loss", "eval_perplexity", "eval_target_tokens", "eval_records"}.
nlohmann::ordered_json evaluation_line(const Evaluation& evaluation, int64_t step, double epoch);
/// What `fettle eval` prints: {"eval_loss", "perplexity", "target_tokens", "records"}.
nlohmann::ordered_json evaluation_results(const Evaluation& evaluation);

/// An append-only JSONL file, written line by line, and TensorBoard's events of the same lines where they are wanted.
class MetricsLog {
 public:
  /// Writes nothing: of the ranks of a run, one keeps its log.
  MetricsLog() = default;
  /// `keep`: whether an earlier run's lines stay. Throws Error{kIo} or {kPermission}.
  MetricsLog(std::filesystem::path path, bool keep);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  /// From now on each line also goes into an EventFile.
  void also_write_events(const std::filesystem::path& folder, int64_t first_step);

  /// Drops what a run that is resumed at `step` will write again: the lines of later steps, the evaluation of `step`
  /// itself unless `evaluated` says that it is done, and half a line at the end (a killed run).
  void drop_after(int64_t step, bool evaluated);
  void write(const nlohmann::ordered_json& line);

 private:
  void replace(const std::string& content);

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::unique_ptr<EventFile> events_;
};

/// Lines of a metrics file whose step is at most `last_step`, that step's evaluation only if `evaluated`. A line
/// that is not a JSON object is left out.
std::string metrics_up_to(std::string_view content, int64_t last_step, bool evaluated);

}  // namespace fettle::train
