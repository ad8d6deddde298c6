// SPDX-License-Identifier: Apache-2.0
/// What the hub tests share: a folder that removes itself, hand-made files, and the check of an Error.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"
#include "base/file.h"
#include "support/temporary_folder.h"

namespace fettle::hub {

template <typename T>
std::string little_endian(T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// `action` throws Error with this code, and what() or hint() contains `fragment`.
inline void expect_error(const std::function<void()>& action, ExitCode code, const std::string& fragment) {
  try {
    action();
    ADD_FAILURE() << "no Error; expected one with: " << fragment;
  } catch (const Error& error) {
    const std::string message = std::string(error.what()) + "; " + error.hint();
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << message;
    EXPECT_NE(message.find(fragment), std::string::npos) << message << "\n  lacks: " << fragment;
    EXPECT_EQ(message.find('\n'), std::string::npos) << "a message is one line: " << message;
  }
}

}  // namespace fettle::hub
