// SPDX-License-Identifier: Apache-2.0
#include "ops/quantized_weight.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

#include "ops/cpu/quantized.h"
#include "ops/dispatch.h"
#include "ops/hpu/fp8.h"
#include "ops/to_device.h"

namespace fettle::ops {
namespace {

// bitsandbytes, functional.py: get_4bit_type.
constexpr std::array<float, 16> kNf4 = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};
constexpr std::array<float, 8> kFp4 = {0.0f, 0.0625f, 8.0f, 12.0f,
                                       4.0f, 6.0f,    2.0f, 3.0f};  // times 1/12, then negative

constexpr std::array<float, 16> fp4() {
  std::array<float, 16> values{};
  for (size_t code = 0; code < 8; ++code) {
    values[code] = kFp4[code] / 12.0f;
    values[8 + code] = -values[code];
  }
  return values;
}

constexpr std::array<float, 16> int4() {
  std::array<float, 16> values{};
  for (size_t code = 0; code < 16; ++code) values[code] = (static_cast<float>(code) - 8.0f) / 8.0f;
  return values;
}

bool has_eight_bits(WeightFormat format) {
  return format == WeightFormat::kInt8;
}

int64_t elements(const QuantizedWeight& weight) {
  return weight.rows * weight.columns;
}

// Blocks [begin, end) as elements.
struct Range {
  int64_t first;
  int64_t count;
};
Range elements_of(int64_t begin, int64_t end, int64_t all) {
  const int64_t first = begin * kQuantizationBlock;
  return {first, std::min(end * kQuantizationBlock, all) - first};
}

QuantizedWeight quantize_fp8(const at::Tensor& weight) {
  const at::Tensor wide = weight.contiguous().to(at::kFloat).flatten();
  const at::Tensor scale = wide.abs().amax().div_(kLargestFp8).clamp_min_(std::numeric_limits<float>::min());
  return {WeightFormat::kFp8, weight.size(0), weight.size(1), (wide / scale).to(at::kFloat8_e4m3fn), scale.view({1})};
}

/// [256, 2]: both values of each byte of codes. One look-up a byte: not every device shifts bits.
at::Tensor pairs(const std::array<float, 16>& values) {
  at::Tensor table = at::empty({256, 2}, at::kFloat);
  auto* to = table.mutable_data_ptr<float>();
  for (size_t byte = 0; byte < 256; ++byte) {
    to[2 * byte] = values[byte >> 4];
    to[2 * byte + 1] = values[byte & 15];
  }
  return table;
}

}  // namespace

std::string_view name(WeightFormat format) {
  constexpr std::array<std::string_view, 5> kNames{"int8", "int4", "nf4", "fp4", "fp8"};
  return kNames[static_cast<size_t>(format)];
}

const std::array<float, 16>& codebook(WeightFormat format) {
  static constexpr std::array<float, 16> kFp4Codes = fp4();
  static constexpr std::array<float, 16> kInt4Codes = int4();
  TORCH_CHECK(!has_eight_bits(format) && format != WeightFormat::kFp8, "codebook: ", name(format), " has none");
  if (format == WeightFormat::kInt4) return kInt4Codes;
  return format == WeightFormat::kNf4 ? kNf4 : kFp4Codes;
}

QuantizedWeight quantize(const at::Tensor& weight, WeightFormat format) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_cpu() &&
                  (weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16),
              "quantize: a float32 or bfloat16 matrix, not ", weight.sizes());
  if (format == WeightFormat::kFp8) return quantize_fp8(weight);
  const at::Tensor from = weight.contiguous();
  const int64_t all = weight.numel();
  const int64_t blocks = (all + kQuantizationBlock - 1) / kQuantizationBlock;
  const bool wide = has_eight_bits(format);
  QuantizedWeight result{format, weight.size(0), weight.size(1),
                         at::empty({wide ? all : (all + 1) / 2}, wide ? at::kChar : at::kByte),
                         at::empty({blocks}, at::kFloat)};
  with_element_type(from, [&]<typename T>(T) {
    const T* values = from.const_data_ptr<T>();
    float* scales = result.scales.mutable_data_ptr<float>();
    parallel_rows(blocks, kQuantizationBlock, [&](int64_t begin, int64_t end) {
      const auto [first, count] = elements_of(begin, end, all);
      if (wide) {
        cpu::quantize_8bit(values + first, result.codes.mutable_data_ptr<int8_t>() + first, scales + begin, count);
      } else {
        const cpu::FourBits format_of{codebook(format), /*signed_scale=*/format == WeightFormat::kInt4};
        cpu::quantize_4bit(values + first, result.codes.mutable_data_ptr<uint8_t>() + first / 2, scales + begin,
                           format_of, count);
      }
    });
  });
  return result;
}

at::Tensor dequantize(const QuantizedWeight& weight, at::ScalarType type) {
  if (weight.format == WeightFormat::kFp8) {
    return hpu::has_fp8(weight.scales) ? hpu::fp8_dense(weight, type) : composite::dequantize(weight, type);
  }
  at::Tensor to = at::empty({weight.rows, weight.columns}, weight.scales.options().dtype(type));
  if (has_cuda_kernel(to)) {
    cuda::Dequantize arguments{.type = kernel_type(to),
                               .bits = has_eight_bits(weight.format) ? 8 : 4,
                               .count = elements(weight),
                               .group = kQuantizationBlock,
                               .codes = weight.codes.const_data_ptr(),
                               .scales = weight.scales.const_data_ptr<float>(),
                               .codebook = {},
                               .values = to.mutable_data_ptr()};
    if (arguments.bits == 4) std::ranges::copy(codebook(weight.format), arguments.codebook);
    launch(&cuda::KernelTable::dequantize, to, arguments);
    return to;
  }
  if (!has_cpu_kernel(to)) return composite::dequantize(weight, type);
  with_element_type(to, [&]<typename T>(T) {
    T* values = to.mutable_data_ptr<T>();
    const float* scales = weight.scales.const_data_ptr<float>();
    parallel_rows(weight.scales.size(0), kQuantizationBlock, [&](int64_t begin, int64_t end) {
      const auto [first, count] = elements_of(begin, end, elements(weight));
      if (has_eight_bits(weight.format)) {
        cpu::dequantize_8bit(weight.codes.const_data_ptr<int8_t>() + first, scales + begin, values + first, count);
      } else {
        cpu::dequantize_4bit(weight.codes.const_data_ptr<uint8_t>() + first / 2, scales + begin, values + first,
                             codebook(weight.format), count);
      }
    });
  });
  return to;
}

at::Tensor composite::dequantize(const QuantizedWeight& weight, at::ScalarType type) {
  at::Tensor values;
  if (weight.format == WeightFormat::kFp8) {
    return (weight.codes.to(at::kFloat) * weight.scales).to(type).view({weight.rows, weight.columns});
  }
  if (has_eight_bits(weight.format)) {
    values = weight.codes.to(at::kFloat);
  } else {
    const at::Tensor table = to_device(pairs(codebook(weight.format)), weight.scales.device());
    values = table.index_select(0, weight.codes.to(at::kInt)).flatten().narrow(0, 0, elements(weight));
  }
  const at::Tensor scales = weight.scales.repeat_interleave(kQuantizationBlock).narrow(0, 0, elements(weight));
  return (values * scales).to(type).view({weight.rows, weight.columns});
}

}  // namespace fettle::ops
