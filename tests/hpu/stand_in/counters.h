// SPDX-License-Identifier: Apache-2.0
/// What has been counted, and how a test reads it: functions found by dlsym, and a report written to a file.
#pragma once

#include <cstdint>
#include <string>

namespace fettle::gaudi_stand_in {

void count(const std::string& name, int64_t by = 1);
[[nodiscard]] int64_t counted(const std::string& name);

/// An operator that a card's bridge would have computed on the CPU.
void count_fallback(const std::string& name);

/// A copy to the host, in the graph that the marks so far have begun.
void count_copy_to_host();

/// Writes the report, if one is wanted. At every mark, for processes that leave without destructors, and at exit.
void write_report();

}  // namespace fettle::gaudi_stand_in

// The names: marks, graphs, compilations, forced, device_to_host, device_to_host_since_mark, host_to_device,
// blocking_host_to_device, cpu_fallbacks, acquired, streams_changed, event_synchronizations, fused:<operator>;
// live_bytes and live_blocks are what tensors hold now. A name that was never counted is 0.
extern "C" {
const char* fettle_stand_in();
int64_t fettle_stand_in_count(const char* name);
/// "aten::unique2 3,aten::histc 1". The text is good until the next call from the same thread.
const char* fettle_stand_in_fallbacks();
/// Every counter to 0. Graphs that were compiled stay compiled.
void fettle_stand_in_reset();
/// Where the latest two compiled graphs differ first. The text is good until the next call from the same thread.
const char* fettle_stand_in_graphs();
}
