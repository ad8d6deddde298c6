// SPDX-License-Identifier: Apache-2.0
/// Where the time of a training step goes, by torch's own profiler (Kineto), on a CPU and on a GPU.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace fettle::train {

inline constexpr const char* kProfileFile = "profile.json";
inline constexpr const char* kTraceFile = "trace.json";

/// Seconds of one part of a step: of an operator's forward, its backward, or neither (the optimizer).
struct PartTime {
  std::string part;  ///< "linear layers", "attention" …
  double forward = 0;
  double backward = 0;
  [[nodiscard]] double total() const { return forward + backward; }
};

/// The parts of some optimizer steps.
struct StepProfile {
  int64_t steps = 0;
  int64_t tokens = 0;
  double seconds = 0;           ///< of the clock, all steps together, without what was between them
  double idle = 0;              ///< of these, no operator ran: on a GPU it waited for the host
  double matrix_products = 0;   ///< of the parts' time, in products of torch (those within attention are not)
  std::vector<PartTime> parts;  ///< the longest first
};

/// {"steps", "tokens", "seconds", "idle", "matrix_products", "parts": [{"part", "forward", "backward", "share"}]}
nlohmann::ordered_json to_json(const StepProfile& profile);
/// A table for people, one line a part.
std::vector<std::string> table_of(const StepProfile& profile);

/// One thing that ran, on a thread of the host or on a GPU.
struct TimedEvent {
  std::string name;
  int64_t begin = 0;  ///< nanoseconds
  int64_t end = 0;
  uint64_t thread = 0;
  uint64_t id = 0;         ///< of an operator on the host; 0: nothing on a GPU names it
  uint64_t caused_by = 0;  ///< of what ran on a GPU: the operator that launched it
  bool on_gpu = false;
};

/// Sums events into parts. An event counts for the part that its own name or that of the nearest event around it says,
/// with the time that no event within it takes. Where anything ran on a GPU, only that is time.
StepProfile take_apart(std::span<const TimedEvent> events, double seconds);

/// Profiles `steps` optimizer steps of this process, after `kWarmUpSteps` of it. The profiler belongs to the process:
/// one at a time. What it cannot do is a warning and not the end of a run.
class Profiler {
 public:
  static constexpr int64_t kWarmUpSteps = 3;

  /// Writes profile.json and trace.json (Chrome's trace format) into `folder`.
  Profiler(std::filesystem::path folder, int64_t steps, c10::Device device);
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  /// Warns if so many steps are too few for a profile.
  void expect(int64_t steps) const;
  void step_begins();
  void step_ended(int64_t tokens);

 private:
  /// Nanoseconds of the clock that torch's events have.
  struct Interval {
    int64_t begin = 0;
    int64_t end = 0;
  };

  void start();
  void finish();
  void write();
  [[nodiscard]] bool is_in_a_step(const TimedEvent& event) const;

  std::filesystem::path folder_;
  int64_t steps_;
  c10::Device device_;
  int64_t seen_ = 0;
  int64_t tokens_ = 0;
  bool is_running_ = false;
  std::vector<Interval> intervals_;  // of the steps
};

}  // namespace fettle::train
