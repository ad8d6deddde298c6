// SPDX-License-Identifier: Apache-2.0
#include "hpu/stand_in/counters.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <system_error>

#include "hpu/stand_in/device.h"
#include "hpu/stand_in/graph.h"
#include "hpu/stand_in/switches.h"

namespace fettle::gaudi_stand_in {
namespace {

using Counts = std::map<std::string, int64_t>;

struct State {
  std::mutex mutex;
  Counts counts;
  Counts fallbacks;
  Counts copies_by_mark;  // the marks before a copy to the host -> copies
};

State& state() {
  static auto* state = new State;  // never destroyed: tensors are freed, and counted, until the process is gone
  return *state;
}

std::string json_of(const Counts& counts) {
  std::string text;
  for (const auto& [name, value] : counts) {
    text += (text.empty() ? "\"" : ", \"") + name + "\": " + std::to_string(value);
  }
  return "{" + text + "}";
}

std::string report() {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  Counts counts = all.counts;
  for (const char* name : {"marks", "graphs", "compilations", "forced", "device_to_host", "host_to_device",
                           "blocking_host_to_device", "cpu_fallbacks"}) {
    counts.try_emplace(name, 0);
  }
  counts["live_bytes"] = static_cast<int64_t>(memory().current());
  counts["live_blocks"] = static_cast<int64_t>(memory().blocks());
  counts["peak_bytes"] = static_cast<int64_t>(memory().peak());
  return "{\"counts\": " + json_of(counts) + ",\n \"fallbacks\": " + json_of(all.fallbacks) +
         ",\n \"device_to_host_after_marks\": " + json_of(all.copies_by_mark) + "}\n";
}

}  // namespace

void count(const std::string& name, int64_t by) {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  all.counts[name] += by;
  if (name == "marks") all.counts["device_to_host_since_mark"] = 0;
}

int64_t counted(const std::string& name) {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  const auto found = all.counts.find(name);
  return found == all.counts.end() ? 0 : found->second;
}

void count_fallback(const std::string& name) {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  ++all.counts["cpu_fallbacks"];
  ++all.fallbacks[name];
}

void count_copy_to_host() {
  State& all = state();
  const std::scoped_lock lock(all.mutex);
  ++all.counts["device_to_host"];
  ++all.counts["device_to_host_since_mark"];
  ++all.copies_by_mark[std::to_string(all.counts["marks"])];
}

void write_report() {
  const std::string& file = switches().report;
  if (file.empty()) return;
  const std::string part = file + ".part";
  std::ofstream(part) << report();
  std::error_code error;
  std::filesystem::rename(part, file, error);
  if (error) std::fprintf(stderr, "stand-in: cannot write the report %s\n", file.c_str());
}

}  // namespace fettle::gaudi_stand_in

using fettle::gaudi_stand_in::Graph;
using fettle::gaudi_stand_in::memory;

extern "C" {

const char* fettle_stand_in() {
  return "stand-in: this is not a Gaudi card, but this machine's processor (tests only)";
}

int64_t fettle_stand_in_count(const char* name) {
  const std::string wanted = name;
  if (wanted == "live_bytes") return static_cast<int64_t>(memory().current());
  if (wanted == "live_blocks") return static_cast<int64_t>(memory().blocks());
  return fettle::gaudi_stand_in::counted(wanted);
}

const char* fettle_stand_in_fallbacks() {
  thread_local std::string text;
  auto& all = fettle::gaudi_stand_in::state();
  const std::scoped_lock lock(all.mutex);
  text.clear();
  for (const auto& [name, value] : all.fallbacks) {
    text += (text.empty() ? "" : ",") + name + " " + std::to_string(value);
  }
  return text.c_str();
}

void fettle_stand_in_reset() {
  auto& all = fettle::gaudi_stand_in::state();
  const std::scoped_lock lock(all.mutex);
  all.counts.clear();
  all.fallbacks.clear();
  all.copies_by_mark.clear();
}

const char* fettle_stand_in_graphs() {
  thread_local std::string text;
  text = Graph::instance().difference();
  return text.c_str();
}
}
