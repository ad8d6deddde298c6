// SPDX-License-Identifier: Apache-2.0
/// What a run is doing, over HTTP.
///
/// GET /metrics: Prometheus' text format: step, loss, learning rate, gradient norm, tokens, MFU, memory, ETA, last
/// save.
///
/// GET /healthz: {"status": "ok", "doing": "step (step 120)"}: the process lives. One that hangs is the watchdog's
/// business (base/watchdog.h), which knows what each part of a run may take.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "config/config.h"
#include "dist/launch.h"
#include "train/metrics.h"

namespace fettle::train {

/// Serves until it is destroyed. The methods may be called from any thread.
class MetricsServer {
 public:
  /// As metrics_port says. Null where none is wanted; of the processes of one machine, the first serves. Throws as the
  /// constructor.
  static std::unique_ptr<MetricsServer> for_run(const config::Config& config, const dist::Launch& launch);

  /// `labels`: of fettle_run_info. Throws Error{kUnavailable} if the port is taken, {kPermission} if it may not be
  /// used.
  MetricsServer(int64_t port, const std::map<std::string, std::string>& labels);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  void show(const StepMetrics& metrics, int64_t total_steps, double seconds_left);
  void evaluated(const Evaluation& evaluation);
  /// A checkpoint of that step is on the disk.
  void saved(int64_t step);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fettle::train
