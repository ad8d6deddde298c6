// SPDX-License-Identifier: Apache-2.0
#include "accelerator/stand_in.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace fettle::stand_in {
namespace {

const at::Device kDevice(at::kCUDA, 0);
constexpr size_t kCapacity = size_t{1} << 30;
constexpr size_t kGrain = 512;  // as CUDA's allocator

std::atomic<int64_t> waited = 0;
thread_local bool is_falling_back = false;  // its copies are the stand-in's own

/// The device's memory: the addresses that tensors have are closed to everybody, and the same bytes lie open elsewhere.
class Memory {
 public:
  static Memory& instance() {
    static Memory memory;
    return memory;
  }

  void* allocate(size_t bytes) {
    const std::scoped_lock lock(mutex_);
    const size_t size = std::max(kGrain, (bytes + kGrain - 1) / kGrain * kGrain);
    const auto free = free_.lower_bound(size);
    std::byte* place = nullptr;
    if (free != free_.end()) {
      place = free->second;
      sizes_[place] = free->first;
      free_.erase(free);
    } else {
      TORCH_CHECK_WITH(OutOfMemoryError, used_ + size <= kCapacity, "stand-in: out of memory");
      place = closed_ + used_;
      used_ += size;
      sizes_[place] = size;
    }
    current_ += sizes_[place];
    peak_ = std::max(peak_, current_);
    return place;
  }
  void release(void* pointer) {
    const std::scoped_lock lock(mutex_);
    const auto found = sizes_.find(static_cast<std::byte*>(pointer));
    current_ -= found->second;
    free_.emplace(found->second, found->first);
    sizes_.erase(found);
  }
  /// Where a byte of the device can be touched; any other address is what it is.
  [[nodiscard]] void* open(const void* pointer) const {
    auto* place = static_cast<std::byte*>(const_cast<void*>(pointer));
    return place >= closed_ && place < closed_ + kCapacity ? open_ + (place - closed_) : place;
  }
  [[nodiscard]] size_t current() const { return current_; }
  [[nodiscard]] size_t peak() const { return peak_; }

 private:
  Memory() {
    const int file = ::memfd_create("stand-in", 0);
    TORCH_CHECK(file >= 0 && ::ftruncate(file, kCapacity) == 0, "stand-in: no memory file");
    const auto map = [file](int protection) {
      return static_cast<std::byte*>(::mmap(nullptr, kCapacity, protection, MAP_SHARED, file, 0));
    };
    closed_ = map(PROT_NONE);
    open_ = map(PROT_READ | PROT_WRITE);
    ::close(file);
  }

  std::mutex mutex_;
  std::byte* closed_ = nullptr;
  std::byte* open_ = nullptr;
  size_t used_ = 0;
  size_t current_ = 0;
  size_t peak_ = 0;
  std::map<std::byte*, size_t> sizes_;
  std::multimap<size_t, std::byte*> free_;
};

class Allocator final : public c10::DeviceAllocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    void* data = Memory::instance().allocate(bytes);
    return {data, data, &release, kDevice};
  }
  [[nodiscard]] at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(open_address(to), open_address(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t /*pool*/) override {}
  void recordStream(const at::DataPtr& /*pointer*/, c10::Stream /*stream*/) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex /*device*/) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = static_cast<int64_t>(Memory::instance().current());
    stats.allocated_bytes[0].peak = static_cast<int64_t>(Memory::instance().peak());
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex /*device*/) override {}
  void resetPeakStats(c10::DeviceIndex /*device*/) override {}
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex /*device*/) override {
    return {kCapacity - Memory::instance().current(), kCapacity};
  }

 private:
  static void release(void* pointer) { Memory::instance().release(pointer); }
};
Allocator allocator;
REGISTER_ALLOCATOR(at::kCUDA, &allocator)

/// What the device can read while the host goes on: every other copy is a wait.
class PinnedMemory final : public at::Allocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(std::max<size_t>(1, bytes));
    const std::scoped_lock lock(mutex_);
    blocks_[static_cast<std::byte*>(data)] = std::max<size_t>(1, bytes);
    return {data, data, &release, at::kCPU};
  }
  [[nodiscard]] at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  [[nodiscard]] bool holds(const void* data) const {
    const std::scoped_lock lock(mutex_);
    const auto* place = static_cast<const std::byte*>(data);
    const auto after = blocks_.upper_bound(const_cast<std::byte*>(place));
    return after != blocks_.begin() && place < std::prev(after)->first + std::prev(after)->second;
  }

 private:
  static void release(void* data);

  mutable std::mutex mutex_;
  std::map<std::byte*, size_t> blocks_;
};
PinnedMemory pinned_memory;
void PinnedMemory::release(void* data) {
  const std::scoped_lock lock(pinned_memory.mutex_);
  pinned_memory.blocks_.erase(static_cast<std::byte*>(data));
  std::free(data);
}

/// One device, one stream on which everything is done at once.
class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  [[nodiscard]] at::DeviceType type() const override { return at::kCUDA; }
  [[nodiscard]] at::Device exchangeDevice(at::Device /*device*/) const override { return kDevice; }
  [[nodiscard]] at::Device getDevice() const override { return kDevice; }
  void setDevice(at::Device /*device*/) const override {}
  void uncheckedSetDevice(at::Device /*device*/) const noexcept override {}
  [[nodiscard]] c10::Stream getStream(at::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  [[nodiscard]] c10::Stream getDefaultStream(at::Device device) const override { return getStream(device); }
  [[nodiscard]] c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  [[nodiscard]] void* getStreamNativeHandle(const c10::Stream /*stream*/) const override { return nullptr; }
  [[nodiscard]] c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream& /*stream*/, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    *event = nullptr;
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  [[nodiscard]] bool queryEvent(void* /*event*/) const override { return true; }
  void destroyEvent(void* /*event*/, const c10::DeviceIndex /*device*/) const noexcept override {}
  void synchronizeEvent(void* /*event*/) const override {}
  void synchronizeDevice(const c10::DeviceIndex /*device*/) const override {}
  void synchronizeStream(const c10::Stream& /*stream*/) const override {}
  void recordDataPtrOnStream(const at::DataPtr& /*pointer*/, const c10::Stream& /*stream*/) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

/// What torch asks of CUDA before it asks the device.
class Hooks final : public at::CUDAHooksInterface {
 public:
  explicit Hooks(at::CUDAHooksArgs /*arguments*/) {}
  void init() const override {}
  [[nodiscard]] bool isBuilt() const override { return true; }
  [[nodiscard]] bool isAvailable() const override { return true; }
  [[nodiscard]] bool hasCUDA() const override { return true; }
  [[nodiscard]] bool hasPrimaryContext(at::DeviceIndex /*device*/) const override { return true; }
  [[nodiscard]] at::DeviceIndex deviceCount() const override { return 1; }
  [[nodiscard]] at::DeviceIndex getCurrentDevice() const override { return 0; }
  [[nodiscard]] int getNumGPUs() const override { return 1; }
  [[nodiscard]] at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  [[nodiscard]] bool isPinnedPtr(const void* data) const override { return pinned_memory.holds(data); }
  /// The CPU's: it is what draws.
  [[nodiscard]] const at::Generator& getDefaultGenerator(at::DeviceIndex /*device*/) const override {
    return at::detail::getDefaultCPUGenerator();
  }
};

// Boxed, because of their six arguments: size, (stride,) type, layout, device, pinned(, format).
at::ScalarType type_of(const c10::IValue& type) {
  return type.isNone() ? at::kFloat : type.toScalarType();
}
void empty(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  const std::vector<c10::IValue> in = torch::jit::pop(*stack, 6);
  const std::optional<at::MemoryFormat> format = in[5].isNone() ? std::nullopt : std::optional(in[5].toMemoryFormat());
  torch::jit::push(*stack, at::Tensor(at::detail::empty_generic(in[0].toIntVector(), &allocator,
                                                                c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                                type_of(in[1]), format)));
}
void empty_strided(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  const std::vector<c10::IValue> in = torch::jit::pop(*stack, 6);
  torch::jit::push(*stack, at::Tensor(at::detail::empty_strided_generic(
                               in[0].toIntVector(), in[1].toIntVector(), &allocator,
                               c10::DispatchKeySet(c10::DispatchKey::CUDA), type_of(in[2]))));
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() == 0) return to;
  at::Tensor target = on_host(to);
  const bool is_pinned = pinned_memory.holds((to.is_cpu() ? to : from).const_data_ptr());
  if (to.device() != from.device() && !(non_blocking && is_pinned) && !is_falling_back) ++waited;
  target.copy_(on_host(from).expand(to.sizes()));
  return to;
}

/// What was there need not move along: only results that are still empty are resized.
const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> /*format*/) {
  TORCH_CHECK(self.numel() == 0 || self.sizes() == size, "stand-in: a tensor with content is resized");
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(size)) * self.element_size();
  c10::StorageImpl* storage = self.storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    storage->set_data_ptr_noswap(allocator.allocate(bytes));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return to.copy_(from);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  ++waited;
  return on_host(self).item();
}

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  static const std::set<std::string> values{"aten::nonzero", "aten::equal", "aten::is_nonzero"};
  waited += values.contains(op.schema().name()) ? 1 : 0;
  const bool was_falling_back = std::exchange(is_falling_back, true);
  at::native::cpu_fallback(op, stack);
  is_falling_back = was_falling_back;
}

}  // namespace

namespace {
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
using CUDAHooks = Hooks;  // the name that torch looks for
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace

at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(open_address(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(),
                       tensor.options().device(at::kCPU).requires_grad(false));
}

int64_t waits() {
  return waited;
}

void* open_address(const void* pointer) {
  return Memory::instance().open(pointer);
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", torch::CppFunction::makeFromBoxedFunction<&empty>());
  library.impl("empty_strided", torch::CppFunction::makeFromBoxedFunction<&empty_strided>());
  library.impl("copy_", &copy);
  library.impl("resize_", &resize);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
}
TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
}

}  // namespace fettle::stand_in
