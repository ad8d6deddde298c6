// SPDX-License-Identifier: Apache-2.0
#include "base/watchdog.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <future>
#include <mutex>
#include <optional>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include "base/aside.h"
#include "base/error.h"
#include "base/thread_stack.h"
#include "base/utf8.h"

namespace fettle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::array kSections = {Section::kSetup,      Section::kData, Section::kStep,
                                  Section::kEvaluation, Section::kSave, Section::kCollective};
constexpr milliseconds kTick{250};
constexpr seconds kForOthers{5};     // until before_exit returns
constexpr seconds kForLastWords{8};  // all that is said

/// Milliseconds of the watchdog's ticks.
std::atomic<int64_t> watch_clock{0};

/// What one thread is doing: written by it, read by others under the list's mutex. A sequence lock (odd while it is
/// being written), so that a mark never waits and a thread that hangs inside one cannot hold up the watchdog.
class Slot {
 public:
  Slot();
  ~Slot();
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

  void set(const CurrentSection& section);
  /// Nothing in the unlikely case that the thread stands still inside `set`.
  [[nodiscard]] std::optional<CurrentSection> read() const;
  /// The thread's number changes in a forked process, so each outermost mark notes it.
  void note_thread() { thread_.store(::gettid(), std::memory_order_relaxed); }
  [[nodiscard]] pid_t thread() const { return thread_.load(std::memory_order_relaxed); }

  CurrentSection current;  ///< for the owning thread alone
  Slot* next = nullptr;    ///< of the list
  Slot* previous = nullptr;

 private:
  using Words = std::array<uint64_t, sizeof(CurrentSection) / sizeof(uint64_t)>;
  std::atomic<pid_t> thread_{0};
  std::atomic<uint32_t> sequence_{0};
  std::array<std::atomic<uint64_t>, std::tuple_size_v<Words>> words_{};
};

// A list through the slots: a vector would allocate under the mutex, and the watchdog wait for a hang in malloc.
constinit std::mutex slots_mutex;
constinit Slot* first_slot = nullptr;

Slot::Slot() {
  set({});
  accept_stack_requests();
  const std::lock_guard lock(slots_mutex);
  next = first_slot;
  if (next != nullptr) next->previous = this;
  first_slot = this;
}

Slot::~Slot() {
  const std::lock_guard lock(slots_mutex);
  (previous == nullptr ? first_slot : previous->next) = next;
  if (next != nullptr) next->previous = previous;
}

void Slot::set(const CurrentSection& section) {
  current = section;
  const auto words = std::bit_cast<Words>(section);
  const uint32_t sequence = sequence_.load(std::memory_order_relaxed);
  sequence_.store(sequence + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  for (size_t i = 0; i < words.size(); ++i) words_[i].store(words[i], std::memory_order_relaxed);
  sequence_.store(sequence + 2, std::memory_order_release);
}

std::optional<CurrentSection> Slot::read() const {
  constexpr int kTries = 1000;
  for (int i = 0; i < kTries; ++i) {
    Words words;
    const uint32_t before = sequence_.load(std::memory_order_acquire);
    for (size_t j = 0; j < words.size(); ++j) words[j] = words_[j].load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    const uint32_t after = sequence_.load(std::memory_order_relaxed);
    if (before == after && before % 2 == 0) return std::bit_cast<CurrentSection>(words);
  }
  return std::nullopt;
}

Slot& own_slot() {
  thread_local Slot slot;
  return slot;
}

std::string describe(const CurrentSection& current) {
  const char* section = to_string(static_cast<Section>(current.section));
  if (current.where[0] == '\0') return section;
  return fmt::format("{} ({})", section, one_line(current.where.data()));
}

/// A thread that has been in a section for longer than its limit.
struct Overrun {
  CurrentSection current;
  pid_t thread;
  seconds limit;
};

/// Allocates nothing: the thread that hangs may hold the heap's lock.
std::optional<Overrun> find_overrun(const SectionLimits& limits) {
  const std::lock_guard lock(slots_mutex);
  for (const Slot* slot = first_slot; slot != nullptr; slot = slot->next) {
    const std::optional<CurrentSection> current = slot->read();
    if (!current || current->section < 0) continue;
    const auto limit = limits.find(static_cast<Section>(current->section));
    if (limit == limits.end() || limit->second <= seconds(0)) continue;
    if (milliseconds(watch_clock - current->began) > limit->second) {
      return Overrun{*current, slot->thread(), limit->second};
    }
  }
  return std::nullopt;
}

void write_text(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {
      pollfd stream{STDERR_FILENO, POLLOUT, 0};
      ::poll(&stream, 1, -1);
    } else if (errno != EINTR) {
      return;  // closed or full: nobody listens
    }
  }
}

const char* likely_cause(Section section) {
  switch (section) {
    case Section::kSetup:
      return "a device, a mount or another rank may not answer";
    case Section::kData:
    case Section::kSave:
      return "a disk or mount may not answer";
    case Section::kCollective:
      return "another rank may have stopped: see its log";
    case Section::kStep:
    case Section::kEvaluation:
      break;
  }
  return "a device may hang, or a thread wait for another";
}

std::string hint(const Overrun& overrun) {
  const auto section = static_cast<Section>(overrun.current.section);
  return fmt::format(
      "{}; run the same command again: checkpoints are whole. If it was only slow, set section_timeouts to {}={} or "
      "more",
      likely_cause(section), to_string(section), 2 * overrun.limit.count());
}

/// All signals blocked in the calling thread, and in those it starts: they are for the main thread.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &previous_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t previous_;
};

}  // namespace

const char* to_string(Section section) {
  constexpr std::array kNames = {"setup", "data", "step", "eval", "save", "collective"};
  static_assert(kNames.size() == kSections.size());
  return kNames[static_cast<size_t>(section)];
}

SectionMark::SectionMark(Section section, std::string_view where) {
  Slot& slot = own_slot();
  outer_ = slot.current;
  const int64_t now = watch_clock.load(std::memory_order_relaxed);
  outer_elapsed_ = now - outer_.began;
  if (outer_.section < 0) slot.note_thread();
  CurrentSection current{static_cast<int64_t>(section), now};
  const size_t room = current.where.size() - 1;
  constexpr size_t kEllipsis = 3;
  if (where.size() <= room) {
    where.copy(current.where.data(), room);
  } else {
    shorten(where, room - kEllipsis).copy(current.where.data(), room);
  }
  slot.set(current);
}

SectionMark::~SectionMark() {
  outer_.began = watch_clock.load(std::memory_order_relaxed) - outer_elapsed_;
  own_slot().set(outer_);
}

std::string current_section() {
  const std::lock_guard lock(slots_mutex);
  for (const Slot* slot = first_slot; slot != nullptr; slot = slot->next) {
    if (slot->thread() != ::getpid()) continue;
    const std::optional<CurrentSection> current = slot->read();
    if (current && current->section >= 0) return describe(*current);
  }
  return {};
}

SectionLimits default_section_limits() {
  return {{Section::kSetup, seconds(1800)},      {Section::kData, seconds(0)},    {Section::kStep, seconds(3600)},
          {Section::kEvaluation, seconds(3600)}, {Section::kSave, seconds(1800)}, {Section::kCollective, seconds(0)}};
}

SectionLimits parse_section_limits(const std::vector<std::string>& entries) {
  constexpr const char* kHint =
      "write section=seconds with one of setup, data, step, eval, save, collective; 0: no limit";
  constexpr int64_t kLongest = 1'000'000'000;
  SectionLimits limits = default_section_limits();
  SectionLimits seen;
  for (const std::string& entry : entries) {
    const size_t equals = std::min(entry.find('='), entry.size());
    const std::string_view name = std::string_view(entry).substr(0, equals);
    const std::string_view number = std::string_view(entry).substr(std::min(equals + 1, entry.size()));
    const auto* section = std::ranges::find(kSections, name, to_string);
    if (section == kSections.end()) {
      throw Error(ExitCode::kUsage, fmt::format("section_timeouts: {} names no section", quote(entry)), kHint);
    }
    int64_t value = -1;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size() || value < 0 || value > kLongest) {
      throw Error(
          ExitCode::kUsage,
          fmt::format("section_timeouts: {} has no whole number of seconds from 0 to {}", quote(entry), kLongest),
          kHint);
    }
    if (!seen.emplace(*section, value).second) {
      throw Error(ExitCode::kUsage, fmt::format("section_timeouts: {} is the second limit of {}", quote(entry), name),
                  kHint);
    }
    limits[*section] = seconds(value);
  }
  return limits;
}

/// Two threads, because any word may block: on a pipe that nobody reads, a log on the disk that has died, a heap lock.
/// The watcher only counts, wakes the teller, waits for it a while and ends the program.
struct Watchdog::State {
  State(const SectionLimits& given_limits, std::string given_name, BeforeExit given_before_exit)
      : limits(given_limits), name(std::move(given_name)), before_exit(std::move(given_before_exit)) {
    const SignalsBlocked blocked;
    teller = std::jthread([this](const std::stop_token& stop) { tell(stop); });
    watcher = std::jthread([this](const std::stop_token& stop) { watch(stop); });
  }

  void watch(const std::stop_token& stop) {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait_for(lock, stop, kTick, [] { return false; });
      if (stop.stop_requested()) return;
      watch_clock += kTick.count();  // one tick, however long the process was stopped
      overrun = find_overrun(limits);
      if (!overrun) continue;
      changed.notify_all();
      changed.wait_for(lock, kForLastWords, [this] { return told; });
      ::_exit(static_cast<int>(ExitCode::kUnavailable));
    }
  }

  void tell(const std::stop_token& stop) {
    std::unique_lock lock(mutex);
    if (!changed.wait(lock, stop, [this] { return overrun.has_value(); })) return;
    lock.unlock();
    try {
      say_last_words();
    } catch (const std::exception&) {  // no memory
    }
    lock.lock();
    told = true;
    changed.notify_all();
  }

  void say_last_words() const {
    const auto start = std::chrono::steady_clock::now();
    const std::string section = describe(overrun->current);
    const std::string what =
        fmt::format("{}{}{} has not ended in {} s", name, name.empty() ? "" : ": ", section, overrun->limit.count());
    if (::isatty(STDERR_FILENO) == 1) write_text("\r\x1b[K");  // over the live progress line
    write_text(fmt::format("error: {}; {}\n", one_line(what), hint(*overrun)));
    std::future<void> others;
    if (before_exit) others = do_aside([call = before_exit, what] { call(what); });
    write_text(fmt::format("the stack of thread {} in {}:\n", overrun->thread, section));
    write_text(stacks.stack_of(overrun->thread));
    if (others.valid()) others.wait_until(start + kForOthers);
    std::fflush(stdout);
    std::fflush(stderr);
  }

  const StackRequests stacks;  // first: at most one lives, and so does one watchdog
  const SectionLimits limits;
  const std::string name;
  const BeforeExit before_exit;
  std::mutex mutex;
  std::condition_variable_any changed;
  std::optional<Overrun> overrun;
  bool told = false;
  std::jthread teller;
  std::jthread watcher;  // destroyed first: it needs the teller to the end
};

Watchdog::Watchdog(const SectionLimits& limits, std::string name, BeforeExit before_exit) try
    : state_(std::make_unique<State>(limits, std::move(name), std::move(before_exit))) {
} catch (const std::system_error& error) {
  throw Error(ExitCode::kUnavailable, fmt::format("cannot start the watchdog: {}", error.what()),
              "raise the limit of threads (ulimit -u, or the container's limit of processes)");
}

Watchdog::~Watchdog() = default;

}  // namespace fettle
