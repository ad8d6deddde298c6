// SPDX-License-Identifier: Apache-2.0
#include "config/option_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <regex>
#include <set>

#include "config/aliases.h"

namespace fettle::config {
namespace {

/// The names of all members of the section structs in config.h, in order.
std::vector<std::string> members_in_header() {
  std::ifstream header(FETTLE_SOURCE_DIR "/src/config/config.h");
  const std::regex member(R"(^  [A-Za-z_0-9:<>]+ ([a-z_0-9]+)( = [^;]+)?;.*)");
  std::vector<std::string> names;
  std::smatch match;
  for (std::string line; std::getline(header, line) && line != "struct Config {";) {
    if (std::regex_match(line, match, member)) names.push_back(match[1]);
  }
  return names;
}

std::vector<const Option*> all_options() {
  std::vector<const Option*> all;
  for (const Section& section : sections()) {
    for (const Option& option : section.options) all.push_back(&option);
  }
  return all;
}

TEST(OptionTable, HasEveryMemberOnceUnderItsName) {
  std::vector<std::string> names;
  for (const Option* option : all_options()) names.emplace_back(option->name);
  EXPECT_EQ(names, members_in_header());
}

// With the names in the structs' order, ascending addresses mean that no option is bound to another one's member.
TEST(OptionTable, BindsEveryNameToItsOwnMember) {
  Config config;
  const auto address = [](auto* member) { return reinterpret_cast<uintptr_t>(member); };
  uintptr_t previous = reinterpret_cast<uintptr_t>(&config) - 1;
  for (const Option* option : all_options()) {
    const uintptr_t current = std::visit(address, option->slot(config));
    EXPECT_GT(current, previous) << option->name;
    EXPECT_LT(current, reinterpret_cast<uintptr_t>(&config) + sizeof(config)) << option->name;
    previous = current;
  }
}

TEST(OptionTable, HelpIsOneSentenceAndSomeCommandUsesIt) {
  for (const Option* option : all_options()) {
    EXPECT_TRUE(option->help.ends_with('.')) << option->name;
    EXPECT_EQ(option->help.find('\n'), std::string_view::npos) << option->name;
    EXPECT_NE(option->commands, 0u) << option->name;
    EXPECT_EQ(find_option(option->name), option);
  }
  EXPECT_EQ(find_option("no_such_option"), nullptr);
}

TEST(OptionTable, DefaultsAreAmongTheChoices) {
  Config config;
  for (const Option* option : all_options()) {
    if (option->choices.empty()) continue;
    const std::string& value = *std::get<std::string*>(option->slot(config));
    EXPECT_NE(std::ranges::find(option->choices, value), option->choices.end()) << option->name;
    for (const ValueAlias& alias : option->value_aliases) {
      EXPECT_NE(std::ranges::find(option->choices, alias.value), option->choices.end()) << alias.spelling;
      EXPECT_EQ(std::ranges::find(option->choices, alias.spelling), option->choices.end()) << alias.spelling;
    }
    for (const std::string_view name : option->unavailable) {
      EXPECT_EQ(std::ranges::find(option->choices, name), option->choices.end()) << name;
    }
  }
}

TEST(OptionTable, EveryKnownNameHasOneMeaning) {
  std::set<std::string_view> names;
  for (const Option* option : all_options()) EXPECT_TRUE(names.insert(option->name).second) << option->name;
  for (const NameAlias& alias : name_aliases()) {
    EXPECT_TRUE(names.insert(alias.name).second) << alias.name;
    EXPECT_NE(find_option(alias.option), nullptr) << alias.name;
  }
  for (const IgnoredOption& option : ignored_options()) EXPECT_TRUE(names.insert(option.name).second) << option.name;
  for (const UnavailableOption& option : unavailable_options()) {
    EXPECT_TRUE(names.insert(option.name).second) << option.name;
  }
}

}  // namespace
}  // namespace fettle::config
