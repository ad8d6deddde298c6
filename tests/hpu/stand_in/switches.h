// SPDX-License-Identifier: Apache-2.0
/// What the environment asks of the stand-in. Read once, when the library is loaded; README.md lists the names.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

namespace fettle::gaudi_stand_in {

struct Switches {
  bool no_card = false;
  bool busy_card = false;
  bool no_hugepages = false;
  bool needs_synapse = false;  ///< libSynapse.so is looked for, as a bridge does
  bool no_fused_ops = false;
  bool old_schemas = false;       ///< schema=1.19
  bool eager_adamw = false;       ///< adamw=eager: the argument list of the other library
  bool keeps_int64 = false;       ///< int64
  int64_t fail_at_graph = 0;      ///< counted from 1
  std::set<std::string> refused;  ///< operators, by name without overload

  std::optional<std::set<std::string>> fallbacks_allowed;  ///< PT_HPU_PLACE_ON_CPU: a list, or none of them
  bool has_kernels = false;                                ///< GC_KERNEL_PATH was set before the library was loaded
  std::optional<int> cards;                                ///< FETTLE_STAND_IN_CARDS
  std::string folder;                                      ///< FETTLE_STAND_IN_FOLDER
  std::string report;  ///< FETTLE_STAND_IN_REPORT, and ".rank<RANK>" where RANK is set
};

/// Throws std::invalid_argument for a switch that there is not, so that no test passes because of a typing error.
const Switches& switches();

/// A variable of the environment, "" where it is not set.
std::string environment(const char* name);

}  // namespace fettle::gaudi_stand_in
