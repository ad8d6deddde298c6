// SPDX-License-Identifier: Apache-2.0
#include "hpu/stand_in/switches.h"

#include <cstdlib>
#include <map>
#include <sstream>
#include <stdexcept>

namespace fettle::gaudi_stand_in {
namespace {

std::string in_aten(const std::string& name) {
  return name.starts_with("aten::") ? name : "aten::" + name;
}

void apply(Switches& switches, const std::string& name, const std::string& value) {
  const std::map<std::string, bool*> flags{
      {"no_card", &switches.no_card},           {"busy_card", &switches.busy_card},
      {"no_hugepages", &switches.no_hugepages}, {"no_fused_ops", &switches.no_fused_ops},
      {"int64", &switches.keeps_int64},         {"needs_synapse", &switches.needs_synapse},
  };
  if (const auto flag = flags.find(name); flag != flags.end() && value.empty()) {
    *flag->second = true;
  } else if (name == "schema" && (value == "1.19" || value == "1.24")) {
    switches.old_schemas = value == "1.19";
  } else if (name == "adamw" && (value == "eager" || value == "lazy")) {
    switches.eager_adamw = value == "eager";
  } else if (name == "refuse" && !value.empty()) {
    switches.refused.insert(in_aten(value));
  } else if (name == "fail_at_graph" && !value.empty()) {
    switches.fail_at_graph = std::stoll(value);
  } else {
    throw std::invalid_argument("stand-in: FETTLE_STAND_IN has no switch '" + name + "' with the value '" + value +
                                "'");
  }
}

Switches read() {
  Switches switches;
  std::istringstream words(environment("FETTLE_STAND_IN"));
  for (std::string word; std::getline(words, word, ',');) {
    const size_t equals = word.find('=');
    apply(switches, word.substr(0, equals), equals == std::string::npos ? "" : word.substr(equals + 1));
  }
  if (const std::string allowed = environment("PT_HPU_PLACE_ON_CPU"); !allowed.empty()) {
    switches.fallbacks_allowed.emplace();
    std::istringstream names(allowed == "none" ? "" : allowed);
    for (std::string name; std::getline(names, name, ',');) switches.fallbacks_allowed->insert(in_aten(name));
  }
  switches.has_kernels = !environment("GC_KERNEL_PATH").empty();
  if (const std::string cards = environment("FETTLE_STAND_IN_CARDS"); !cards.empty()) switches.cards = std::stoi(cards);
  switches.folder = environment("FETTLE_STAND_IN_FOLDER");
  switches.report = environment("FETTLE_STAND_IN_REPORT");
  if (const std::string rank = environment("RANK"); !rank.empty() && !switches.report.empty()) {
    switches.report += ".rank" + rank;
  }
  return switches;
}

}  // namespace

const Switches& switches() {
  static const auto* switches = new Switches(read());  // never destroyed: it is asked until the process is gone
  return *switches;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace fettle::gaudi_stand_in
