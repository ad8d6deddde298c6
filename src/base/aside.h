// SPDX-License-Identifier: Apache-2.0
/// Work that may never end, beside a thread that must go on.
#pragma once

#include <future>
#include <system_error>
#include <thread>
#include <utility>

namespace fettle {

/// Does `work` on a thread of its own, which nobody waits for unless by the future; so it must own what it uses. Where
/// no thread can be had, the future has an exception (std::future_error). What `work` throws comes out of the future.
template <typename Work>
auto do_aside(Work work) {
  std::packaged_task<decltype(work())()> task(std::move(work));
  auto result = task.get_future();
  try {
    std::thread(std::move(task)).detach();
  } catch (const std::system_error&) {  // the task is gone, and its promise broken
  }
  return result;
}

}  // namespace fettle
