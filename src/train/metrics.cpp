// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include "base/file.h"

namespace fettle::train {

nlohmann::ordered_json step_line(const StepMetrics& metrics) {
  nlohmann::ordered_json line = {{"step", metrics.step},
                                 {"epoch", metrics.epoch},
                                 {"loss", metrics.loss},
                                 {"grad_norm", metrics.grad_norm},
                                 {"learning_rate", metrics.learning_rate},
                                 {"tokens", metrics.tokens},
                                 {"target_tokens", metrics.target_tokens},
                                 {"tokens_per_second", metrics.tokens_per_second},
                                 {"model_flops_per_second", metrics.model_flops_per_second}};
  if (metrics.mfu > 0) line["mfu"] = metrics.mfu;
  if (metrics.memory_bytes > 0) line["memory_bytes"] = metrics.memory_bytes;
  if (metrics.compiled_graphs >= 0) line["compiled_graphs"] = metrics.compiled_graphs;
  return line;
}

nlohmann::ordered_json evaluation_line(const Evaluation& evaluation, int64_t step, double epoch) {
  return {{"step", step},
          {"epoch", epoch},
          {"eval_loss", evaluation.loss},
          {"eval_perplexity", evaluation.perplexity()},
          {"eval_target_tokens", evaluation.target_tokens},
          {"eval_records", evaluation.records}};
}

nlohmann::ordered_json evaluation_results(const Evaluation& evaluation) {
  return {{"eval_loss", evaluation.loss},
          {"perplexity", evaluation.perplexity()},
          {"target_tokens", evaluation.target_tokens},
          {"records", evaluation.records}};
}

std::string metrics_up_to(std::string_view content, int64_t last_step, bool evaluated) {
  std::string kept;
  for (size_t begin = 0, end = 0; (end = content.find('\n', begin)) != std::string_view::npos; begin = end + 1) {
    const std::string_view line = content.substr(begin, end - begin);
    const nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
    if (!parsed.is_object()) continue;
    const auto step = parsed.find("step");
    if (step == parsed.end() || !step->is_number_integer() || step->get<int64_t>() > last_step) continue;
    const bool again = step->get<int64_t>() == last_step && !evaluated && parsed.contains("eval_loss");
    if (!again) kept.append(line).push_back('\n');
  }
  return kept;
}

MetricsLog::MetricsLog(std::filesystem::path path, bool keep) : path_(std::move(path)) {
  replace(keep && std::filesystem::exists(path_) ? read_file(path_) : std::string());
}

void MetricsLog::drop_after(int64_t step, bool evaluated) {
  if (path_.empty()) return;
  replace(metrics_up_to(read_file(path_), step, evaluated));
}

void MetricsLog::replace(const std::string& content) {
  write_file(path_, content);
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (descriptor_ < 0) throw_system_error("write", path_, errno);
}

void MetricsLog::also_write_events(const std::filesystem::path& folder, int64_t first_step) {
  events_ = std::make_unique<EventFile>(folder, first_step);
}

MetricsLog::~MetricsLog() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void MetricsLog::write(const nlohmann::ordered_json& line) {
  if (path_.empty()) return;
  write_all(descriptor_, line.dump() + '\n', path_);
  if (events_) events_->write(line);
}

}  // namespace fettle::train
