// SPDX-License-Identifier: Apache-2.0
#include "accelerator/stand_in.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <set>
#include <utility>

#include "support/closed_memory.h"

namespace fettle::stand_in {
namespace {

const at::Device kDevice(at::kCUDA, 0);

std::atomic<int64_t> waited = 0;
thread_local bool is_falling_back = false;  // its copies are the stand-in's own

ClosedMemory& memory() {
  static ClosedMemory memory(size_t{1} << 30);
  return memory;
}

class Allocator final : public c10::DeviceAllocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    void* data = memory().allocate(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "stand-in: out of memory");
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
    stats.allocated_bytes[0].current = static_cast<int64_t>(memory().current());
    stats.allocated_bytes[0].peak = static_cast<int64_t>(memory().peak());
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex /*device*/) override {}
  void resetPeakStats(c10::DeviceIndex /*device*/) override {}
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex /*device*/) override {
    return {memory().capacity() - memory().current(), memory().capacity()};
  }

 private:
  static void release(void* pointer) { memory().release(pointer); }
};
Allocator allocator;
REGISTER_ALLOCATOR(at::kCUDA, &allocator)

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
  [[nodiscard]] at::Allocator* getPinnedMemoryAllocator() const override { return &PinnedMemory::instance(); }
  [[nodiscard]] bool isPinnedPtr(const void* data) const override { return PinnedMemory::instance().holds(data); }
  /// The CPU's: it is what draws.
  [[nodiscard]] const at::Generator& getDefaultGenerator(at::DeviceIndex /*device*/) const override {
    return at::detail::getDefaultCPUGenerator();
  }
};

void empty(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  make_empty(stack, &allocator, c10::DispatchKey::CUDA);
}
void empty_strided(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  make_empty_strided(stack, &allocator, c10::DispatchKey::CUDA);
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() == 0) return to;
  at::Tensor target = on_host(to);
  const bool is_pinned = PinnedMemory::instance().holds((to.is_cpu() ? to : from).const_data_ptr());
  if (to.device() != from.device() && !(non_blocking && is_pinned) && !is_falling_back) ++waited;
  target.copy_(on_host(from).expand(to.sizes()));
  return to;
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> /*format*/) {
  return resize(self, size, &allocator, memory());
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
  return memory().open(tensor);
}

int64_t waits() {
  return waited;
}

void* open_address(const void* pointer) {
  return memory().open(pointer);
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", torch::CppFunction::makeFromBoxedFunction<&empty>());
  library.impl("empty_strided", torch::CppFunction::makeFromBoxedFunction<&empty_strided>());
  library.impl("copy_", &copy);
  library.impl("resize_", &resize_);
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
