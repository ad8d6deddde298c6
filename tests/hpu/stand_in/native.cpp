// SPDX-License-Identifier: Apache-2.0
#include "hpu/stand_in/native.h"

#include <set>
#include <sstream>
#include <string>

#include "hpu/stand_in/switches.h"

namespace fettle::gaudi_stand_in {
namespace {

// What Gaudi's bridge 1.19.0 has kernels for (scripts/hpu_op.yaml of HabanaAI/gaudi-pytorch-bridge at 5a56187e),
// without what no trainer of language models calls (pictures, rare functions) and without what operators.cpp has of its
// own.
constexpr const char* kNative =
    "_aminmax _aminmax.dim _foreach_abs _foreach_abs_ _foreach_add.List _foreach_add.Scalar _foreach_add.ScalarList "
    "_foreach_add.Tensor _foreach_add_.List _foreach_add_.Scalar _foreach_add_.ScalarList _foreach_add_.Tensor "
    "_foreach_addcdiv.Scalar _foreach_addcdiv.ScalarList _foreach_addcdiv.Tensor _foreach_addcdiv_.Scalar "
    "_foreach_addcdiv_.ScalarList _foreach_addcdiv_.Tensor _foreach_addcmul.Scalar _foreach_addcmul.ScalarList "
    "_foreach_addcmul.Tensor _foreach_addcmul_.Scalar _foreach_addcmul_.ScalarList _foreach_addcmul_.Tensor "
    "_foreach_ceil _foreach_ceil_ _foreach_clamp_max.List _foreach_clamp_max.Scalar _foreach_clamp_max.ScalarList "
    "_foreach_clamp_max_.List _foreach_clamp_max_.Scalar _foreach_clamp_max_.ScalarList _foreach_clamp_min.List "
    "_foreach_clamp_min.Scalar _foreach_clamp_min.ScalarList _foreach_clamp_min_.List _foreach_clamp_min_.Scalar "
    "_foreach_clamp_min_.ScalarList _foreach_cos _foreach_cos_ _foreach_div.List _foreach_div.Scalar "
    "_foreach_div.ScalarList _foreach_div.Tensor _foreach_div_.List _foreach_div_.Scalar _foreach_div_.ScalarList "
    "_foreach_div_.Tensor _foreach_erf _foreach_erf_ _foreach_erfc _foreach_erfc_ _foreach_exp _foreach_exp_ "
    "_foreach_expm1 _foreach_expm1_ _foreach_floor _foreach_floor_ _foreach_frac _foreach_frac_ _foreach_lerp.List "
    "_foreach_lerp.Scalar _foreach_lerp_.List _foreach_lerp_.Scalar _foreach_log _foreach_log10 _foreach_log10_ "
    "_foreach_log1p _foreach_log1p_ _foreach_log2 _foreach_log2_ _foreach_log_ _foreach_maximum.List "
    "_foreach_maximum.Scalar _foreach_maximum.ScalarList _foreach_maximum_.List _foreach_maximum_.Scalar "
    "_foreach_maximum_.ScalarList _foreach_minimum.List _foreach_minimum.Scalar _foreach_minimum.ScalarList "
    "_foreach_minimum_.List _foreach_minimum_.Scalar _foreach_minimum_.ScalarList _foreach_mul.List "
    "_foreach_mul.Scalar _foreach_mul.ScalarList _foreach_mul.Tensor _foreach_mul_.List _foreach_mul_.Scalar "
    "_foreach_mul_.ScalarList _foreach_mul_.Tensor _foreach_neg _foreach_neg_ _foreach_pow.List _foreach_pow.Scalar "
    "_foreach_pow.ScalarAndTensor _foreach_pow.ScalarList _foreach_pow_.List _foreach_pow_.Scalar "
    "_foreach_pow_.ScalarList _foreach_reciprocal _foreach_reciprocal_ _foreach_round _foreach_round_ "
    "_foreach_sigmoid _foreach_sigmoid_ _foreach_sign _foreach_sign_ _foreach_sin _foreach_sin_ _foreach_sqrt "
    "_foreach_sqrt_ _foreach_sub.List _foreach_sub.Scalar _foreach_sub.ScalarList _foreach_sub_.List "
    "_foreach_sub_.Scalar _foreach_sub_.ScalarList _foreach_tan _foreach_tan_ _foreach_tanh _foreach_tanh_ "
    "_foreach_trunc _foreach_trunc_ _foreach_zero_ _fused_dropout _index_put_impl_ _log_softmax _log_softmax.out "
    "_log_softmax_backward_data _log_softmax_backward_data.out _logcumsumexp _logcumsumexp.out _masked_scale _softmax "
    "_softmax.out _softmax_backward_data _softmax_backward_data.out _unique _unique2 _unsafe_view abs abs.out abs_ "
    "add.Scalar add.Scalar_out add.Tensor add.out add_.Scalar add_.Tensor addcdiv addcdiv.out addcdiv_ addcmul "
    "addcmul.out addcmul_ addmm addmm.out addmm_ addmv addmv.out addmv_ alias all all.all_out all.dim all.dims "
    "all.dims_out all.out amax amax.out amin amin.out aminmax aminmax.out any any.all_out any.dim any.dims "
    "any.dims_out any.out arange arange.start arange.start_out arange.start_step argmax argmax.out argmin argmin.out "
    "as_strided_ baddbmm baddbmm.out baddbmm_ bernoulli bernoulli.float_out bernoulli.out bernoulli_.Tensor "
    "bernoulli_.float binary_cross_entropy binary_cross_entropy.out binary_cross_entropy_backward "
    "binary_cross_entropy_backward.grad_input bincount bitwise_and.Scalar bitwise_and.Tensor bitwise_and.Tensor_out "
    "bitwise_and_.Tensor bitwise_not bitwise_not.out bitwise_not_ bitwise_or.Scalar bitwise_or.Tensor "
    "bitwise_or.Tensor_out bitwise_or_.Tensor bitwise_xor.Scalar bitwise_xor.Tensor bitwise_xor.Tensor_out "
    "bitwise_xor_.Tensor bmm bmm.out bucketize.Scalar bucketize.Tensor bucketize.Tensor_out cat cat.out ceil ceil.out "
    "ceil_ clamp clamp.Tensor clamp.Tensor_out clamp.out clamp_ clamp_.Tensor clamp_max clamp_max.Tensor "
    "clamp_max.Tensor_out clamp_max.out clamp_max_ clamp_max_.Tensor clamp_min clamp_min.Tensor clamp_min.Tensor_out "
    "clamp_min.out clamp_min_ clamp_min_.Tensor clone constant_pad_nd cos cos.out cos_ count_nonzero "
    "count_nonzero.dim_IntList cumsum cumsum.out cumsum_ diag.out div.Scalar div.Scalar_mode div.Scalar_mode_out "
    "div.Scalar_out div.Tensor div.Tensor_mode div.out div.out_mode div_.Scalar div_.Scalar_mode div_.Tensor "
    "div_.Tensor_mode dot dot.out elu elu.out elu_ elu_backward elu_backward.grad_input embedding "
    "embedding_dense_backward eq.Scalar eq.Scalar_out eq.Tensor eq.Tensor_out eq_.Scalar eq_.Tensor equal erf erf.out "
    "erf_ erfc erfc.out erfc_ erfinv erfinv.out erfinv_ exp exp.out exp2 exp2.out exp2_ exp_ expand expm1 expm1.out "
    "expm1_ eye.m_out eye.out fill.Scalar fill.Scalar_out fill.Tensor_out fill_.Scalar fill_.Tensor flip floor "
    "floor.out floor_ floor_divide floor_divide.Scalar floor_divide.Scalar_out floor_divide.out floor_divide_.Tensor "
    "fmax fmax.out fmin fmin.out fmod.Scalar fmod.Scalar_out fmod.Tensor fmod.Tensor_out fmod_.Scalar fmod_.Tensor "
    "frac frac.out frac_ gather gather.out ge.Scalar ge.Scalar_out ge.Tensor ge.Tensor_out ge_.Scalar ge_.Tensor gelu "
    "gelu.out gelu_ gelu_backward gelu_backward.grad_input glu glu.out glu_backward glu_backward.grad_input gt.Scalar "
    "gt.Scalar_out gt.Tensor gt.Tensor_out gt_.Scalar gt_.Tensor huber_loss huber_loss.out huber_loss_backward "
    "huber_loss_backward.out index.Tensor index.Tensor_out index_add.out index_add_ index_copy index_copy.out "
    "index_copy_ index_fill.int_Scalar index_fill_.int_Scalar index_fill_.int_Tensor index_reduce index_reduce.out "
    "index_select index_select.out isfinite isin.Scalar_Tensor isin.Scalar_Tensor_out isin.Tensor_Scalar "
    "isin.Tensor_Scalar_out isin.Tensor_Tensor isin.Tensor_Tensor_out isinf isinf.out isnan kl_div le.Scalar "
    "le.Scalar_out le.Tensor le.Tensor_out le_.Scalar le_.Tensor leaky_relu leaky_relu.out leaky_relu_ "
    "leaky_relu_backward leaky_relu_backward.grad_input lerp.Scalar lerp.Scalar_out lerp.Tensor lerp.Tensor_out "
    "lerp_.Scalar lerp_.Tensor lift_fresh_copy linalg_vector_norm linalg_vector_norm.out linspace.Scalar_Tensor "
    "linspace.Tensor_Scalar linspace.out log log.out log10 log10.out log10_ log1p log1p.out log1p_ log2 log2.out "
    "log2_ log_ log_sigmoid_backward log_sigmoid_backward.grad_input log_sigmoid_forward log_sigmoid_forward.output "
    "logaddexp logaddexp.out logaddexp2 logaddexp2.out logcumsumexp logcumsumexp.out logical_and logical_and.out "
    "logical_and_ logical_not logical_not.out logical_not_ logical_or logical_or.out logical_or_ logical_xor "
    "logical_xor.out logical_xor_ lt.Scalar lt.Scalar_out lt.Tensor lt.Tensor_out lt_.Scalar lt_.Tensor "
    "masked_fill.Scalar masked_fill.Tensor masked_fill_.Scalar masked_fill_.Tensor masked_scatter masked_scatter_ "
    "masked_select masked_select.out max max.dim max.dim_max maximum maximum.out mean mean.dim mean.out min min.dim "
    "min.dim_min minimum minimum.out mm mm.out mse_loss mse_loss.out mse_loss_backward mse_loss_backward.grad_input "
    "mul.Scalar mul.Scalar_out mul.Tensor mul.out mul_.Scalar mul_.Tensor multinomial multinomial.out mv mv.out "
    "nan_to_num nan_to_num.out nan_to_num_ nansum nansum.out native_dropout native_dropout_backward native_layer_norm "
    "native_layer_norm_backward ne.Scalar ne.Scalar_out ne.Tensor ne.Tensor_out ne_.Scalar ne_.Tensor neg neg.out "
    "neg_ new_zeros nll_loss_backward nll_loss_backward.grad_input nll_loss_forward nll_loss_forward.output nonzero "
    "nonzero.out norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype norm.dtype_out norm.out "
    "normal.Tensor_Tensor normal.Tensor_Tensor_out normal.Tensor_float normal.Tensor_float_out normal.float_Tensor "
    "normal.float_Tensor_out normal.float_float normal_ one_hot permute pow.Scalar pow.Scalar_out pow.Tensor_Scalar "
    "pow.Tensor_Scalar_out pow.Tensor_Tensor pow.Tensor_Tensor_out pow_.Scalar pow_.Tensor prod prod.dim_int "
    "prod.int_out random_ random_.from random_.to randperm randperm.generator randperm.generator_out reciprocal "
    "reciprocal.out reciprocal_ relu relu.out relu_ remainder.Scalar remainder.Scalar_Tensor remainder.Scalar_out "
    "remainder.Tensor remainder.Tensor_out remainder_.Scalar remainder_.Tensor repeat repeat_interleave.Tensor roll "
    "round round.decimals round.decimals_out round.out round_ round_.decimals rsqrt rsqrt.out rsqrt_ rsub.Scalar "
    "rsub.Tensor scalar_tensor scatter.reduce scatter.reduce_out scatter.src scatter.src_out scatter.value "
    "scatter.value_out scatter.value_reduce scatter.value_reduce_out scatter_.src scatter_.value scatter_add "
    "scatter_add.out scatter_add_ scatter_reduce.two scatter_reduce.two_out scatter_reduce_.two searchsorted.Scalar "
    "searchsorted.Scalar_out searchsorted.Tensor searchsorted.Tensor_out select.int select_backward sigmoid "
    "sigmoid.out sigmoid_ sigmoid_backward sigmoid_backward.grad_input sign sign.out sign_ silu silu.out silu_ "
    "silu_backward.grad_input sin sin.out sin_ slice.Tensor slice_backward smooth_l1_loss smooth_l1_loss.out "
    "smooth_l1_loss_backward smooth_l1_loss_backward.grad_input softplus softplus.out softplus_backward "
    "softplus_backward.grad_input sort sort.stable sort.values_stable split.Tensor split_with_sizes sqrt sqrt.out "
    "sqrt_ squeeze squeeze.dim squeeze.dims squeeze_ squeeze_.dim std.correction std.correction_out "
    "std_mean.correction sub.Scalar sub.Scalar_out sub.Tensor sub.out sub_.Scalar sub_.Tensor sum sum.IntList_out "
    "sum.dim_IntList t take take.out tan tan.out tan_ tanh tanh.out tanh_ tanh_backward tanh_backward.grad_input "
    "threshold threshold.out threshold_ threshold_backward threshold_backward.grad_input topk topk.values "
    "transpose.int tril tril.out tril_ tril_indices triu triu.out triu_ triu_indices trunc trunc.out trunc_ "
    "unbind.int uniform_ unique_dim unsqueeze unsqueeze_ var.correction var.correction_out var_mean "
    "var_mean.correction view.dtype where.self where.self_out zero_ ";
// What bridges of 1.24 have besides (the part of the same file that could be read).
constexpr const char* kNativeSince = "_fused_adamw_ _fused_adam_ _fused_adam_.tensor_lr _safe_softmax";

void add_names(std::set<std::string>& names, const std::string& list) {
  std::istringstream words(list);
  for (std::string word; words >> word;) names.insert("aten::" + word);
}

std::set<std::string> native_names() {
  std::set<std::string> names;
  add_names(names, kNative);
  if (!switches().old_schemas) add_names(names, kNativeSince);
  return names;
}

}  // namespace

bool is_native(const c10::OperatorName& name) {
  static const auto* names = new std::set<std::string>(native_names());
  return names->contains(toString(name));
}

}  // namespace fettle::gaudi_stand_in
