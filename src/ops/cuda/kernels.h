// SPDX-License-Identifier: Apache-2.0
/// The CUDA kernels as a table of launches. Nothing of torch or CUDA is in it: the front doors compile without CUDA,
/// the kernels without torch, into libfettle_cuda.so, which is loaded where a GPU is asked for. Arrays are contiguous,
/// in the memory of the device that is current, of `type` where they are void; sizes may be 0. Arithmetic and rounding
/// are those of cpu/kernels.h.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fettle::ops::cuda {

enum class Type : int32_t { kFloat, kBFloat16 };

/// y = weight · cast(x · inverse_rms), row by row; inverse_rms [rows] is written for the backward.
struct RmsNorm {
  Type type;
  int64_t rows;
  int64_t columns;
  float eps;
  const void* x;
  const void* weight;
  void* y;
  float* inverse_rms;
};

/// dx from dy. d_weight [columns], if not null, is written by way of `partial` [weight_gradient_pieces, columns]; the
/// order of its sums depends on the sizes alone.
struct RmsNormGradient {
  Type type;
  int64_t rows;
  int64_t columns;
  const void* dy;
  const void* x;
  const void* weight;
  const float* inverse_rms;
  void* dx;
  float* partial;
  void* d_weight;
};
/// Enough pieces of the rows to fill a GPU, and at least 64 rows each.
inline int64_t weight_gradient_pieces(int64_t rows, int64_t columns) {
  constexpr int64_t kBlocks = 1024;
  constexpr int64_t kTile = 256;
  return std::max<int64_t>(1, std::min((rows + 63) / 64, kBlocks / std::max<int64_t>(1, columns / kTile)));
}

/// Rotates the first 2·half elements of `heads` heads of `head_dim` elements per token; sign -1 turns back. cos and
/// sin: [tokens, half].
struct Rotary {
  Type type;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t half;
  float sign;
  const void* x;
  const void* cos;
  const void* sin;
  void* y;
};

struct Swiglu {
  Type type;
  int64_t count;
  const void* gate;
  const void* up;
  void* y;
};
struct SwigluGradient {
  Type type;
  int64_t count;
  const void* dy;
  const void* gate;
  const void* up;
  void* d_gate;
  void* d_up;
};

/// losses[i] = log Σ exp(logits[i]) - logits[i][labels[i]]; with `write_gradient` each row of logits is overwritten by
/// softmax(row) - onehot(label). A row whose label is `ignored` has loss 0 and gradient 0, whatever its logits; one
/// whose label is neither that nor a column, NaN: nobody has read the labels before.
struct CrossEntropy {
  Type type;
  int64_t rows;
  int64_t columns;
  bool write_gradient;
  int64_t ignored;
  void* logits;
  const int64_t* labels;
  float* losses;
};

/// Values of quantized weights, in row-major order over the whole tensor; element i has the scale i / group. 4 bits:
/// its code is in byte i / 2, the even element's in the high half (as bitsandbytes), and its value codebook[code] ·
/// scale. 8 bits: the code is signed, its value code · scale.
struct Dequantize {
  Type type;  ///< of the values
  int32_t bits;
  int64_t count;
  int64_t group;
  const void* codes;
  const float* scales;
  float codebook[16];
  void* values;
};

/// Why a launch failed, in CUDA's words (never freed); null where it did not. What fails later, on the device, is
/// reported by whoever waits for it.
using Failure = const char*;
template <typename Arguments>
using Launch = Failure (*)(const Arguments& arguments, void* stream);

/// Changes with every struct above; a library of another version is refused.
inline constexpr uint64_t kKernelVersion = 1;

/// Each launches on a cudaStream_t and returns at once.
struct KernelTable {
  uint64_t version;
  Launch<RmsNorm> rms_norm;
  Launch<RmsNormGradient> rms_norm_backward;
  Launch<Rotary> rotary;
  Launch<Swiglu> swiglu;
  Launch<SwigluGradient> swiglu_backward;
  Launch<CrossEntropy> cross_entropy;
  Launch<Dequantize> dequantize;
};

/// What libfettle_cuda.so exports.
extern "C" const KernelTable* fettle_cuda_kernels();

}  // namespace fettle::ops::cuda
