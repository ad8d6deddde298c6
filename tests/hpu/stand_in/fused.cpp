// SPDX-License-Identifier: Apache-2.0
/// The bridge's own operators, by the CPU in float32, and as strict about their arguments as a card's kernels.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/library.h>

#include <string>
#include <utility>
#include <vector>

#include "hpu/stand_in/counters.h"
#include "hpu/stand_in/device.h"
#include "hpu/stand_in/graph.h"
#include "hpu/stand_in/operators.h"
#include "hpu/stand_in/switches.h"

namespace fettle::gaudi_stand_in {
namespace {

using at::Tensor;
using torch::jit::Stack;
using Results = std::vector<Tensor>;

/// The arguments of one call, by their names in the schema; tensors as the CPU can read them.
class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, Stack* stack)
      : schema_(op.schema()), values_(torch::jit::pop(*stack, op.schema().arguments().size())) {}

  [[nodiscard]] bool has(const std::string& name) const {
    const auto index = schema_.argumentIndexWithName(name);
    return index.has_value() && !values_[*index].isNone();
  }
  [[nodiscard]] const c10::IValue& value(const std::string& name) const {
    return values_.at(schema_.argumentIndexWithName(name).value());
  }
  [[nodiscard]] Tensor tensor(const std::string& name) const { return open(value(name).toTensor()); }
  [[nodiscard]] std::vector<Tensor> tensors(const std::string& name) const {
    std::vector<Tensor> opened;
    for (const Tensor& tensor : value(name).toTensorVector()) opened.push_back(open(tensor));
    return opened;
  }
  [[nodiscard]] double number(const std::string& name) const { return value(name).toDouble(); }
  [[nodiscard]] int64_t integer(const std::string& name) const { return value(name).toInt(); }
  [[nodiscard]] bool flag(const std::string& name) const { return value(name).toBool(); }
  [[nodiscard]] std::string text(const std::string& name) const { return value(name).toStringRef(); }
  void require(bool holds, const char* what) const { TORCH_CHECK(holds, schema_.name(), " : ", what); }

 private:
  [[nodiscard]] Tensor open(const Tensor& tensor) const {
    require(tensor.defined() && tensor.device() == kDevice, "a tensor is not on the device");
    return memory().open(tensor);
  }

  const c10::FunctionSchema& schema_;
  std::vector<c10::IValue> values_;
};

template <Results (*compute)(const Arguments&)>
void kernel(const c10::OperatorHandle& op, Stack* stack) {
  count("fused:" + op.schema().name().substr(std::string("hpu::").size()));
  Graph::instance().add(op, *stack, Graph::Kind::kComputes);
  for (const Tensor& result : compute(Arguments(op, stack))) torch::jit::push(*stack, to_device(result));
}

bool is_float(const Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16 ||
         tensor.scalar_type() == at::kHalf;
}

// ---- Attention: q [B,H,S,D], or [B,K,G,S,D] with k and v [B,K,1,S,D].

void check_heads(const Arguments& in, const Tensor& q, const Tensor& k, const Tensor& v) {
  in.require(is_float(q) && q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
             "q, k and v have different types, or none that the kernel has");
  in.require(q.dim() >= 3 && q.dim() <= 5 && q.dim() == k.dim() && q.dim() == v.dim(), "q, k and v differ in rank");
  in.require(q.size(-1) == k.size(-1) && k.size(-2) == v.size(-2), "q, k and v do not fit each other");
  for (int64_t i = 0; i < q.dim() - 2; ++i) {
    in.require(k.size(i) == v.size(i) && (k.size(i) == q.size(i) || k.size(i) == 1), "heads do not fit each other");
  }
  const std::string mode = in.text("softmax_mode");
  in.require(mode == "none" || mode == "fast" || (mode == "fp32" && !switches().old_schemas), "unknown softmax_mode");
  in.require(!in.flag("is_causal") || q.size(-2) == k.size(-2), "is_causal with other lengths of q and k");
  in.require(!(in.flag("is_causal") && in.has("attention_mask")), "both a mask and is_causal");
}

Tensor scores(const Arguments& in, const Tensor& q, const Tensor& k) {
  Tensor scores = at::matmul(q.to(at::kFloat), k.to(at::kFloat).transpose(-2, -1)) * in.number("scale");
  if (in.has("attention_mask")) {
    const Tensor mask = in.tensor("attention_mask");
    in.require(mask.scalar_type() == at::kBool || mask.scalar_type() == q.scalar_type(), "a mask of another type");
    in.require(mask.dim() == q.dim() && at::is_expandable_to(mask.sizes(), scores.sizes()), "a mask of another shape");
    if (mask.scalar_type() != at::kBool) return scores + mask.to(at::kFloat);
    return scores.masked_fill(mask.logical_not(), -std::numeric_limits<float>::infinity());
  }
  if (!in.flag("is_causal")) return scores;
  const Tensor later = at::ones({q.size(-2), k.size(-2)}, at::kBool).triu(1);
  return scores.masked_fill(later, -std::numeric_limits<float>::infinity());
}

/// What the probabilities are multiplied with: the same for the same seed.
Tensor dropout_factors(at::IntArrayRef size, double p, int64_t seed) {
  return at::empty(size).bernoulli_(1 - p, at::detail::createCPUGenerator(seed)).div_(1 - p);
}

at::ScalarType type_of_linv(const Arguments& in, const Tensor& q) {
  return in.text("softmax_mode") == "fast" && q.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
}

Results sdpa_recomp_fwd(const Arguments& in) {
  const Tensor q = in.tensor("q");
  const Tensor k = in.tensor("k");
  const Tensor v = in.tensor("v");
  check_heads(in, q, k, v);
  const bool for_backward = in.flag("requires_backward");
  const std::string side = in.text("seq_padding_type");
  in.require(side == "left" || side == "right", "unknown seq_padding_type");
  in.require(!for_backward || in.text("softmax_mode") != "fast" || in.flag("is_causal"), "fast is for is_causal only");
  in.require(!in.has("valid_seq_len") && !in.has("sink"), "the stand-in has neither valid_seq_len nor sink");
  in.require(!in.has("window_size") || in.value("window_size").toIntVector() == std::vector<int64_t>({-1, -1}),
             "the stand-in has no windows");

  const Tensor all = scores(in, q, k);
  const Tensor m = all.amax(-1, true).to(q.scalar_type());
  const Tensor powers = (all - m.to(at::kFloat)).exp();
  const Tensor linv = powers.sum(-1, true).reciprocal().to(type_of_linv(in, q));
  Tensor probabilities = powers * linv.to(at::kFloat);
  Tensor seed = at::zeros({1}, at::kInt);
  if (const double p = in.number("p"); p > 0) {
    seed.random_(drawing_generator(c10::IValue()));
    probabilities = probabilities * dropout_factors(probabilities.sizes(), p, seed.item<int>());
  }
  const Tensor out = at::matmul(probabilities, v.to(at::kFloat)).to(q.scalar_type());
  if (for_backward) return {out, m, linv, seed};
  return {out, at::zeros({1}, m.options()), at::zeros({1}, linv.options()), at::zeros({1}, at::kInt)};
}

Results sdpa_recomp_bwd(const Arguments& in) {
  const Tensor q = in.tensor("q");
  const Tensor k = in.tensor("k");
  const Tensor v = in.tensor("v");
  const Tensor grad = in.tensor("grad");
  const Tensor out = in.tensor("fwd_out");
  const Tensor m = in.tensor("m");
  const Tensor linv = in.tensor("linv");
  check_heads(in, q, k, v);
  in.require(grad.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type() &&
                 m.scalar_type() == q.scalar_type() && linv.scalar_type() == type_of_linv(in, q),
             "grad, fwd_out, m or linv have another type than the forward gave");
  Tensor probabilities = scores(in, q, k);
  std::vector<int64_t> rows = probabilities.sizes().vec();
  rows.back() = 1;
  in.require(m.sizes() == rows && linv.sizes() == rows, "m or linv have another shape than the forward gave");
  rows.back() = v.size(-1);
  in.require(grad.sizes() == rows && out.sizes() == rows, "grad or fwd_out have another shape than the forward gave");

  probabilities = (probabilities - m.to(at::kFloat)).exp() * linv.to(at::kFloat);
  const Tensor float_grad = grad.to(at::kFloat);
  Tensor dropped = probabilities;
  Tensor d_probabilities = at::matmul(float_grad, v.to(at::kFloat).transpose(-2, -1));
  if (const double p = in.number("p"); p > 0) {
    in.require(in.has("seed"), "no seed");
    const Tensor factors = dropout_factors(probabilities.sizes(), p, in.tensor("seed").item<int>());
    dropped = probabilities * factors;
    d_probabilities = d_probabilities * factors;
  }
  const Tensor delta = (float_grad * out.to(at::kFloat)).sum(-1, true);
  const Tensor d_scores = probabilities * (d_probabilities - delta) * in.number("scale");
  const Tensor dq = at::matmul(d_scores, k.to(at::kFloat));
  const Tensor dk = at::matmul(d_scores.transpose(-2, -1), q.to(at::kFloat));
  const Tensor dv = at::matmul(dropped.transpose(-2, -1), float_grad);
  return {dq.to(q.scalar_type()), at::sum_to(dk, k.sizes()).to(k.scalar_type()),
          at::sum_to(dv, v.sizes()).to(v.scalar_type())};
}

// ---- Norm: results have the type that all arguments have, or float32.

Results rms_norm(const Arguments& in) {
  const Tensor x = in.tensor("data_in");
  const Tensor gamma = in.tensor("gamma");
  in.require(is_float(x) && is_float(gamma), "a type that the kernel has not");
  in.require(gamma.dim() == 1 && x.dim() >= 1 && gamma.size(0) == x.size(-1), "gamma does not fit data_in");
  const at::ScalarType type = x.scalar_type() == gamma.scalar_type() ? x.scalar_type() : at::kFloat;
  const Tensor wide = x.to(at::kFloat);
  const Tensor inverse = (wide.square().mean(-1, true) + in.number("epsilon")).rsqrt();
  return {(wide * inverse * gamma.to(at::kFloat)).to(type), inverse.to(type)};
}

Results rms_norm_backward(const Arguments& in) {
  const Tensor grad = in.tensor("grad_in");
  const Tensor x = in.tensor("data_in");
  const Tensor gamma = in.tensor("gamma");
  const Tensor inverse = in.tensor("inverse_rms");
  std::vector<int64_t> rows = x.sizes().vec();
  rows.back() = 1;
  in.require(grad.sizes() == x.sizes() && inverse.sizes() == rows && gamma.dim() == 1 && gamma.size(0) == x.size(-1),
             "grad_in, data_in, gamma and inverse_rms do not fit each other");
  in.require(in.integer("bwd_mode") == 0 || in.integer("bwd_mode") == 1, "unknown bwd_mode");
  const bool is_one_type = grad.scalar_type() == x.scalar_type() && gamma.scalar_type() == x.scalar_type() &&
                           inverse.scalar_type() == x.scalar_type();
  const at::ScalarType type = is_one_type ? x.scalar_type() : at::kFloat;

  const Tensor normed = x.to(at::kFloat) * inverse.to(at::kFloat);
  const Tensor scaled = grad.to(at::kFloat) * gamma.to(at::kFloat);
  const Tensor dx = inverse.to(at::kFloat) * (scaled - normed * (scaled * normed).mean(-1, true));
  const Tensor d_gamma = (grad.to(at::kFloat) * normed).reshape({-1, x.size(-1)}).sum(0);
  return {dx.to(type), d_gamma.to(type)};
}

// ---- Rotary positions: sine and cosine of the whole head's width.

/// The sine or cosine that goes with every element of `input`.
Tensor angles(const Arguments& in, const Tensor& input, const char* name) {
  Tensor table = in.tensor(name);
  in.require(is_float(input) && table.scalar_type() == input.scalar_type(), "sin, cos and input differ in type");
  if (in.has("position_ids")) {
    const Tensor positions = in.tensor("position_ids");
    in.require(input.dim() == 4 && table.dim() == 4 && table.size(0) == 1 && table.size(1) == 1 &&
                   table.size(3) == input.size(3),
               "with position_ids, input is [B,H,S,D] and sin and cos [1,1,positions,D]");
    in.require(positions.dim() == 2 && positions.size(1) == input.size(2) &&
                   (positions.size(0) == input.size(0) || positions.size(0) == 1),
               "position_ids are not [B,S]");
    table = table[0][0].index_select(0, positions.reshape(-1).to(at::kLong));
    return table.reshape({positions.size(0), 1, positions.size(1), input.size(3)}).to(at::kFloat);
  }
  in.require(table.dim() == input.dim() && table.size(-1) == input.size(-1) &&
                 at::is_expandable_to(table.sizes(), input.sizes()),
             "sin and cos do not fit input");
  return table.to(at::kFloat);
}

/// The other half of every pair: the halves of the head (mode 0), or neighbours (mode 1).
Tensor turned(const Tensor& x, int64_t mode) {
  const int64_t half = x.size(-1) / 2;
  if (mode == 0) return at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  const Tensor pairs = x.unflatten(-1, {half, 2});
  return at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1).flatten(-2);
}

/// A turn by the angles, or back by them.
Results rotated(const Arguments& in, const char* what, bool is_backward) {
  const Tensor x = in.tensor(what);
  const int64_t mode = in.integer("mode");
  in.require(mode == 0 || mode == 1, "unknown mode");
  in.require(in.integer("offset") == 0, "an offset");
  in.require(x.dim() >= 3 && x.size(-1) % 2 == 0, "heads of an odd width");
  const Tensor sin = angles(in, x, "sin");
  const Tensor cos = angles(in, x, "cos");
  const Tensor wide = x.to(at::kFloat);
  // The transpose of a quarter turn is the quarter turn the other way.
  const Tensor result = is_backward ? wide * cos - turned(wide * sin, mode) : wide * cos + turned(wide, mode) * sin;
  return {result.to(x.scalar_type())};
}
Results rotary(const Arguments& in) {
  return rotated(in, "input", false);
}
Results rotary_backward(const Arguments& in) {
  return rotated(in, "grad_in", true);
}

// ---- AdamW, with the bias corrections in neg_step_t, and 1 - learning rate * decay as the weight_decay.

double kept_share(const Arguments& in) {
  if (!in.value("weight_decay").isTensor()) return in.number("weight_decay");
  return in.flag("has_weight_decay") ? in.tensor("weight_decay").item<double>() : 1.0;
}

Results optimizer_adamw(const Arguments& in) {
  const std::vector<Tensor> gradients = in.tensors("gradient_vec");
  const std::vector<Tensor> weights = in.tensors("weight_vec");
  const std::vector<Tensor> means = in.tensors("exp_avg_vec");
  const std::vector<Tensor> squares = in.tensors("exp_avg_sq_vec");
  in.require(!weights.empty(), "can not process empty weight vector");
  in.require(gradients.size() == weights.size() && means.size() == weights.size() && squares.size() == weights.size(),
             "lists of different lengths");
  in.require(!in.has("exp_avg_scales") && !in.has("exp_avg_sq_scales"), "the stand-in has no scaled moments");
  const Tensor step = in.tensor("neg_step_t");
  in.require(step.numel() == 1 && step.scalar_type() == weights[0].scalar_type(),
             "neg_step_t does not fit the weights");
  const double beta1 = in.number("beta1");
  const double beta2 = in.number("beta2");
  for (size_t i = 0; i < weights.size(); ++i) {
    for (const Tensor& other : {gradients[i], means[i], squares[i]}) {
      in.require(other.sizes() == weights[i].sizes() && other.scalar_type() == weights[i].scalar_type(),
                 "a weight's gradient or moments have another shape or type");
    }
    const Tensor gradient = gradients[i].to(at::kFloat);
    const Tensor mean = means[i].to(at::kFloat) * beta1 + gradient * (1 - beta1);
    const Tensor square = squares[i].to(at::kFloat) * beta2 + gradient.square() * (1 - beta2);
    const Tensor change = mean / (square.sqrt() + in.number("epsilon")) * step.to(at::kFloat);
    means[i].copy_(mean);
    squares[i].copy_(square);
    weights[i].copy_(weights[i].to(at::kFloat) * kept_share(in) + change);
  }
  for (const char* list : {"weight_vec", "exp_avg_vec", "exp_avg_sq_vec"}) {
    for (const Tensor& tensor : in.value(list).toTensorVector()) Graph::instance().wrote(tensor);
  }
  return {};
}

// ---- Numbers of eight bits.

/// Gaudi 2 has no e4m3 beyond 240.
double largest(at::ScalarType type) {
  return type == at::kFloat8_e4m3fn ? 240.0 : 57344.0;
}

Tensor scale_or_one(const Arguments& in, const char* name) {
  return in.has(name) ? in.tensor(name).to(at::kFloat) : at::ones({});
}

bool is_fp8(at::ScalarType type) {
  return type == at::kFloat8_e4m3fn || type == at::kFloat8_e5m2;
}

Results cast_to_fp8(const Arguments& in) {
  const Tensor input = in.tensor("input");
  const at::ScalarType type = in.has("dtype") ? in.value("dtype").toScalarType() : at::kFloat8_e5m2;
  in.require(is_float(input) && is_fp8(type), "a type that the kernel has not");
  const Tensor wide = input.to(at::kFloat);
  const Tensor scaled = (wide * scale_or_one(in, "scale")).clamp(-largest(type), largest(type));
  return {scaled.to(type), in.flag("is_amax") ? wide.abs().amax() : at::zeros({})};
}

Results cast_from_fp8(const Arguments& in) {
  const Tensor input = in.tensor("input");
  in.require(is_fp8(input.scalar_type()), "a type that the kernel has not");
  return {(input.to(at::kFloat) * scale_or_one(in, "scale")).to(in.value("out_dtype").toScalarType())};
}

Results fp8_gemm(const Arguments& in) {
  Tensor a = in.tensor("A");
  Tensor b = in.tensor("B");
  in.require(is_fp8(a.scalar_type()) && is_fp8(b.scalar_type()), "a type that the kernel has not");
  a = a.to(at::kFloat) * scale_or_one(in, "A_scale_inv");
  b = b.to(at::kFloat) * scale_or_one(in, "B_scale_inv");
  if (in.flag("trans_A")) a = a.transpose(-2, -1);
  if (in.flag("trans_B")) b = b.transpose(-2, -1);
  in.require(a.size(-1) == b.size(-2), "A and B do not fit each other");
  Tensor result = at::matmul(a, b);
  if (in.has("bias")) result = result + in.tensor("bias").to(at::kFloat);
  if (in.flag("accumulate")) result = result + in.tensor("D").to(at::kFloat);
  return {result.to(in.value("out_dtype").toScalarType())};
}

template <Results (*compute)(const Arguments&)>
void define(torch::Library& library, torch::Library& kernels, const std::string& schema) {
  library.def(schema.c_str());
  kernels.impl(schema.substr(0, schema.find('(')).c_str(),
               torch::CppFunction::makeFromBoxedFunction<&kernel<compute>>());
}

void define_training(torch::Library& library, torch::Library& kernels) {
  const std::string since = switches().old_schemas ? "" : ", SymInt[] window_size=[-1, -1], Tensor? sink=None";
  define<&sdpa_recomp_fwd>(
      library, kernels,
      "sdpa_recomp_fwd(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, "
      "bool is_causal, bool requires_backward, str softmax_mode, Tensor? valid_seq_len, "
      "str seq_padding_type" +
          since + ") -> (Tensor, Tensor, Tensor, Tensor)");
  define<&sdpa_recomp_bwd>(library, kernels,
                           "sdpa_recomp_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? attention_mask, "
                           "Tensor m, Tensor linv, Tensor? seed, bool is_causal, float p, float scale, "
                           "str softmax_mode, Tensor fwd_out) -> (Tensor, Tensor, Tensor)");
  define<&rms_norm>(library, kernels, "rms_norm(Tensor data_in, Tensor gamma, float epsilon) -> (Tensor, Tensor)");
  define<&rms_norm_backward>(library, kernels,
                             "rms_norm_backward(Tensor grad_in, Tensor data_in, Tensor gamma, Tensor inverse_rms, "
                             "bool use_stages, int bwd_mode) -> (Tensor, Tensor)");
  define<&rotary>(library, kernels,
                  "rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, "
                  "int mode) -> Tensor");
  define<&rotary_backward>(library, kernels,
                           "rotary_pos_embedding_backward(Tensor grad_in, Tensor sin, Tensor cos, "
                           "Tensor? position_ids, int offset, int mode) -> Tensor");
  const std::string decay =
      switches().eager_adamw ? "Tensor weight_decay, bool has_weight_decay" : "float weight_decay";
  define<&optimizer_adamw>(library, kernels,
                           "optimizer_adamw(Tensor[] gradient_vec, Tensor(a!)[] weight_vec, "
                           "Tensor(b!)[] exp_avg_vec, Tensor(c!)[] exp_avg_sq_vec, Tensor neg_step_t, float beta1, "
                           "float beta2, float epsilon, " +
                               decay +
                               ", Tensor(d!)[]? exp_avg_scales=None, Tensor(e!)[]? exp_avg_sq_scales=None) -> ()");
}

void define_fp8(torch::Library& library, torch::Library& kernels) {
  define<&cast_to_fp8>(library, kernels,
                       "cast_to_fp8_v2(Tensor input, Tensor? scale=None, bool stochastic_rounding=False, "
                       "bool is_amax=False, ScalarType dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)");
  define<&cast_from_fp8>(library, kernels,
                         "cast_from_fp8(Tensor input, Tensor? scale, ScalarType out_dtype, "
                         "int[]? scale_shape=None) -> Tensor");
  define<&fp8_gemm>(library, kernels,
                    "fp8_gemm_v2(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, "
                    "Tensor? A_scale_inv=None, Tensor? B_scale_inv=None, Tensor? bias=None, bool accumulate=False, "
                    "int[]? B_scale_shape=None) -> Tensor");
}

/// Not TORCH_LIBRARY, because switches say which schemas there are.
const bool are_defined = [] {
  if (switches().no_fused_ops) return false;
  static torch::Library library(torch::Library::DEF, "hpu", std::nullopt, __FILE__, __LINE__);
  static torch::Library kernels(torch::Library::IMPL, "hpu", c10::DispatchKey::HPU, __FILE__, __LINE__);
  define_training(library, kernels);
  define_fp8(library, kernels);
  return true;
}();

}  // namespace
}  // namespace fettle::gaudi_stand_in
