// SPDX-License-Identifier: Apache-2.0
#include "model/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/to_device.h"

namespace fettle::model {
namespace {

// base^(2i/dim) for every pair i, rounded at each step as transformers' float32 tensors are.
at::Tensor wavelengths(const at::Scalar& base, int64_t dim) {
  return at::pow(base, at::arange(0, dim, 2, at::kFloat) / dim);
}

// "NTK-aware" scaling: a longer document stretches the base. transformers computes the base in float32 here, because
// the length arrives as a tensor.
at::Scalar dynamic_base(const RopeSpec& rope, int64_t length) {
  const auto longest = static_cast<float>(std::max(length, rope.max_positions));
  const auto factor = static_cast<float>(rope.factor);
  const float stretch = factor * longest / static_cast<float>(rope.max_positions) - static_cast<float>(rope.factor - 1);
  const auto dim = static_cast<double>(rope.rotary_dim);
  return static_cast<float>(rope.theta) * std::pow(stretch, static_cast<float>(dim / (dim - 2)));
}

// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated.
at::Tensor llama3(const RopeSpec& rope, const at::Tensor& inverse) {
  const auto length = static_cast<double>(rope.original_max_positions);
  const at::Tensor wavelength = inverse.reciprocal() * (2 * std::numbers::pi);
  const at::Tensor is_long = wavelength > length / rope.low_freq_factor;
  const at::Tensor is_short = wavelength < length / rope.high_freq_factor;
  const at::Tensor scaled = at::where(is_long, inverse / rope.factor, inverse);
  const at::Tensor smooth =
      (wavelength.reciprocal() * length - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor between = (1 - smooth) * scaled / rope.factor + smooth * scaled;
  return at::where(is_long.logical_or(is_short), scaled, between);
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double yarn_attention_factor(const RopeSpec& rope) {
  if (rope.attention_factor.has_value()) {
    return *rope.attention_factor;
  }
  if (rope.mscale.has_value() && rope.mscale_all_dim.has_value()) {
    return yarn_mscale(rope.factor, *rope.mscale) / yarn_mscale(rope.factor, *rope.mscale_all_dim);
  }
  return yarn_mscale(rope.factor, 1.0);
}

// YaRN (arXiv 2309.00071): dimensions that turn often within the original length are kept, those that turn less than
// beta_slow times are divided by the factor, with a linear ramp between.
at::Tensor yarn(const RopeSpec& rope) {
  const auto dim = static_cast<double>(rope.rotary_dim);
  const auto dimension_turning = [&](double turns) {
    return dim * std::log(static_cast<double>(rope.original_max_positions) / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = dimension_turning(rope.beta_fast);
  double high = dimension_turning(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) {
    high += 0.001;  // as transformers: no division by zero
  }
  const at::Tensor ramp = ((at::arange(rope.rotary_dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  const at::Tensor keep = 1 - ramp;
  const at::Tensor wavelength = wavelengths(rope.theta, rope.rotary_dim);
  return (wavelength * rope.factor).reciprocal() * (1 - keep) + wavelength.reciprocal() * keep;
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeSpec& rope, int64_t length) {
  const auto plain = [&](const at::Scalar& base) { return wavelengths(base, rope.rotary_dim).reciprocal(); };
  switch (rope.kind) {
    case RopeKind::kDefault:
      return {plain(rope.theta)};
    case RopeKind::kLinear:
      return {plain(rope.theta) / rope.factor};
    case RopeKind::kDynamic:
      return {length > rope.max_positions ? plain(dynamic_base(rope, length)) : plain(rope.theta)};
    case RopeKind::kLlama3:
      return {llama3(rope, plain(rope.theta))};
    case RopeKind::kYarn:
      return {yarn(rope), yarn_attention_factor(rope)};
  }
  TORCH_INTERNAL_ASSERT(false, "unreachable rope kind");
}

RopeTable rope_table(const RopeSpec& rope, const at::Tensor& positions, const std::vector<int32_t>& cu_seqlens,
                     const RopeTarget& target) {
  // On a GPU: there a batch of 8,192 tokens takes microseconds, and 20 ms on the host, for which the GPU would wait.
  const at::Tensor there = ops::to_device(positions, target.device);
  const auto angles = [&](const at::Tensor& of, const RopeFrequencies& frequencies) {
    return of.to(at::kFloat).unsqueeze(1) * ops::to_device(frequencies.inverse, target.device);  // [T, rotary_dim/2]
  };
  at::Tensor all;
  RopeFrequencies frequencies = rope_frequencies(rope, 0);
  // Only documents beyond what the model was made for have frequencies of their own.
  const bool by_document = rope.kind == RopeKind::kDynamic && positions.max().item<int64_t>() + 1 > rope.max_positions;
  if (by_document) {
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
      const int64_t tokens = cu_seqlens[i + 1] - cu_seqlens[i];
      if (tokens == 0) continue;
      const int64_t length = positions[cu_seqlens[i + 1] - 1].item<int64_t>() + 1;
      parts.push_back(angles(there.narrow(0, cu_seqlens[i], tokens), rope_frequencies(rope, length)));
    }
    all = at::cat(parts);
  } else {
    all = angles(there, frequencies);
  }
  const double scale = frequencies.attention_scaling;
  return {(all.cos() * scale).to(target.dtype), (all.sin() * scale).to(target.dtype)};
}

}  // namespace fettle::model
