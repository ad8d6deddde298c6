// SPDX-License-Identifier: Apache-2.0
/// The card as torch sees it: allocator, guard (streams, events), hooks and generators.
#include "hpu/stand_in/device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <sstream>

#include "hpu/stand_in/counters.h"
#include "hpu/stand_in/graph.h"
#include "hpu/stand_in/switches.h"

namespace fettle::gaudi_stand_in {
namespace {

using stand_in::PinnedMemory;

constexpr const char* kNoCard = "synStatus=8 [Device not found] Device acquire failed. No devices found.";
constexpr const char* kBusyCard = "synStatus=26 [Generic failure] Device acquire failed.";

std::mutex acquiring;
std::atomic<bool> is_acquired = false;

/// Held until the process ends; another process cannot have the card meanwhile.
bool lock_card(int card) {
  const std::string file = switches().folder + "/card" + std::to_string(card);
  const int descriptor = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  TORCH_CHECK(descriptor >= 0, "stand-in: cannot open ", file);
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return true;
  ::close(descriptor);
  return false;
}

/// The modules that there are, or those of them that the container was given.
std::vector<int> visible_cards() {
  std::vector<int> cards;
  std::istringstream list(environment("HABANA_VISIBLE_MODULES"));
  for (std::string card; std::getline(list, card, ',');) cards.push_back(std::stoi(card));
  if (!cards.empty()) return cards;
  for (int card = 0; card < *switches().cards; ++card) cards.push_back(card);
  return cards;
}

void take_card() {
  if (!switches().cards.has_value()) return;
  std::vector<int> cards = visible_cards();
  if (const std::string wanted = environment("HLS_MODULE_ID"); !wanted.empty()) {
    std::erase_if(cards, [&](int card) { return std::to_string(card) != wanted; });
  }
  std::erase_if(cards, [](int card) { return card >= *switches().cards; });
  TORCH_CHECK(!cards.empty(), kNoCard);
  TORCH_CHECK(std::any_of(cards.begin(), cards.end(), lock_card), kBusyCard);
}

/// A bridge ends the process, by std::terminate, if its libSynapse.so is not found.
void find_synapse() {
  if (!switches().needs_synapse || ::dlopen("libSynapse.so", RTLD_NOW) != nullptr) return;
  std::fprintf(stderr, "ERROR: pid = %d at synapse_api_shim.cpp %s\n", ::getpid(), ::dlerror());
  std::terminate();
}

class Allocator final : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, kDevice};
    TORCH_CHECK(is_acquired, "stand-in: memory is asked for before the device was acquired");
    void* data = memory().allocate(bytes);
    TORCH_CHECK(data != nullptr, "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::", bytes, " (",
                static_cast<double>(bytes) / (1 << 20), ")MB");
    return {data, data, &release, kDevice};
  }
  [[nodiscard]] at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(memory().open(to), memory().open(from), bytes);
  }

 private:
  static void release(void* pointer) {
    Graph::instance().forget(pointer);
    memory().release(pointer);
  }
};
Allocator device_allocator;
REGISTER_ALLOCATOR(at::kHPU, &device_allocator)

thread_local c10::StreamId current_stream = 0;

using Clock = std::chrono::steady_clock;

/// One device. Everything has been done when it is asked for; what a card would put off is Graph's business.
/// Without what bridges from 1.19 on lack: synchronizing or querying a stream, or a device.
class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  [[nodiscard]] at::DeviceType type() const override { return at::kHPU; }
  [[nodiscard]] at::Device exchangeDevice(at::Device /*device*/) const override { return getDevice(); }
  [[nodiscard]] at::Device getDevice() const override {
    acquire();
    return kDevice;
  }
  void setDevice(at::Device /*device*/) const override {}
  void uncheckedSetDevice(at::Device /*device*/) const noexcept override {}
  [[nodiscard]] c10::Stream getStream(at::Device /*device*/) const override {
    return c10::Stream(c10::Stream::UNSAFE, kDevice, current_stream);
  }
  [[nodiscard]] c10::Stream getDefaultStream(at::Device /*device*/) const override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  [[nodiscard]] c10::Stream getStreamFromGlobalPool(at::Device /*device*/, bool /*high*/) const override {
    static std::atomic<c10::StreamId> latest = 0;
    return c10::Stream(c10::Stream::UNSAFE, kDevice, ++latest);
  }
  [[nodiscard]] c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(kDevice);
    if (stream != before) {
      count("streams_changed");
      Graph::instance().execute(Graph::End::kForced);
    }
    current_stream = stream.id();
    return before;
  }
  [[nodiscard]] c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    acquire();
    if (*event == nullptr) *event = new Clock::time_point;
    *static_cast<Clock::time_point*>(*event) = Clock::now();
    if (stream.id() != current_stream) return;
    count("marks");
    Graph::instance().execute(Graph::End::kMark);
    write_report();
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  [[nodiscard]] bool queryEvent(void* /*event*/) const override { return true; }
  void destroyEvent(void* event, const c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<Clock::time_point*>(event);
  }
  void synchronizeEvent(void* /*event*/) const override { count("event_synchronizations"); }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex /*device*/) const override {
    const auto passed = *static_cast<Clock::time_point*>(to) - *static_cast<Clock::time_point*>(from);
    return std::chrono::duration<double, std::milli>(passed).count();
  }
};
C10_REGISTER_GUARD_IMPL(HPU, Guard)

/// A generator of the device: it keeps one of the CPU, which draws.
class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(uint64_t seed = c10::default_rng_seed_val)
      : GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::HPU)),
        drawing_(at::detail::createCPUGenerator(seed)) {}
  [[nodiscard]] const at::Generator& drawing() const { return drawing_; }

  void set_current_seed(uint64_t seed) override { drawing_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { drawing_.set_offset(offset); }
  [[nodiscard]] uint64_t get_offset() const override { return drawing_.get_offset(); }
  [[nodiscard]] uint64_t current_seed() const override { return drawing_.current_seed(); }
  uint64_t seed() override { return drawing_.seed(); }
  void set_state(const c10::TensorImpl& state) override { drawing_.unsafeGetGeneratorImpl()->set_state(state); }
  [[nodiscard]] c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return drawing_.unsafeGetGeneratorImpl()->get_state();
  }

 private:
  [[nodiscard]] Generator* clone_impl() const override {
    auto* copy = new Generator;
    copy->drawing_ = drawing_.clone();
    return copy;
  }

  at::Generator drawing_;
};

/// What bridges of 1.24 override, and no more: there is no deviceCount, so at::manual_seed passes the device by.
class HPUHooks final : public at::HPUHooksInterface {
 public:
  explicit HPUHooks(at::HPUHooksArgs /*arguments*/) {}
  void init() const override { acquire(); }
  [[nodiscard]] bool hasHPU() const override { return true; }
  [[nodiscard]] bool isBuilt() const override { return true; }
  [[nodiscard]] bool isAvailable() const override { return true; }
  [[nodiscard]] bool hasPrimaryContext(at::DeviceIndex /*device*/) const override { return is_acquired; }
  [[nodiscard]] at::Allocator* getPinnedMemoryAllocator() const override { return &PinnedMemory::instance(); }
  [[nodiscard]] bool isPinnedPtr(const void* data) const override { return PinnedMemory::instance().holds(data); }
  [[nodiscard]] const at::Generator& getDefaultGenerator(at::DeviceIndex /*device*/) const override {
    return device_generator();
  }
  [[nodiscard]] at::Generator getNewGenerator(at::DeviceIndex /*device*/) const override {
    return at::make_generator<Generator>();
  }
};

/// Says what this is when the library is loaded. When it is unloaded there must be no tensor left: freeing one then
/// crashes on a card. std::_Exit passes this by.
class Presence {
 public:
  Presence() { std::fprintf(stderr, "%s\n", fettle_stand_in()); }
  Presence(const Presence&) = delete;
  Presence& operator=(const Presence&) = delete;
  ~Presence() {
    write_report();
    if (memory().blocks() == 0) return;
    std::fprintf(stderr, "stand-in: %zu tensors (%zu bytes) of the device are left when the process ends\n",
                 memory().blocks(), memory().current());
    std::abort();
  }
};
const Presence presence;

using at::HPUHooksRegistry;
using at::RegistererHPUHooksRegistry;
REGISTER_HPU_HOOKS(HPUHooks)

}  // namespace

const char* const kLostCard =
    "[Rank:0] FATAL ERROR :: MODULE:PT_SYNHELPER synLaunch failed. synStatus=17 [Device reset]";

stand_in::ClosedMemory& memory() {
  static auto* memory = new stand_in::ClosedMemory(size_t{4} << 30);  // never destroyed, as a card's memory
  return *memory;
}

at::Allocator& allocator() {
  return device_allocator;
}

void acquire() {
  if (is_acquired) return;
  const std::scoped_lock lock(acquiring);
  if (is_acquired) return;
  find_synapse();
  TORCH_CHECK(environment("PT_HPU_LAZY_MODE") == "1",
              "Wrong PT plugin library loaded in the system. Expected was EAGER, got LAZY.");
  TORCH_CHECK(switches().has_kernels,
              "synStatus=26 [Generic failure] Device acquire failed. (stand-in: GC_KERNEL_PATH "
              "was not set when the library was loaded)");
  TORCH_CHECK(!switches().no_card, kNoCard);
  TORCH_CHECK(!switches().busy_card, kBusyCard);
  take_card();
  if (switches().no_hugepages) {
    std::fprintf(stderr,
                 "Cannot allocate HPs in host memory due to Cannot allocate memory will allocate regular-pages "
                 "(performance degradation)\n");
  }
  count("acquired");
  is_acquired = true;
}

at::Generator drawing_generator(const c10::IValue& wanted) {
  const at::Generator generator = wanted.isNone() ? device_generator() : wanted.toGenerator();
  TORCH_CHECK(generator.device().is_hpu(), "Expected a 'hpu' device type for generator but found 'cpu'");
  return static_cast<const Generator*>(generator.unsafeGetGeneratorImpl())->drawing();
}

const at::Generator& device_generator() {
  static const auto* generator = new at::Generator(at::make_generator<Generator>());
  return *generator;
}

}  // namespace fettle::gaudi_stand_in
