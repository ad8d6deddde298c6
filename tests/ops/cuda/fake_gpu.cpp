// SPDX-License-Identifier: Apache-2.0
/// Tensors on at::kCUDA without a GPU: their memory is the host's, torch's operations on them are those of the CPU on
/// the same memory, and the table of kernels is the emulated one. So the front doors run, forward and backward, up to
/// the launches and with their sizes, pointers and streams. What waits for a device is counted.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <atomic>
#include <set>

#include "device.h"
#include "ops/attention.h"
#include "ops/dispatch.h"

namespace fettle::ops::testing {
namespace {

std::atomic<int64_t> waits = 0;
int stream_object = 0;
const c10::Device kDevice(c10::DeviceType::CUDA, 0);

class FakeGpu : public c10::impl::DeviceGuardImplInterface {
 public:
  [[nodiscard]] c10::DeviceType type() const override { return kDevice.type(); }
  [[nodiscard]] c10::Device exchangeDevice(c10::Device /*device*/) const override { return kDevice; }
  [[nodiscard]] c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device /*device*/) const override {}
  void uncheckedSetDevice(c10::Device /*device*/) const noexcept override {}
  [[nodiscard]] c10::Stream getStream(c10::Device /*device*/) const override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  [[nodiscard]] c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  [[nodiscard]] void* getStreamNativeHandle(const c10::Stream /*stream*/) const override { return &stream_object; }
  [[nodiscard]] c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** /*event*/, const c10::Stream& /*stream*/, const c10::DeviceIndex /*index*/,
              const c10::EventFlag /*flag*/) const override {}
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
};

// What torch asks about CUDA outside of operations.
class FakeHooks : public at::CUDAHooksInterface {
 public:
  void init() const override {}
  [[nodiscard]] const at::Generator& getDefaultGenerator(c10::DeviceIndex /*index*/) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  [[nodiscard]] bool isBuilt() const override { return true; }
  [[nodiscard]] bool isAvailable() const override { return true; }
  [[nodiscard]] bool hasCUDA() const override { return true; }
  [[nodiscard]] bool hasPrimaryContext(c10::DeviceIndex /*index*/) const override { return true; }
  [[nodiscard]] c10::DeviceIndex deviceCount() const override { return 1; }
  [[nodiscard]] c10::DeviceIndex current_device() const override { return 0; }
};

at::Tensor alias(const at::Tensor& tensor, c10::Device device) {
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .deleter([tensor](void* /*data*/) {})
      .target_device(device)
      .options(tensor.options().device(device))
      .make_tensor();
}

// Arguments of one operation on their way to the CPU.
class Moved {
 public:
  c10::IValue to_cpu(const c10::IValue& value) {
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_cuda()) return to_cpu(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) list.push_back(each.is_cuda() ? to_cpu(each) : each);
      return list;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(c10::DeviceType::CPU);
    return value;
  }
  // An operation in place returns what it was given.
  c10::IValue back(const c10::IValue& value) const {
    if (!value.isTensor() || !value.toTensor().defined()) return value;
    for (const auto& [original, moved] : tensors_) {
      if (moved.is_same(value.toTensor())) return original;
    }
    return alias(value.toTensor(), kDevice);
  }

 private:
  at::Tensor to_cpu(const at::Tensor& tensor) {
    tensors_.emplace_back(tensor, alias(tensor, c10::DeviceType::CPU));
    return tensors_.back().second;
  }
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
};

// Copies between the host and the device wait, unless they are told not to; so does whatever needs a value.
bool waits_for(const std::string& name, const c10::ArrayRef<c10::IValue>& arguments) {
  static const std::set<std::string> values{"aten::_local_scalar_dense", "aten::nonzero", "aten::equal",
                                            "aten::is_nonzero"};
  if (name != "aten::copy_") return values.contains(name);
  return arguments[0].toTensor().device() != arguments[1].toTensor().device() && !arguments[2].toBool();
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const size_t arguments = op.schema().arguments().size();
  const size_t first = stack->size() - arguments;
  waits += waits_for(op.schema().name(), c10::ArrayRef<c10::IValue>(*stack).slice(first)) ? 1 : 0;
  Moved moved;
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = moved.to_cpu((*stack)[i]);
  op.callBoxed(stack);
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
    (*stack)[i] = moved.back((*stack)[i]);
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

// Torch's flash attention as its callers rely on it: causal, over int32 boundaries on the device.
struct FlashArguments {
  std::vector<int32_t> boundaries;
  AttentionSpec spec;
};
FlashArguments flash_arguments(const at::Tensor& boundaries, double scale, int64_t window_left) {
  TORCH_CHECK(boundaries.is_cuda() && boundaries.scalar_type() == at::kInt && boundaries.is_contiguous());
  const auto* first = boundaries.const_data_ptr<int32_t>();
  return {{first, first + boundaries.numel()}, {.scale = scale, .window = window_left < 0 ? 0 : window_left + 1}};
}
int64_t longest(const std::vector<int32_t>& boundaries) {
  int64_t longest = 0;
  for (size_t i = 1; i < boundaries.size(); ++i)
    longest = std::max<int64_t>(longest, boundaries[i] - boundaries[i - 1]);
  return longest;
}
at::Tensor attend(const std::vector<at::Tensor>& streams, const FlashArguments& arguments) {
  return composite::attention(streams[0], streams[1], streams[2], arguments.spec, arguments.boundaries);
}

void flash_forward(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  const std::vector<c10::IValue> in(stack->begin(), stack->end());
  const FlashArguments arguments = flash_arguments(in[3].toTensor(), in[10].toDouble(), in[11].toInt());
  TORCH_CHECK(in[3].toTensor().is_same(in[4].toTensor()) && in[5] == in[6] &&
              in[5].toInt() == longest(arguments.boundaries));
  TORCH_CHECK(in[7].toDouble() == 0.0 && in[8].toBool() && !in[9].toBool() && in[12].toInt() == 0,
              "dropout, not causal");
  const at::Tensor nothing = at::zeros({1}, in[0].toTensor().options());
  stack->clear();
  torch::jit::push(*stack, attend({in[0].toTensor(), in[1].toTensor(), in[2].toTensor()}, arguments), nothing, nothing,
                   nothing, nothing);
}

void flash_backward(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  const std::vector<c10::IValue> in(stack->begin(), stack->end());
  TORCH_CHECK(at::globalContext().deterministicAlgorithms());
  const FlashArguments arguments = flash_arguments(in[6].toTensor(), in[14].toDouble(), in[15].toInt());
  TORCH_CHECK(in[6].toTensor().is_same(in[7].toTensor()) && in[8] == in[9] &&
              in[8].toInt() == longest(arguments.boundaries));
  TORCH_CHECK(in[10].toDouble() == 0.0 && in[11].toBool() && in[16].toInt() == 0, "dropout, not causal");
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  const c10::impl::ForceDispatchKeyGuard with_autograd(
      keys.included_, keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  const at::AutoGradMode gradients(true);
  std::vector<at::Tensor> streams;
  for (size_t i = 1; i <= 3; ++i)
    streams.push_back(alias(in[i].toTensor(), c10::DeviceType::CPU).clone().requires_grad_(true));
  const at::Tensor output = attend(streams, arguments);
  TORCH_CHECK(output.equal(alias(in[4].toTensor(), c10::DeviceType::CPU)), "not the forward's output");
  torch::autograd::backward({output}, {alias(in[0].toTensor(), c10::DeviceType::CPU)});
  stack->clear();
  for (const at::Tensor& stream : streams) torch::jit::push(*stack, alias(stream.grad(), kDevice));
}

at::Tensor pin(const at::Tensor& self, std::optional<c10::Device> /*device*/) {
  return self.clone();
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  // They have one implementation for all devices, which asks for a part of its own on each or resizes a result: the
  // fallback alone does not come to them.
  for (const char* name : {"copy_", "abs", "logical_not"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
  library.impl("_flash_attention_forward", torch::CppFunction::makeFromBoxedFunction<&flash_forward>());
  library.impl("_flash_attention_backward", torch::CppFunction::makeFromBoxedFunction<&flash_backward>());
}
TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("_pin_memory", &pin);
}

}  // namespace

std::string start_cuda() {
  static const c10::impl::DeviceGuardImplRegistrar registered(kDevice.type(), new FakeGpu);
  static const bool has_hooks = [] {
    at::CUDAHooksRegistry()->Register("CUDAHooks", [](at::CUDAHooksArgs) -> std::unique_ptr<at::CUDAHooksInterface> {
      return std::make_unique<FakeHooks>();
    });
    return at::globalContext().hasCUDA();
  }();
  if (!has_hooks) return "torch was asked for CUDA before";
  set_cuda_kernels(cuda::fettle_cuda_kernels());
  return {};
}

std::optional<int64_t> waits_for_device() {
  return waits.load();
}

}  // namespace fettle::ops::testing
