// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "device/device.h"

namespace fettle::device {
namespace {

/// The first line of a file of the kernel, empty if it cannot be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

int64_t quota_cores(const std::filesystem::path& control_group) {
  std::string limit = first_line(control_group / "cpu.max");  // "<microseconds> <period>" or "max <period>"
  if (limit.empty()) {                                        // version 1
    const std::filesystem::path folder = control_group / "cpu";
    limit = first_line(folder / "cpu.cfs_quota_us") + ' ' + first_line(folder / "cpu.cfs_period_us");
  }
  std::istringstream numbers(limit);
  double quota = 0;
  double period = 0;
  if (!(numbers >> quota >> period) || quota <= 0 || period <= 0) return INT64_MAX;
  return static_cast<int64_t>(std::ceil(quota / period));
}

Processor parse_processor(std::string_view cpuinfo) {
  Processor processor;
  std::istringstream text{std::string(cpuinfo)};
  std::set<std::string> flags;
  for (std::string line; std::getline(text, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || colon + 2 > line.size()) continue;
    if (line.starts_with("model name")) processor.name = line.substr(colon + 2);
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(colon + 2));
    for (std::string word; words >> word;) flags.insert(word);
    break;
  }
  if (flags.contains("avx2")) processor.vector_instructions = "AVX2";
  if (flags.contains("avx512f")) processor.vector_instructions = "AVX-512";
  processor.bf16_instructions = flags.contains("avx512_bf16") || flags.contains("amx_bf16");
  return processor;
}

std::vector<std::vector<int>> physical_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof(mask), &mask) != 0) return {};
  std::map<std::string, size_t> places;  // a core is named by the list of its hardware threads
  std::vector<std::vector<int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string siblings =
        first_line(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    const auto [place, is_new] = places.emplace(siblings.empty() ? std::to_string(cpu) : siblings, cores.size());
    if (is_new) cores.emplace_back();
    cores[place->second].push_back(cpu);
  }
  return cores;
}

int64_t usable_cores() {
  return std::clamp<int64_t>(std::ssize(physical_cores()), 1, quota_cores("/sys/fs/cgroup"));
}

}  // namespace fettle::device
