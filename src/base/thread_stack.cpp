// SPDX-License-Identifier: Apache-2.0
#include "base/thread_stack.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <fmt/format.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <future>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "base/aside.h"
#include "base/error.h"
#include "base/utf8.h"

namespace fettle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kForStack{2};  // until the thread has answered
constexpr seconds kForNames{1};  // of functions

std::atomic<bool> accepts_requests{false};

/// The real-time signal that asks a thread for its stack: one that nobody had taken when it was first needed; 0: none.
int stack_signal() {
  static const int chosen = [] {
    for (int signal = SIGRTMAX; signal >= SIGRTMIN; --signal) {
      struct sigaction action {};
      if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) return signal;
    }
    return 0;
  }();
  return chosen;
}

/// What the asked thread has answered. Static: the answer may come after everyone has stopped waiting for it.
struct Answer {
  std::array<void*, 128> frames{};
  void* caller = nullptr;  ///< the return address of the handler; the interrupted function follows it
  std::atomic<int> count{0};
};
constinit Answer answer;

/// The signal's handler. backtrace has been called before, and neither allocates nor locks from then on. It returns: a
/// thread kept here might hold the heap's lock. System calls start again or, as with any profiler, fail with EINTR.
void answer_with_stack(int /*signal*/) {
  const int error = errno;
  answer.caller = __builtin_return_address(0);
  answer.count = ::backtrace(answer.frames.data(), static_cast<int>(answer.frames.size()));
  errno = error;
}

/// The calls of a thread, innermost first, as addresses inside the calling instructions. Empty: it does not answer.
std::vector<const char*> ask_for_stack(pid_t thread) {
  ::tgkill(::getpid(), thread, stack_signal());
  constexpr milliseconds kStep{10};
  for (milliseconds waited{0}; answer.count == 0 && waited < kForStack; waited += kStep) {
    std::this_thread::sleep_for(kStep);
  }
  const auto end = answer.frames.begin() + answer.count;
  auto frame = std::find(answer.frames.begin(), end, answer.caller);
  frame = frame == end ? answer.frames.begin() : frame + 1;
  std::vector<const char*> calls;
  for (; frame != end; ++frame) {
    // A return address may be the next function's first; the interrupted instruction is itself.
    calls.push_back(static_cast<const char*>(*frame) - (calls.empty() ? 0 : 1));
  }
  return calls;
}

/// Where an address lies in the file that addr2line reads.
struct Place {
  uintptr_t address;
  std::string module = {};  ///< empty: the program itself
  uintptr_t offset = 0;
  bool found = false;
};

int visit_module(dl_phdr_info* info, size_t /*size*/, void* data) {
  Place& place = *static_cast<Place*>(data);
  for (const auto& segment : std::span(info->dlpi_phdr, info->dlpi_phnum)) {
    const uintptr_t segment_begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type != PT_LOAD || place.address < segment_begin ||
        place.address - segment_begin >= segment.p_memsz) {
      continue;
    }
    const std::string_view path = info->dlpi_name;
    place.module = path.substr(path.rfind('/') + 1);
    place.offset = place.address - info->dlpi_addr;
    place.found = true;
    return 1;
  }
  return 0;
}

std::string function_name(const char* address) {
  Dl_info info{};
  if (::dladdr(address, &info) == 0 || info.dli_sname == nullptr) return {};
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> plain(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status),
                                                     std::free);
  constexpr size_t kLongest = 160;
  return shorten(status == 0 ? plain.get() : info.dli_sname, kLongest);
}

/// The exported names of the functions, or none: dladdr waits for the lock that a hang inside dlopen holds.
std::vector<std::string> function_names(const std::vector<const char*>& calls) {
  auto names = do_aside([calls] {
    std::vector<std::string> found;
    found.reserve(calls.size());
    for (const char* address : calls) found.push_back(function_name(address));
    return found;
  });
  try {
    if (names.wait_for(kForNames) == std::future_status::ready) return names.get();
  } catch (const std::exception&) {  // no thread or no memory: then without names
  }
  return std::vector<std::string>(calls.size());
}

std::string program_path() {
  std::array<char, 4096> path;
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : "fettle";
}

std::string stack_text(const std::vector<const char*>& calls) {
  const std::vector<std::string> names = function_names(calls);
  const std::string program = program_path();
  std::string text;
  std::string offsets;
  for (size_t i = 0; i < calls.size(); ++i) {
    Place place{reinterpret_cast<uintptr_t>(calls[i])};
    ::dl_iterate_phdr(visit_module, &place);  // its lock is not held while dlopen runs a library's constructors
    const bool own = place.found && place.module.empty();
    if (own) place.module = program.substr(program.rfind('/') + 1);
    if (!place.found) place = {place.address, "no module", place.address};  // code made at run time
    text +=
        fmt::format("  #{:<2} {}+{:#x}{}{}\n", i, place.module, place.offset, names[i].empty() ? "" : " ", names[i]);
    if (own) offsets += fmt::format(" {:#x}", place.offset);
  }
  if (!offsets.empty()) text += fmt::format("names: addr2line -Cifpe {}{}\n", program, offsets);
  return text;
}

/// What the kernel tells about a thread that does not answer, e.g. in an uninterruptible wait for a disk.
std::string kernel_text(pid_t thread) {
  std::string text =
      fmt::format("  no answer in {} s: it waits inside the kernel, or blocks signals\n", kForStack.count());
  const std::string folder = fmt::format("/proc/self/task/{}/", thread);
  std::string line;
  std::ifstream status(folder + "status");
  while (std::getline(status, line)) {
    if (line.starts_with("State:")) text += fmt::format("  {}\n", one_line(line));
  }
  for (const char* name : {"wchan", "syscall", "stack"}) {
    std::ifstream file(folder + name);
    while (std::getline(file, line)) text += fmt::format("  {}: {}\n", name, one_line(line));
  }
  return text;
}

}  // namespace

void accept_stack_requests() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, stack_signal());
  ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

StackRequests::StackRequests() {
  if (accepts_requests.exchange(true)) throw Error(ExitCode::kInternal, "there is a watchdog already");
  std::array<void*, 1> frame;
  ::backtrace(frame.data(), 1);  // the first call loads libgcc, which the handler must not
  struct sigaction action {};
  action.sa_handler = answer_with_stack;
  action.sa_flags = SA_RESTART;
  if (stack_signal() != 0 && ::sigaction(stack_signal(), &action, &previous_) == 0) return;
  accepts_requests = false;
  throw Error(ExitCode::kUnavailable, "the watchdog finds no free real-time signal", "set all section_timeouts to 0");
}

StackRequests::~StackRequests() {
  ::sigaction(stack_signal(), &previous_, nullptr);
  accepts_requests = false;
}

std::string StackRequests::stack_of(pid_t thread) const {
  const std::vector<const char*> calls = ask_for_stack(thread);
  return calls.empty() ? kernel_text(thread) : stack_text(calls);
}

}  // namespace fettle
