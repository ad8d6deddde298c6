// SPDX-License-Identifier: Apache-2.0
/// Log lines for people, on stderr; stdout carries only what a command was asked to print.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>

namespace fettle::log {

enum class Level { kDebug, kInfo, kWarning, kError };

/// Sets the least level that is printed. Accepts debug, info, warning, error (transformers' log_level names).
void set_level(Level level);

/// What this process is called in its warnings and errors, e.g. "rank 1"; empty (as at the start): nothing.
void set_name(std::string_view name);
const std::string& name();

/// One line, whatever `line` holds: a file name may have a line break.
void write(Level level, std::string_view line);

/// To standard error as it is, for a line that is drawn anew. Never throws for what cannot be written: a terminal may
/// be gone, and fmt::print would end a thread over it, and with that the program.
void put(std::string_view text);

template <typename... Args>
void draw(fmt::format_string<Args...> format, Args&&... args) {
  put(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace fettle::log
