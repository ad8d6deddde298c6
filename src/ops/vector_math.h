// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fettle::ops {

/// Calls each function of libtorch that MKL computes (cosine, exponential, root, …) once, on one number. Call it before
/// threads compute.
///
/// MKL up to 2024 chooses a function's kernel at its first call. Where two threads share that call, one may compute its
/// share with another kernel, of 12 bits: the cosines of a run's first batch were wrong by 1.5e-4 in one of 200 runs on
/// a busy machine (pytorch/pytorch#188792).
void settle_vector_math();

}  // namespace fettle::ops
