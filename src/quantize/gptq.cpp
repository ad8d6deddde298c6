// SPDX-License-Identifier: Apache-2.0
#include "quantize/gptq.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/index.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/outer.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "ops/dispatch.h"
#include "quantize/gptq_kernel.h"
#include "quantize/range_search.h"

namespace fettle::quantize {
namespace {

/// The inverse of a lower triangular matrix, in its place.
void invert_lower(const at::Tensor& lower) {
  constexpr int64_t kBlock = 512;
  for (int64_t first = 0; first < lower.size(0); first += kBlock) {
    const int64_t count = std::min(kBlock, lower.size(0) - first);
    const at::Tensor rows = lower.narrow(0, first, count);
    const at::Tensor diagonal = rows.narrow(1, first, count);
    const at::Tensor inverse = at::linalg_solve_triangular(diagonal, at::eye(count, lower.options()), /*upper=*/false);
    const at::Tensor left = rows.narrow(1, 0, first);
    left.copy_(at::mm(at::mm(inverse, left), lower.narrow(0, 0, first).narrow(1, 0, first)).neg_());
    diagonal.copy_(inverse);
  }
}

/// L^-1, where L·L^T is the matrix; in the matrix's place. False if it is not positive definite.
bool replace_by_inverse_factor(const at::Tensor& matrix) {
  const at::Tensor by_columns = matrix.t();  // the same matrix, as LAPACK takes it
  at::Tensor lower = by_columns;
  at::Tensor info = at::empty({}, matrix.options().dtype(at::kInt));
  at::linalg_cholesky_ex_out(lower, info, by_columns);
  if (info.item<int32_t>() != 0) return false;
  invert_lower(lower);
  return lower.isfinite().all().item<bool>();
}

/// Of the damped Hessian, rows and columns in `order`.
at::Tensor damped_inverse_factor(const at::Tensor& hessian, const at::Tensor& diagonal, const at::Tensor& order,
                                 double damp_percent) {
  constexpr int kTries = 4;
  const double mean = diagonal.mean().item<double>();
  for (int tries = 0; std::isfinite(mean) && tries < kTries; ++tries, damp_percent *= 10) {
    at::Tensor damped = at::index(hessian, {order.unsqueeze(1), order});
    damped.diagonal().copy_(diagonal.index_select(0, order) + damp_percent * mean);
    if (replace_by_inverse_factor(damped)) return damped.t();
    log::warning("the Hessian of a layer cannot be inverted with damp_percent {}; trying {}", damp_percent,
                 10 * damp_percent);
  }
  throw Error(ExitCode::kDiverged, "GPTQ: the Hessian of a layer cannot be inverted",
              "the layer's inputs on the calibration records are not finite or all equal: check the model and the "
              "records, or use woq_algo: RTN");
}

/// Everything in the order in which columns are rounded.
struct Problem {
  at::Tensor weight;   // float32 [O, C], changed
  at::Tensor inverse;  // [C, C]: L^-1 of the damped Hessian, its columns in the opposite order
  at::Tensor groups;   // int32 [C]: the group of each column
  at::Tensor order;    // int64 [C]: the input of each column; undefined: as they are
  Ranges ranges;       // [O, G]; not yet known with finds_ranges
  bool finds_ranges = true;
  int64_t block = 0;

  /// Rows of U, from their diagonal on: [count, C - first]. U is upper and U^T·U the inverse of the damped Hessian: U
  /// is L^-1 read backwards.
  [[nodiscard]] at::Tensor factor(int64_t first, int64_t count) const {
    const int64_t columns = inverse.size(0) - first;
    return inverse.narrow(0, columns - count, count).narrow(1, 0, columns).flip({0, 1}).contiguous();
  }
};

/// So that a group's columns have the errors of all columns before it when its range is found, whatever the block.
int64_t aligned_block(int64_t block, int64_t group, int64_t columns) {
  if (group <= block) return block / group * group;
  return group % block == 0 || group == columns ? block : group;
}

Problem prepare(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme, const GptqOptions& options) {
  const int64_t columns = weight.size(1);
  const int64_t group = scheme.group_of(columns);
  Problem problem{.weight = weight.clone(), .inverse = {}, .groups = {}, .order = {}, .ranges = {}};
  const at::Tensor unused = hessian.diagonal() == 0;
  const at::Tensor diagonal = hessian.diagonal().masked_fill(unused, 1);
  problem.weight.masked_fill_(unused.unsqueeze(0), 0);
  const at::Tensor inputs = at::arange(columns, weight.options().dtype(at::kLong));
  problem.finds_ranges = !options.static_groups && group != columns;
  if (problem.finds_ranges) {
    problem.ranges.scales = at::empty({weight.size(0), columns / group}, weight.options());
    problem.ranges.zeros = at::empty({weight.size(0), columns / group}, weight.options());
  } else {
    problem.ranges =
        options.clip ? search_ranges(problem.weight, hessian, scheme) : find_ranges(problem.weight, scheme);
  }
  if (options.act_order) {
    problem.order = diagonal.argsort(/*dim=*/0, /*descending=*/true);
    problem.weight = problem.weight.index_select(1, problem.order);
  }
  const at::Tensor order = options.act_order ? problem.order : inputs;
  problem.groups = (options.static_groups ? order : inputs).div(group, "floor").to(at::kInt);
  problem.inverse = damped_inverse_factor(hessian, diagonal, order.flip(0), options.damp_percent);
  problem.block = aligned_block(std::min(options.block_size, columns), group, columns);
  return problem;
}

/// Back to the order of the inputs.
RoundedWeight finish(Problem problem, at::Tensor codes) {
  if (!problem.order.defined()) return {std::move(codes), std::move(problem.ranges), {}};
  const at::Tensor place = problem.order.argsort();
  at::Tensor groups = problem.finds_ranges ? problem.groups.index_select(0, place) : at::Tensor();
  return {codes.index_select(1, place), std::move(problem.ranges), std::move(groups)};
}

/// rounding.cpp's storable, of one scale.
template <typename T>
float storable(float scale) {
  return static_cast<float>(static_cast<T>(std::max(scale, smallest_scale(c10::CppTypeToScalarType<T>::value))));
}

float (*storable_as(at::ScalarType type))(float) {
  if (type == at::kHalf) return storable<c10::Half>;
  return type == at::kBFloat16 ? storable<c10::BFloat16> : storable<float>;
}

void round_block(const Problem& problem, const cpu::GptqBlock& block, const at::Tensor& codes,
                 const at::Tensor& errors) {
  const int64_t groups = problem.ranges.scales.size(1);
  auto* weight = problem.weight.mutable_data_ptr<float>();
  auto* scales = problem.ranges.scales.mutable_data_ptr<float>();
  auto* zeros = problem.ranges.zeros.mutable_data_ptr<float>();
  auto* to_codes = codes.mutable_data_ptr<uint8_t>();
  auto* to_errors = errors.mutable_data_ptr<float>();
  at::parallel_for(0, problem.weight.size(0), 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      cpu::gptq_block(block, {.weight = weight + row * block.columns,
                              .scales = scales + row * groups,
                              .zeros = zeros + row * groups,
                              .codes = to_codes + row * block.columns,
                              .errors = to_errors + row * block.count});
    }
  });
}

}  // namespace

RoundedWeight gptq(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                   const GptqOptions& options) {
  if (!ops::has_cpu_kernel(weight)) return composite::gptq(weight, hessian, scheme, options);
  Problem problem = prepare(weight, hessian, scheme, options);
  problem.weight = problem.weight.contiguous();
  const int64_t columns = weight.size(1);
  at::Tensor codes = at::empty(weight.sizes(), at::kByte);
  for (int64_t first = 0; first < columns; first += problem.block) {
    const int64_t count = std::min(problem.block, columns - first);
    const at::Tensor factor = problem.factor(first, count);
    const at::Tensor within = factor.narrow(1, 0, count).contiguous();
    const at::Tensor errors = at::empty({weight.size(0), count}, at::kFloat);
    round_block(problem,
                {.first = first,
                 .count = count,
                 .columns = columns,
                 .group = scheme.group_of(columns),
                 .factor = within.const_data_ptr<float>(),
                 .groups = problem.groups.const_data_ptr<int32_t>(),
                 .finds_ranges = problem.finds_ranges,
                 .symmetric = scheme.symmetric,
                 .bits = scheme.bits,
                 .lowest_zero = scheme.lowest_zero,
                 .storable = storable_as(scheme.scale_type)},
                codes, errors);
    const int64_t next = first + count;
    if (next < columns) {
      problem.weight.narrow(1, next, columns - next).addmm_(errors, factor.narrow(1, count, columns - next), 1, -1);
    }
  }
  return finish(std::move(problem), std::move(codes));
}

RoundedWeight composite::gptq(const at::Tensor& weight, const at::Tensor& hessian, const Scheme& scheme,
                              const GptqOptions& options) {
  Problem problem = prepare(weight, hessian, scheme, options);
  const int64_t columns = weight.size(1);
  const int64_t group = scheme.group_of(columns);
  const at::Tensor groups = problem.groups.cpu();
  at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(at::kByte));
  for (int64_t column = 0; column < columns; ++column) {
    const int64_t of = groups[column].item<int64_t>();
    if (problem.finds_ranges && column % group == 0) {
      Scheme row = scheme;
      row.group = -1;
      const Ranges found = find_ranges(problem.weight.narrow(1, column, group), row);
      problem.ranges.scales.narrow(1, of, 1).copy_(found.scales);
      problem.ranges.zeros.narrow(1, of, 1).copy_(found.zeros);
    }
    const at::Tensor scale = problem.ranges.scales.select(1, of);
    const at::Tensor zero = problem.ranges.zeros.select(1, of);
    const at::Tensor now = problem.weight.select(1, column);
    const at::Tensor code = (now / scale).round_().add_(zero).clamp_(0, scheme.largest_code());
    codes.select(1, column).copy_(code);
    const at::Tensor factor = problem.factor(column, 1)[0];
    const at::Tensor error = (now - (code - zero) * scale) / factor[0];
    const int64_t rest = columns - column - 1;
    problem.weight.narrow(1, column + 1, rest).sub_(at::outer(error, factor.narrow(0, 1, rest)));
  }
  return finish(std::move(problem), std::move(codes));
}

}  // namespace fettle::quantize
