// SPDX-License-Identifier: Apache-2.0
#include "train/metrics_server.h"

#include <civetweb.h>
#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/watchdog.h"

namespace fettle::train {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Registry;

Gauge& gauge(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

Counter& counter(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

int respond(mg_connection* connection, const char* type, const std::string& body) {
  mg_printf(connection,
            "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
            "Connection: close\r\n\r\n",
            type, body.size());
  mg_write(connection, body.data(), body.size());
  return 200;
}

int serve_metrics(mg_connection* connection, void* registry) {
  const std::string body = prometheus::TextSerializer().Serialize(static_cast<Registry*>(registry)->Collect());
  return respond(connection, "text/plain; version=0.0.4; charset=utf-8", body);
}

int serve_health(mg_connection* connection, void* /*unused*/) {
  const nlohmann::ordered_json health = {{"status", "ok"}, {"doing", current_section()}};
  return respond(connection, "application/json",
                 health.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
}

int ignore_message(const mg_connection* /*unused*/, const char* /*unused*/) {
  return 1;  // a port scan is nothing for the log
}

mg_context* listen_at(const std::string& ports) {
  const std::array<const char*, 7> options = {"listening_ports",    ports.c_str(), "num_threads", "2",
                                              "request_timeout_ms", "10000",       nullptr};
  mg_callbacks callbacks{};
  callbacks.log_message = ignore_message;
  return mg_start(&callbacks, nullptr, const_cast<const char**>(options.data()));
}

}  // namespace

struct MetricsServer::State {
  Registry registry;
  Gauge& step = gauge(registry, "fettle_step", "Optimizer steps done.");
  Gauge& total_steps = gauge(registry, "fettle_total_steps", "Optimizer steps of the whole run.");
  Gauge& epoch = gauge(registry, "fettle_epoch", "Passes over the training records done.");
  Gauge& loss = gauge(registry, "fettle_loss", "Mean training loss of the steps since the last logged one.");
  Gauge& learning_rate = gauge(registry, "fettle_learning_rate", "Learning rate of the last step.");
  Gauge& grad_norm = gauge(registry, "fettle_grad_norm", "Gradient norm of the last step, before clipping.");
  Counter& tokens = counter(registry, "fettle_tokens_total", "Tokens trained on, prompts included.");
  Counter& target_tokens = counter(registry, "fettle_target_tokens_total", "Tokens whose loss was trained on.");
  Gauge& tokens_per_second = gauge(registry, "fettle_tokens_per_second", "Tokens per second of all processes.");
  Gauge& mfu = gauge(registry, "fettle_mfu_ratio", "Model FLOPs per second, of the measured peak; 0: not measured.");
  Gauge& memory = gauge(registry, "fettle_memory_bytes", "Memory of the device; on a CPU resident memory.");
  Gauge& seconds_left = gauge(registry, "fettle_eta_seconds", "Seconds until the last step, at the present rate.");
  Gauge& eval_loss = gauge(registry, "fettle_eval_loss", "Loss on the evaluation records, when last measured.");
  Gauge& saved_step = gauge(registry, "fettle_last_save_step", "Step of the last checkpoint on the disk.");
  Gauge& saved_at =
      gauge(registry, "fettle_last_save_timestamp_seconds", "When that checkpoint was on the disk; 0: not yet.");
  mg_context* server = nullptr;
};

std::unique_ptr<MetricsServer> MetricsServer::for_run(const config::Config& config, const dist::Launch& launch) {
  const int64_t port = config.training.metrics_port;
  if (port == 0 || launch.local_rank > 0) return nullptr;
  const std::map<std::string, std::string> labels = {{"model", config.model.model_name_or_path},
                                                     {"output_dir", config.output.output_dir},
                                                     {"rank", std::to_string(launch.rank)}};
  return std::make_unique<MetricsServer>(port, labels);
}

MetricsServer::MetricsServer(int64_t port, const std::map<std::string, std::string>& labels)
    : state_(std::make_unique<State>()) {
  prometheus::BuildGauge()
      .Name("fettle_run_info")
      .Help("What runs here; always 1.")
      .Register(state_->registry)
      .Add(labels)
      .Set(1);
  mg_init_library(0);
  errno = 0;
  state_->server = listen_at(fmt::format("+{}", port));                                // IPv6 and IPv4
  if (state_->server == nullptr) state_->server = listen_at(fmt::format("{}", port));  // a machine without IPv6
  if (state_->server == nullptr) {
    const bool forbidden = errno == EACCES || errno == EPERM;
    mg_exit_library();
    throw Error(forbidden ? ExitCode::kPermission : ExitCode::kUnavailable,
                fmt::format("metrics_port {} cannot be used: {}", port,
                            forbidden ? "it may not be opened by this user" : "another process listens there"),
                "choose another metrics_port, above 1023");
  }
  mg_set_request_handler(state_->server, "/metrics$", serve_metrics, &state_->registry);
  mg_set_request_handler(state_->server, "/healthz$", serve_health, nullptr);
}

MetricsServer::~MetricsServer() {
  mg_stop(state_->server);
  mg_exit_library();
}

void MetricsServer::show(const StepMetrics& metrics, int64_t total_steps, double seconds_left) {
  State& state = *state_;
  state.step.Set(static_cast<double>(metrics.step));
  state.total_steps.Set(static_cast<double>(total_steps));
  state.epoch.Set(metrics.epoch);
  state.loss.Set(metrics.loss);
  state.learning_rate.Set(metrics.learning_rate);
  state.grad_norm.Set(metrics.grad_norm);
  state.tokens.Increment(static_cast<double>(metrics.tokens) - state.tokens.Value());
  state.target_tokens.Increment(static_cast<double>(metrics.target_tokens) - state.target_tokens.Value());
  state.tokens_per_second.Set(metrics.tokens_per_second);
  state.mfu.Set(metrics.mfu);
  state.memory.Set(static_cast<double>(metrics.memory_bytes));
  state.seconds_left.Set(seconds_left);
}

void MetricsServer::evaluated(const Evaluation& evaluation) {
  state_->eval_loss.Set(evaluation.loss);
}

void MetricsServer::saved(int64_t step) {
  state_->saved_step.Set(static_cast<double>(step));
  state_->saved_at.SetToCurrentTime();
}

}  // namespace fettle::train
