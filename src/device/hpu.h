// SPDX-License-Identifier: Apache-2.0
/// Finding, loading and acquiring an Intel Gaudi card, through the PyTorch bridge of the vendor's image. The program
/// links none of it. Only the bridge's lazy mode runs whole graphs without Python, so that is what is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/environment.h"
#include "base/error.h"
#include "device/device.h"

namespace fettle::device {

/// Where the vendor's Python packages are, one beside the other.
struct HpuFolders {
  std::filesystem::path torch;   ///< version.py
  std::filesystem::path bridge;  ///< habana_frameworks/torch: required_version.txt, lib
};

/// Beside the torch in use, or where FETTLE_HPU_BRIDGE says that the bridge is.
HpuFolders hpu_folders();

/// A variable to set for the bridge and the libraries below it.
struct HpuVariable {
  std::string name;
  std::string value;
  bool overrides = false;  ///< also where the user has set it
};

/// What the vendor's Python package would set, and what runs without Python need: lazy mode; the card of the process
/// (HLS_MODULE_ID, from HABANA_VISIBLE_MODULES, of the cards that a device plugin gave); a cache of compiled graphs
/// that a restart finds (PT_HPU_RECIPE_CACHE_CONFIG), in `cache`; a folder for logs that can be written. Throws
/// Error{kConfig} where there are more processes than cards, or HABANA_VISIBLE_MODULES is no list of them.
std::vector<HpuVariable> hpu_variables(const Environment& environment, const Place& place,
                                       const std::filesystem::path& cache);

/// Throws Error{kUsage} unless the bridge is made for the torch in use: same major.minor version, and the vendor's own
/// build of torch, which the lazy mode needs.
void require_bridge_fits(const HpuFolders& folders);

/// What a machine shows of its cards (sysfs of the habanalabs driver, /proc/meminfo).
struct HpuMachine {
  bool has_driver = false;
  int64_t cards = 0;           ///< device nodes that this process may see
  std::string type = {};       ///< GAUDI2, GAUDI3; empty: not known
  int64_t free_hugepages = 0;  ///< of 2 MiB
};
/// `root`: of the file system.
HpuMachine look_at_machine(const std::filesystem::path& root = "/");

/// Why a card could not be acquired, from what the bridge says and the machine shows, and what to do.
Error explain_acquire_failure(const std::string& reason, const HpuMachine& machine);

/// Loads the bridge for as long as the process lives, and acquires a card: the process's own, if there are several.
/// Call once, before any tensor work. Throws Error, in one line each: kUsage where a library is missing or does not
/// fit, kUnavailable where there is no driver or no free card.
void load_hpu(const Place& place);

/// Memory of a card of that type, in bytes; 0: not known (the bridge tells nobody).
int64_t hpu_memory_bytes(const std::string& type);

/// Graphs in the cache of compiled ones that the bridge uses, whoever compiled them; -1 where there is none.
int64_t cached_graphs(const Environment& environment);

}  // namespace fettle::device
