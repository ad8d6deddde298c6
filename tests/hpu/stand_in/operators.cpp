// SPDX-License-Identifier: Apache-2.0
/// aten on the device: what makes, moves and views its tensors, and everything else by the CPU's operators.
#include "hpu/stand_in/operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "hpu/stand_in/counters.h"
#include "hpu/stand_in/device.h"
#include "hpu/stand_in/graph.h"
#include "hpu/stand_in/native.h"
#include "hpu/stand_in/switches.h"

namespace fettle::gaudi_stand_in {
namespace {

using torch::jit::Stack;

constexpr auto kKey = c10::DispatchKey::HPU;

/// A tensor of the device and the tensor of the CPU that an operator gets in its place, with the same bytes.
struct Loan {
  at::Tensor device;
  at::Tensor host;
  bool is_written = false;
};

/// What the CPU's operator gets instead of the arguments of a call, and what its results are on the device.
class Loans {
 public:
  explicit Loans(const c10::OperatorHandle& op) : op_(op) {}

  void lend_arguments(Stack& stack) {
    const auto& arguments = op_.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      const bool is_written = arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite();
      c10::IValue& value = stack[stack.size() - arguments.size() + i];
      if (arguments[i].name() == "generator") {
        value = drawing_generator(value);
      } else {
        value = lend(value, is_written);
      }
    }
  }

  void take_results(Stack& stack) {
    for (const Loan& loan : loans_) {
      if (loan.is_written) settle(loan);
    }
    const size_t results = op_.schema().returns().size();
    for (size_t i = stack.size() - results; i < stack.size(); ++i) stack[i] = take(stack[i]);
  }

 private:
  c10::IValue lend(const c10::IValue& value, bool is_written) {
    if (value.isTensor()) return lend(value.toTensor(), is_written);
    if (value.isDevice()) return at::Device(at::kCPU);
    if (value.isTensorList()) {
      c10::List<at::Tensor> lent;
      for (const at::Tensor& tensor : value.toTensorVector()) lent.push_back(lend(tensor, is_written));
      return lent;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> lent;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        lent.push_back(tensor.has_value() ? std::optional(lend(*tensor, is_written)) : std::nullopt);
      }
      return lent;
    }
    return value;
  }

  at::Tensor lend(const at::Tensor& tensor, bool is_written) {
    if (!tensor.defined()) return tensor;
    if (tensor.is_cpu()) {
      check_host_tensor(tensor);
      return tensor;
    }
    TORCH_CHECK(tensor.device() == kDevice, "stand-in: ", op_.schema().name(), " got a tensor on ", tensor.device());
    for (Loan& loan : loans_) {
      if (!loan.device.is_same(tensor)) continue;
      loan.is_written = loan.is_written || is_written;
      return loan.host;
    }
    // A result that is still empty gets memory of its own, which the operator may resize.
    at::Tensor host = is_written && tensor.numel() == 0 ? at::empty(tensor.sizes(), tensor.options().device(at::kCPU))
                                                        : memory().open(tensor);
    loans_.push_back({tensor, host, is_written});
    return host;
  }

  /// Numbers may come from the host, and where to look (which is copied to the device first); nothing else.
  void check_host_tensor(const at::Tensor& tensor) const {
    static const std::set<std::string> by_index{"aten::index", "aten::index_put_", "aten::_index_put_impl_",
                                                "aten::index_put"};
    TORCH_CHECK(tensor.dim() == 0 || by_index.contains(op_.schema().name()),
                "Expected all tensors to be on the same device, but found at least two devices, hpu:0 and cpu! (",
                op_.schema().name(), ")");
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) return;
    count("host_to_device");
    count("blocking_host_to_device");
  }

  static void settle(const Loan& loan) {
    if (loan.device.numel() == 0 && loan.host.numel() > 0) {
      stand_in::resize(loan.device, loan.host.sizes(), &allocator(), memory());
      memory().open(loan.device).copy_(loan.host);
    }
    Graph::instance().wrote(loan.device);
  }

  c10::IValue take(const c10::IValue& value) {
    if (value.isTensor()) return take(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> taken;
    for (const at::Tensor& tensor : value.toTensorVector()) taken.push_back(take(tensor));
    return taken;
  }

  at::Tensor take(const at::Tensor& result) {
    if (!result.defined()) return result;
    for (const Loan& loan : loans_) {
      if (loan.host.is_same(result)) return loan.device;
      if (result.numel() > 0 && result.storage().is_alias_of(loan.host.storage())) return view(loan, result);
    }
    return to_device(result);
  }

  at::Tensor view(const Loan& loan, const at::Tensor& result) const {
    TORCH_CHECK(result.scalar_type() == loan.device.scalar_type(), "stand-in: ", op_.schema().name(),
                " looks at a tensor as another type");
    return at::native::as_strided_tensorimpl(
        loan.device, result.sizes(), result.strides(),
        loan.device.storage_offset() + result.storage_offset() - loan.host.storage_offset());
  }

  const c10::OperatorHandle& op_;
  std::vector<Loan> loans_;
};

/// Operators whose results have a shape, or go somewhere, that the values decide: a graph ends with them.
bool needs_values(const c10::OperatorHandle& op, const Stack& stack) {
  static const std::set<std::string> always{"aten::nonzero",  "aten::masked_select",
                                            "aten::_unique2", "aten::unique_consecutive",
                                            "aten::bincount", "aten::equal"};
  static const std::set<std::string> by_mask{"aten::index", "aten::index_put_", "aten::_index_put_impl_",
                                             "aten::index_put"};
  const std::string& name = op.schema().name();
  if (always.contains(name) || op.operator_name() == c10::OperatorName("aten::repeat_interleave", "Tensor"))
    return true;
  if (!by_mask.contains(name)) return false;
  const size_t first = stack.size() - op.schema().arguments().size();
  for (const std::optional<at::Tensor>& index : stack[first + 1].toOptionalTensorVector()) {
    const bool is_mask = index.has_value() && index->defined() &&
                         (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte);
    if (is_mask) return true;
  }
  return false;
}

void compute(const c10::OperatorHandle& op, Stack* stack) {
  Loans loans(op);
  loans.lend_arguments(*stack);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  loans.take_results(*stack);
}

/// A card has no numbers of 64 bits; it leaves many operators on them to the CPU, and the stand-in all.
bool has_doubles(const c10::OperatorHandle& op, const Stack& stack) {
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  return std::any_of(arguments.begin(), arguments.end(), [](const c10::IValue& value) {
    return value.isTensor() && value.toTensor().defined() && value.toTensor().is_hpu() &&
           value.toTensor().scalar_type() == at::kDouble;
  });
}

bool is_view(const c10::OperatorHandle& op) {
  const auto& results = op.schema().returns();
  return !results.empty() && results[0].alias_info() != nullptr && !results[0].alias_info()->isWrite();
}

/// PT_HPU_PLACE_ON_CPU: everything, "none", or the names that may.
bool may_fall_back(const std::string& name) {
  if (switches().refused.contains(name)) return false;
  const auto& allowed = switches().fallbacks_allowed;
  return !allowed.has_value() || allowed->contains(name);
}

void by_the_cpu(const c10::OperatorHandle& op, Stack* stack) {
  const std::string& name = op.schema().name();
  if (switches().refused.contains(name) || !is_native(op.operator_name()) || has_doubles(op, *stack)) {
    TORCH_CHECK(may_fall_back(name), "`", name, "` is not yet supported on HPU.");
    Graph::instance().execute(Graph::End::kForced);
    count_fallback(toString(op.operator_name()));
    compute(op, stack);
    return;
  }
  Graph::instance().add(op, *stack, is_view(op) ? Graph::Kind::kViews : Graph::Kind::kComputes);
  if (needs_values(op, *stack)) {
    Graph::instance().execute(Graph::End::kForced);
    if (name == "aten::equal") count_copy_to_host();
  }
  compute(op, stack);
}

/// A kernel that first notes its call.
template <auto* function, Graph::Kind kind = Graph::Kind::kViews>
void noted(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  using Function = std::remove_pointer_t<decltype(function)>;
  static const auto kernel =
      c10::KernelFunction::makeFromUnboxedFunction(c10::CompileTimeFunctionPointer<Function, function>());
  Graph::instance().add(op, *stack, kind);
  kernel.callBoxed(op, keys, stack);
}

void empty(const c10::OperatorHandle& op, Stack* stack) {
  Graph::instance().add(op, *stack, Graph::Kind::kViews);
  stand_in::make_empty(stack, &allocator(), kKey);
}

void empty_strided(const c10::OperatorHandle& op, Stack* stack) {
  Graph::instance().add(op, *stack, Graph::Kind::kViews);
  stand_in::make_empty_strided(stack, &allocator(), kKey);
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> /*format*/) {
  return stand_in::resize(self, size, &allocator(), memory());
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  const c10::DimVector contiguous = c10::contiguous_strides(size);
  if (stride.empty()) stride = contiguous;
  const size_t bytes = at::detail::computeStorageNbytes(size, stride, self.element_size(), offset);
  TORCH_CHECK(source.device() == kDevice && bytes <= source.nbytes(), "stand-in: set_ to a storage that does not fit");
  c10::TensorImpl* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(source));
  tensor->set_sizes_and_strides(size, stride, offset);
  return self;
}

std::string described(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.scalar_type() << tensor.sizes();
  return text.str();
}

void to_host(at::Tensor& to, const at::Tensor& from) {
  if (to.scalar_type() != from.scalar_type()) Graph::instance().add("cast for the host " + described(from));
  Graph::instance().execute(Graph::End::kForced);
  count_copy_to_host();
  to.copy_(memory().open(from).expand(to.sizes()));
}

void from_host(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (Graph::instance().has_written(to)) Graph::instance().execute(Graph::End::kForced);
  count("host_to_device");
  const bool runs_along = non_blocking && stand_in::PinnedMemory::instance().holds(from.const_data_ptr());
  if (!runs_along) count("blocking_host_to_device");
  const bool narrows = from.scalar_type() == at::kLong && !switches().keeps_int64;
  memory().open(to).copy_((narrows ? from.to(at::kInt) : from).expand(to.sizes()));
  if (to.scalar_type() == from.scalar_type() && to.is_contiguous() && to.sizes() == from.sizes()) return;
  Graph::instance().add("cast or spread from the host " + described(from) + " " + described(to));
  Graph::instance().wrote(to);
}

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() == 0) return to;
  if (to.is_cpu()) {
    to_host(to, from);
  } else if (from.is_cpu()) {
    from_host(to, from, non_blocking);
  } else {
    Graph::instance().add("aten::copy_ " + described(to) + " " + described(from));
    memory().open(to).copy_(memory().open(from).expand(to.sizes()));
    Graph::instance().wrote(to);
  }
  return to;
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  Graph::instance().execute(Graph::End::kForced);
  count_copy_to_host();
  return memory().open(self).item();
}

/// A bridge takes torch's attention apart: sdp::SDPBackend::math.
void attention_choice(const c10::OperatorHandle& op, Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  torch::jit::push(*stack, int64_t{0});
}

}  // namespace

at::Tensor to_device(const at::Tensor& result) {
  at::Tensor device = at::detail::empty_strided_generic(result.sizes(), result.strides(), &allocator(),
                                                        c10::DispatchKeySet(kKey), result.scalar_type());
  if (result.numel() > 0) memory().open(device).copy_(result);
  Graph::instance().wrote(device);
  return device;
}

TORCH_LIBRARY_IMPL(aten, HPU, library) {
  using torch::CppFunction;
  library.impl("empty.memory_format", CppFunction::makeFromBoxedFunction<&empty>());
  library.impl("empty_strided", CppFunction::makeFromBoxedFunction<&empty_strided>());
  library.impl("resize_", CppFunction::makeFromBoxedFunction<&noted<&resize_>>());
  library.impl("set_.source_Storage_storage_offset", CppFunction::makeFromBoxedFunction<&noted<&set_storage>>());
  library.impl("set_.source_Tensor", &at::native::set_tensor_);
  library.impl("as_strided", CppFunction::makeFromBoxedFunction<&noted<&at::native::as_strided_tensorimpl>>());
  library.impl("view", CppFunction::makeFromBoxedFunction<&noted<&at::native::view>>());
  library.impl("_reshape_alias", CppFunction::makeFromBoxedFunction<&noted<&at::native::_reshape_alias>>());
  library.impl("copy_", &copy_);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("_fused_sdp_choice", CppFunction::makeFromBoxedFunction<&attention_choice>());

  // Torch would take these apart, into an empty result and another operator that fills it; a bridge does not.
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto key :
       {c10::DispatchKey::CompositeExplicitAutogradNonFunctional, c10::DispatchKey::CompositeExplicitAutograd}) {
    for (const c10::OperatorName& name : dispatcher.getRegistrationsForDispatchKey(key)) {
      const bool is_ours = dispatcher.findOp(name)->hasKernelForDispatchKey(kKey);
      if (is_native(name) && !is_ours) {
        library.impl(toString(name).c_str(), CppFunction::makeFromBoxedFunction<&by_the_cpu>());
      }
    }
  }
}

TORCH_LIBRARY_IMPL(_, HPU, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

}  // namespace fettle::gaudi_stand_in
