// SPDX-License-Identifier: Apache-2.0
/// Tensors on at::kCUDA without a GPU: the stand-in device (tests/accelerator), torch's flash attention by its twin,
/// and the emulated kernels. So the front doors run, forward and backward, up to the launches and with their sizes,
/// pointers and streams.
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include "accelerator/stand_in.h"
#include "device.h"
#include "ops/attention.h"
#include "ops/dispatch.h"

namespace fettle::ops::testing {
namespace {

using stand_in::on_host;

// The emulated kernels run on the host: every address of the device in their arguments becomes one that it may touch.
template <typename... Element>
void open_each(Element*&... addresses) {
  ((addresses = static_cast<Element*>(stand_in::open_address(addresses))), ...);
}
void open(cuda::RmsNorm& p) {
  open_each(p.x, p.weight, p.y, p.inverse_rms);
}
void open(cuda::RmsNormGradient& p) {
  open_each(p.dy, p.x, p.weight, p.inverse_rms, p.dx, p.partial, p.d_weight);
}
void open(cuda::Rotary& p) {
  open_each(p.x, p.cos, p.sin, p.y);
}
void open(cuda::Swiglu& p) {
  open_each(p.gate, p.up, p.y);
}
void open(cuda::SwigluGradient& p) {
  open_each(p.dy, p.gate, p.up, p.d_gate, p.d_up);
}
void open(cuda::CrossEntropy& p) {
  open_each(p.logits, p.labels, p.losses);
}
void open(cuda::Dequantize& p) {
  open_each(p.codes, p.scales, p.values);
}

template <auto kKernel, typename Arguments>
cuda::Failure on_open_addresses(const Arguments& arguments, void* stream) {
  Arguments opened = arguments;
  open(opened);
  return (cuda::fettle_cuda_kernels()->*kKernel)(opened, stream);
}

// Torch's flash attention as its callers rely on it: causal, over int32 boundaries on the device.
struct FlashArguments {
  std::vector<int32_t> boundaries;
  AttentionSpec spec;
};
FlashArguments flash_arguments(const at::Tensor& boundaries, double scale, int64_t window_left) {
  TORCH_CHECK(boundaries.is_cuda() && boundaries.scalar_type() == at::kInt && boundaries.is_contiguous());
  const at::Tensor on_cpu = on_host(boundaries);
  const auto* first = on_cpu.const_data_ptr<int32_t>();
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

/// A kernel's result: nobody waits for it.
at::Tensor written(const at::Tensor& result) {
  return result.pin_memory().to(at::kCUDA, result.scalar_type(), /*non_blocking=*/true);
}

void flash_forward(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  const std::vector<c10::IValue> in(stack->begin(), stack->end());
  const FlashArguments arguments = flash_arguments(in[3].toTensor(), in[10].toDouble(), in[11].toInt());
  TORCH_CHECK(in[3].toTensor().is_same(in[4].toTensor()) && in[5] == in[6] &&
              in[5].toInt() == longest(arguments.boundaries));
  TORCH_CHECK(in[7].toDouble() == 0.0 && in[8].toBool() && !in[9].toBool() && in[12].toInt() == 0,
              "dropout, not causal");
  const at::Tensor nothing = at::zeros({1}, in[0].toTensor().options());
  std::vector<at::Tensor> streams;
  for (size_t i = 0; i < 3; ++i) streams.push_back(on_host(in[i].toTensor()));
  stack->clear();
  torch::jit::push(*stack, written(attend(streams, arguments)), nothing, nothing, nothing, nothing);
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
  for (size_t i = 1; i <= 3; ++i) streams.push_back(on_host(in[i].toTensor()).clone().requires_grad_(true));
  const at::Tensor output = attend(streams, arguments);
  TORCH_CHECK(output.equal(on_host(in[4].toTensor())), "not the forward's output");
  torch::autograd::backward({output}, {on_host(in[0].toTensor())});
  stack->clear();
  for (const at::Tensor& stream : streams) torch::jit::push(*stack, written(stream.grad()));
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_flash_attention_forward", torch::CppFunction::makeFromBoxedFunction<&flash_forward>());
  library.impl("_flash_attention_backward", torch::CppFunction::makeFromBoxedFunction<&flash_backward>());
}
const cuda::KernelTable kTable{
    .version = cuda::kKernelVersion,
    .rms_norm = &on_open_addresses<&cuda::KernelTable::rms_norm, cuda::RmsNorm>,
    .rms_norm_backward = &on_open_addresses<&cuda::KernelTable::rms_norm_backward, cuda::RmsNormGradient>,
    .rotary = &on_open_addresses<&cuda::KernelTable::rotary, cuda::Rotary>,
    .swiglu = &on_open_addresses<&cuda::KernelTable::swiglu, cuda::Swiglu>,
    .swiglu_backward = &on_open_addresses<&cuda::KernelTable::swiglu_backward, cuda::SwigluGradient>,
    .cross_entropy = &on_open_addresses<&cuda::KernelTable::cross_entropy, cuda::CrossEntropy>,
    .dequantize = &on_open_addresses<&cuda::KernelTable::dequantize, cuda::Dequantize>};

}  // namespace

std::string start_cuda() {
  set_cuda_kernels(&kTable);
  return {};
}

void stop_cuda() {
  set_cuda_kernels(nullptr);
}

std::string why_no_device() {
  return {};
}

bool draws_as_the_cpu() {
  return true;
}

std::optional<int64_t> waits_for_device() {
  return stand_in::waits();
}

}  // namespace fettle::ops::testing
