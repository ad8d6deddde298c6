// SPDX-License-Identifier: Apache-2.0
#include "ops/hpu/operator.h"

#include <fmt/format.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <sstream>
#include <utility>

#include "base/log.h"
#include "ops/dispatch.h"

namespace fettle::ops::hpu {
namespace {

bool is_same(const c10::Argument& one, const c10::Argument& other) {
  return one.name() == other.name() && *one.type() == *other.type();
}

bool accepts_calls_of(const c10::FunctionSchema& registered, const c10::FunctionSchema& known) {
  const auto& arguments = registered.arguments();
  if (arguments.size() < known.arguments().size() || registered.returns().size() != known.returns().size())
    return false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool fits = i < known.arguments().size() ? is_same(arguments[i], known.arguments()[i])
                                                   : arguments[i].default_value().has_value();
    if (!fits) return false;
  }
  return true;
}

}  // namespace

bool may_use_bridge(const at::Tensor& x) {
  return uses_fused_ops() && x.is_hpu() && detail::has_kernel_type(x);
}

Operator::Operator(const char* schema) {
  const c10::FunctionSchema known = torch::jit::parseSchema(schema);
  const auto found = c10::Dispatcher::singleton().findSchema({known.name(), known.overload_name()});
  if (!found) {
    log::info("{} is not in this release of the Gaudi software: plain operations take its place", known.name());
  } else if (!accepts_calls_of(found->schema(), known)) {
    std::ostringstream registered;
    registered << found->schema();
    log::warning("plain operations take the place of an operator that has other arguments than this program knows: {}",
                 registered.str());
  } else {
    handle_ = *found;
  }
}

std::vector<c10::IValue> Operator::call(std::vector<c10::IValue> arguments) const {
  const auto& all = handle_->schema().arguments();
  for (size_t i = arguments.size(); i < all.size(); ++i) arguments.push_back(*all[i].default_value());
  handle_->callBoxed(&arguments);
  return arguments;
}

}  // namespace fettle::ops::hpu
