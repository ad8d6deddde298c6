// SPDX-License-Identifier: Apache-2.0
#include "train/profile.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "device/device.h"

namespace fettle::train {
namespace {

using torch::profiler::impl::ActivityType;

constexpr std::string_view kOther = "other";
constexpr std::string_view kAttention = "attention";
constexpr std::string_view kBackward = "autograd::engine::evaluate_function";

/// Which part a name belongs to; empty: that of what is around it. The front doors of ops name their forward, autograd
/// the class of their backward.
std::string_view part_of(std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 20> kParts{{
      {"fettle::lora_linear", "linear layers"},
      {"LoraLinear", "linear layers"},
      {"LinearBackward", "linear layers"},
      {"AddmmBackward", "linear layers"},
      {"MmBackward", "linear layers"},
      {"fettle::attention", kAttention},
      {"FlashAttention", kAttention},
      {"fettle::linear_cross_entropy", "head and loss"},
      {"LinearCrossEntropy", "head and loss"},
      {"fettle::rms_norm", "norms"},
      {"RmsNorm", "norms"},
      {"fettle::rotary", "rotary"},
      {"Rotary", "rotary"},
      {"fettle::swiglu", "activation"},
      {"Swiglu", "activation"},
      {"Rows", "embedding"},
      {"CastOnce", "master weights"},
      {"AccumulateGrad", "gradients"},
      {"fettle::clip_gradients", "clipping"},
      {"fettle::optimizer", "optimizer"},
  }};
  for (const auto& [key, part] : kParts) {
    if (name.find(key) != std::string_view::npos) return part;
  }
  return {};
}

bool is_matrix_product(std::string_view name) {
  static constexpr std::array<std::string_view, 6> kProducts{"aten::mm",  "aten::addmm",  "aten::addmm_",
                                                             "aten::bmm", "aten::linear", "aten::_scaled_mm"};
  return std::ranges::find(kProducts, name) != kProducts.end();
}

/// What an event on the host counts for.
struct Place {
  std::string_view part = kOther;
  bool is_backward = false;
  bool is_product = false;
};

/// The parts by name, in the order in which they were first seen.
class Sums {
 public:
  void add(const Place& place, double seconds) {
    const auto [at, is_new] = index_.try_emplace(place.part, profile_.parts.size());
    if (is_new) profile_.parts.push_back({.part = std::string(place.part)});
    PartTime& part = profile_.parts[at->second];
    (place.is_backward ? part.backward : part.forward) += seconds;
    if (place.is_product && place.part != kAttention) profile_.matrix_products += seconds;
  }
  StepProfile finish(double seconds) {
    profile_.seconds = seconds;
    profile_.idle = seconds;
    for (const PartTime& part : profile_.parts) profile_.idle -= part.total();
    profile_.idle = std::max(0.0, profile_.idle);
    std::ranges::stable_sort(profile_.parts, std::greater(), &PartTime::total);
    return std::move(profile_);
  }

 private:
  StepProfile profile_;
  std::unordered_map<std::string_view, size_t> index_;
};

/// An event around the one that is looked at, and what of its time no event within it took.
struct Open {
  const TimedEvent* event;
  Place place;
  int64_t own;
};

Place place_within(const TimedEvent& event, const std::vector<Open>& around) {
  Place place = around.empty() ? Place() : around.back().place;
  const std::string_view part = part_of(event.name);
  if (!part.empty()) place.part = part;
  if (event.name == "aten::linear" && place.part == kOther) place.part = "linear layers";
  place.is_backward = place.is_backward || event.name.starts_with(kBackward);
  place.is_product = place.is_product || is_matrix_product(event.name);
  return place;
}

}  // namespace

StepProfile take_apart(std::span<const TimedEvent> events, double seconds) {
  std::vector<const TimedEvent*> on_host;
  std::vector<const TimedEvent*> on_gpu;
  for (const TimedEvent& event : events) (event.on_gpu ? on_gpu : on_host).push_back(&event);
  // What begins together: the longer one is around the other.
  std::ranges::stable_sort(on_host, {}, [](const TimedEvent* e) { return std::tuple(e->thread, e->begin, -e->end); });
  Sums sums;
  std::unordered_map<uint64_t, Place> places;
  std::vector<Open> around;
  const auto close = [&] {
    if (on_gpu.empty()) sums.add(around.back().place, 1e-9 * static_cast<double>(around.back().own));
    around.pop_back();
  };
  for (const TimedEvent* event : on_host) {
    while (!around.empty() &&
           (around.back().event->thread != event->thread || around.back().event->end <= event->begin)) {
      close();
    }
    const Place place = place_within(*event, around);
    const int64_t duration = event->end - event->begin;
    if (!around.empty()) around.back().own -= duration;
    if (event->id != 0) places.emplace(event->id, place);
    around.push_back({event, place, duration});
  }
  while (!around.empty()) close();
  for (const TimedEvent* event : on_gpu) {
    const auto cause = places.find(event->caused_by);
    sums.add(cause != places.end() ? cause->second : Place(), 1e-9 * static_cast<double>(event->end - event->begin));
  }
  return sums.finish(seconds);
}

nlohmann::ordered_json to_json(const StepProfile& profile) {
  nlohmann::ordered_json json = {{"steps", profile.steps},
                                 {"tokens", profile.tokens},
                                 {"seconds", profile.seconds},
                                 {"idle", profile.idle},
                                 {"matrix_products", profile.matrix_products},
                                 {"parts", nlohmann::ordered_json::array()}};
  for (const PartTime& part : profile.parts) {
    json["parts"].push_back({{"part", part.part},
                             {"forward", part.forward},
                             {"backward", part.backward},
                             {"share", part.total() / profile.seconds}});
  }
  return json;
}

std::vector<std::string> table_of(const StepProfile& profile) {
  std::vector<std::string> lines;
  const auto percent = [&](double seconds) { return 100 * seconds / profile.seconds; };
  lines.push_back(fmt::format("{:<16}{:>9}{:>10}{:>8}", "part of a step", "forward", "backward", "all"));
  for (const PartTime& part : profile.parts) {
    lines.push_back(fmt::format("{:<16}{:>7.1f} %{:>8.1f} %{:>6.1f} %", part.part, percent(part.forward),
                                percent(part.backward), percent(part.total())));
  }
  lines.push_back(fmt::format("{:<16}{:>27.1f} %", "nothing ran", percent(profile.idle)));
  lines.push_back(fmt::format("matrix products take {:.1f} %, outside attention", percent(profile.matrix_products)));
  return lines;
}

namespace {

/// Of the clock that Kineto's events have.
int64_t now() {
  return std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()).count();
}

torch::profiler::impl::ProfilerConfig kineto() {
  return torch::profiler::impl::ProfilerConfig(torch::profiler::impl::ProfilerState::KINETO);
}

std::set<ActivityType> activities(c10::Device device) {
  return !device.is_cuda() ? std::set{ActivityType::CPU} : std::set{ActivityType::CPU, ActivityType::CUDA};
}

std::vector<TimedEvent> events_of(const torch::autograd::profiler::ProfilerResult& result) {
  constexpr uint8_t kOperator = 0;  // libkineto::ActivityType::CPU_OP; calls of the driver have numbers of their own
  std::vector<TimedEvent> events;
  for (const auto& event : result.events()) {
    events.push_back({.name = event.name(),
                      .begin = static_cast<int64_t>(event.startNs()),
                      .end = static_cast<int64_t>(event.endNs()),
                      .thread = event.startThreadId(),
                      .id = event.activityType() == kOperator ? event.correlationId() : 0,
                      .caused_by = event.linkedCorrelationId(),
                      .on_gpu = event.deviceType() != c10::DeviceType::CPU});
  }
  return events;
}

/// Kineto only logs that it could not write. It writes a file beside it first, and leaves that one where the disk is
/// full: what is left of a trace must not take the room of a checkpoint.
void save_trace(torch::autograd::profiler::ProfilerResult& result, const std::filesystem::path& file) {
  std::filesystem::remove(file);
  result.save(file);
  std::filesystem::remove(file.string() + ".tmp");
  if (!std::filesystem::exists(file) || std::filesystem::file_size(file) == 0) {
    throw Error(ExitCode::kIo, fmt::format("cannot write {}", file.string()), "look for room on the disk");
  }
}

}  // namespace

Profiler::Profiler(std::filesystem::path folder, int64_t steps, c10::Device device)
    : folder_(std::move(folder)), steps_(steps), device_(device) {}

Profiler::~Profiler() {
  if (!is_running_) return;  // else the run ended within these steps
  try {
    torch::autograd::profiler::disableProfiler();
  } catch (const std::exception& error) {
    log::debug("the profiler: {}", error.what());
  }
}

void Profiler::expect(int64_t steps) const {
  if (steps >= kWarmUpSteps + steps_) return;
  log::warning("profile_steps={} takes {} steps and {} before them, of which {} are left: there will be no profile",
               steps_, steps_, kWarmUpSteps, steps);
}

void Profiler::step_begins() {
  if (seen_ == kWarmUpSteps) start();
  if (is_running_) intervals_.push_back({.begin = now()});
}

void Profiler::step_ended(int64_t tokens) {
  ++seen_;
  if (!is_running_) return;
  device::synchronize(device_);
  intervals_.back().end = now();
  tokens_ += tokens;
  if (seen_ == kWarmUpSteps + steps_) finish();
}

void Profiler::start() {
  device::synchronize(device_);
  ::setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);  // it says on standard error that a machine has no GPU
  torch::autograd::profiler::prepareProfiler(kineto(), activities(device_));
  torch::autograd::profiler::enableProfiler(kineto(), activities(device_),
                                            {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
  is_running_ = true;
}

void Profiler::finish() {
  is_running_ = false;
  try {
    write();
  } catch (const std::exception& error) {
    log::warning("there is no profile: {}", error.what());
  }
}

bool Profiler::is_in_a_step(const TimedEvent& event) const {
  return std::ranges::any_of(intervals_,
                             [&](const Interval& step) { return step.begin <= event.begin && event.end <= step.end; });
}

void Profiler::write() {
  const auto result = torch::autograd::profiler::disableProfiler();
  std::vector<TimedEvent> events = events_of(*result);
  std::erase_if(events, [this](const TimedEvent& event) { return !is_in_a_step(event); });
  if (device_.is_cuda() && std::ranges::none_of(events, &TimedEvent::on_gpu)) {
    log::warning("the profiler saw nothing on the GPU (does another program profile it?): these are the host's times");
  }
  double seconds = 0;
  for (const Interval& step : intervals_) seconds += 1e-9 * static_cast<double>(step.end - step.begin);
  StepProfile profile = take_apart(events, seconds);
  profile.steps = steps_;
  profile.tokens = tokens_;
  write_file(folder_ / kProfileFile, to_json(profile).dump(2) + '\n');
  save_trace(*result, folder_ / kTraceFile);
  for (const std::string& line : table_of(profile)) log::info("{}", line);
  log::info("profile of {} steps: {}, and for a trace viewer {}", steps_, (folder_ / kProfileFile).string(),
            (folder_ / kTraceFile).string());
}

}  // namespace fettle::train
