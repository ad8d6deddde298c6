// SPDX-License-Identifier: Apache-2.0
/// The Gaudi bridge's fused kernels of single layers. Each has_… says whether x is on a card whose bridge has them in a
/// form that this program knows, and fused operations are on.
#pragma once

#include <ATen/core/Tensor.h>

namespace fettle::ops::hpu {

bool has_rms_norm(const at::Tensor& x);
/// ops::rms_norm by it. Contiguous x [..., C], weight [C].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

bool has_rotary(const at::Tensor& x);
/// ops::apply_rotary by it, over whole heads: x [T, N, D]; cos, sin [T, D/2].
at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace fettle::ops::hpu
