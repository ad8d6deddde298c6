// SPDX-License-Identifier: Apache-2.0
/// Weights of whole numbers with a scale and a zero for each group: the packing undone, products against float64 and
/// against their twin, and inside lora_linear.
#include "ops/grouped_weight.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "ops/cpu/brgemm.h"
#include "ops/cpu/grouped.h"
#include "ops/dispatch.h"
#include "ops/lora_linear.h"
#include "reference.h"

namespace fettle::ops {
namespace {

using testing::random;

struct Shape {
  int64_t rows;
  int64_t columns;
  int64_t group;
};

// Whole lines and padded ones, whole blocks of rows and short ones, an odd number of inputs, one group a row.
const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all{{17, 256, 32}, {101, 256, 64}, {32, 256, 128}, {16, 256, 256},
                                      {5, 37, 37},   {19, 60, 20},   {1, 1, 1},      {33, 14, 7}};
  return all;
}

struct Kind {
  bool zeros;
  bool act_order;
};
constexpr Kind kKinds[] = {{false, false}, {true, false}, {false, true}, {true, true}};

PlainCodes random_codes(int bits, const Shape& shape, const Kind& kind) {
  const int64_t groups = shape.columns / shape.group;
  const int64_t values = int64_t{1} << bits;
  PlainCodes plain{.bits = bits,
                   .group = shape.group,
                   .codes = at::randint(values, {shape.rows, shape.columns}, at::kByte),
                   .scales = at::rand({shape.rows, groups}, at::kFloat) * 0.02 - 0.005,
                   .zeros = {},
                   .group_of = {}};
  if (kind.zeros) plain.zeros = at::randint(values + 1, {shape.rows, groups}, at::kShort).clamp_max(255).to(at::kByte);
  if (kind.act_order) {
    plain.group_of = at::randperm(shape.columns).floor_divide(shape.group).to(at::kInt);
  }
  return plain;
}

/// [O, C] float64: what each group gives its inputs.
at::Tensor of_inputs(const PlainCodes& plain, const at::Tensor& of_groups) {
  const at::Tensor group_of =
      plain.group_of.defined() ? plain.group_of : at::arange(plain.codes.size(1)).floor_divide(plain.group);
  return of_groups.to(at::kDouble).index_select(1, group_of.to(at::kInt));
}
at::Tensor zeros_of(const PlainCodes& plain) {
  const double middle = std::exp2(plain.bits - 1);
  return plain.zeros.defined() ? plain.zeros.to(at::kDouble) : at::zeros(plain.scales.sizes(), at::kDouble) + middle;
}
at::Tensor exact(const PlainCodes& plain) {
  return (plain.codes.to(at::kDouble) - of_inputs(plain, zeros_of(plain))) * of_inputs(plain, plain.scales);
}

/// Calls run(plain) for every shape and kind.
template <typename Run>
void for_all(int bits, const Run& run) {
  for (const Shape& shape : shapes()) {
    for (const Kind& kind : kKinds) {
      SCOPED_TRACE(::testing::Message() << shape.rows << "x" << shape.columns << " in groups of " << shape.group
                                        << (kind.zeros ? ", zeros" : "") << (kind.act_order ? ", act-order" : ""));
      run(random_codes(bits, shape, kind));
    }
  }
}

class Bits : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(OneToEight, Bits, ::testing::Range(1, 9));

TEST_P(Bits, AreUnpackedAsTheyWerePacked) {
  for_all(GetParam(), [](const PlainCodes& plain) {
    const PlainCodes back = unpack(pack(plain));
    EXPECT_EQ(back.bits, plain.bits);
    EXPECT_EQ(back.group, plain.group);
    EXPECT_TRUE(at::equal(back.codes, plain.codes));
    EXPECT_TRUE(at::equal(back.scales, plain.scales));
    EXPECT_TRUE(at::equal(zeros_of(back), zeros_of(plain)));
    EXPECT_TRUE(at::equal(of_inputs(back, back.scales), of_inputs(plain, plain.scales)));
  });
}

TEST_P(Bits, ExpandAsTheTwinBitForBit) {
  for_all(GetParam(), [](const PlainCodes& plain) {
    const GroupedWeight weight = pack(plain);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
      const at::Tensor expected = exact(plain).to(at::kFloat).to(type);  // exact in float64, so rounded as a product is
      EXPECT_TRUE(at::equal(dequantize(weight, type), expected)) << type;
      EXPECT_TRUE(at::equal(composite::dequantize(weight, type), expected)) << type;
    }
  });
}

/// How far a product of `x` may be from float64: a rounding of 2^-24 for each of its sums, of numbers that are less
/// than the middle code and of zeros that are; then the result's own; and, of a matrix that was expanded, its
/// elements'.
at::Tensor allowed(const PlainCodes& plain, const at::Tensor& x, const at::Tensor& expected) {
  const double middle = std::exp2(plain.bits - 1);
  const at::Tensor sizes =
      ((plain.codes.to(at::kDouble) - middle).abs() + (of_inputs(plain, zeros_of(plain)) - middle).abs()) *
      of_inputs(plain, plain.scales).abs();
  const auto sums = static_cast<double>(plain.codes.size(1) + plain.scales.size(1) + 8);
  const double of_type = x.scalar_type() == at::kFloat ? std::exp2(-24) : std::exp2(-8);
  const at::Tensor inputs = x.to(at::kDouble).abs();
  at::Tensor limit = at::linear(inputs, sizes) * (sums * std::exp2(-24)) + expected.abs() * (1.001 * of_type) + 1e-30;
  if (!multiplies_codes(x)) limit += at::linear(inputs, exact(plain).abs()) * of_type;
  return limit;
}

void expect_float32_sums(const PlainCodes& plain, int64_t tokens) {
  const GroupedWeight weight = pack(plain);
  const at::Tensor bias = random({weight.rows});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random({tokens, weight.columns}).to(type);
    const at::Tensor expected = at::linear(x.to(at::kDouble), exact(plain), bias);
    const at::Tensor actual = grouped_linear(x, weight, bias.to(type));
    ASSERT_EQ(actual.scalar_type(), type);
    ASSERT_EQ(actual.sizes(), expected.sizes());
    EXPECT_TRUE(((actual.to(at::kDouble) - expected).abs() <= allowed(plain, x, expected)).all().item<bool>())
        << tokens << " tokens of " << type;
    testing::expect_close(grouped_linear(x, weight, {}), composite::grouped_linear(x, weight, {}),
                          testing::tolerance(type), "against the twin");
  }
}

TEST_P(Bits, MultiplyToWhatFloat32SumsAllow) {
  for_all(GetParam(), [](const PlainCodes& plain) {
    for (const int64_t tokens : {1, 3, 33, 161}) expect_float32_sums(plain, tokens);
  });
}

// Tiles of every size, and several.
TEST_P(Bits, MultiplyAnyNumberOfTokens) {
  const PlainCodes plain = random_codes(GetParam(), {101, 128, 32}, {true, true});
  for (int64_t tokens = 0; tokens <= 26; ++tokens) expect_float32_sums(plain, tokens);
}

TEST_P(Bits, GiveTheSameOnAnyNumberOfThreads) {
  const GroupedWeight weight = pack(random_codes(GetParam(), {1000, 256, 32}, {true, true}));
  const int before = at::get_num_threads();
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t tokens : {1, 12, 30}) {
      const at::Tensor x = random({tokens, 256}).to(type);
      at::set_num_threads(1);
      const at::Tensor alone = grouped_linear(x, weight, {});
      for (const int threads : {2, 3}) {
        at::set_num_threads(threads);
        EXPECT_TRUE(at::equal(grouped_linear(x, weight, {}), alone)) << threads;
      }
      at::set_num_threads(before);
    }
  }
}

TEST_P(Bits, ShowWhatIsNotFinite) {
  for (const float broken : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const Kind& kind : kKinds) {
      PlainCodes plain = random_codes(GetParam(), {20, 64, 32}, kind);
      plain.scales[18][1] = broken;
      const GroupedWeight weight = pack(plain);
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        for (const int64_t tokens : {3, 33}) {
          const at::Tensor finite = grouped_linear(random({tokens, 64}).to(type), weight, {}).isfinite();
          EXPECT_FALSE(finite.select(1, 18).any().item<bool>());
          EXPECT_EQ(finite.sum().item<int64_t>(), tokens * 19);
        }
      }
    }
  }
}

TEST_P(Bits, SwitchedOffTakeTheTwin) {
  const GroupedWeight weight = pack(random_codes(GetParam(), {48, 256, 32}, {true, true}));
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random({2, 256}).to(type);
    const at::Tensor fused = grouped_linear(x, weight, {});
    ASSERT_TRUE(multiplies_codes(x));
    const testing::WithoutFusedOps plain;
    EXPECT_FALSE(multiplies_codes(x));
    EXPECT_TRUE(at::equal(grouped_linear(x, weight, {}), composite::grouped_linear(x, weight, {})));
    EXPECT_FALSE(at::equal(grouped_linear(x, weight, {}), fused)) << "not Fettle's own kernel";
  }
}

// Its inputs count as 0 where they are denormal; the plain loops keep them.
TEST_P(Bits, TakeTheProcessorsDotProduct) {
  PlainCodes plain = random_codes(GetParam(), {16, 64, 64}, {false, false});
  plain.codes.fill_(0);
  plain.scales.fill_(std::exp2(40.0));
  const at::Tensor x = (at::ones({1, 64}) * std::exp2(-130.0)).to(at::kBFloat16);
  const bool has_dot = cpu::has_grouped_dot() && cpu::has_brgemm<c10::BFloat16>();
  EXPECT_EQ(grouped_linear(x, pack(plain), {}).eq(0).all().item<bool>(), has_dot);
}

// With a dense layer and one of blocks beside it.
TEST_P(Bits, TrainAsTheWeightTheyStandFor) {
  const GroupedWeight first = pack(random_codes(GetParam(), {24, 64, 32}, {true, true}));
  const GroupedWeight second = pack(random_codes(GetParam(), {9, 64, 64}, {false, false}));
  const Weight third = quantize(random({8, 64}).to(at::kFloat), WeightFormat::kNf4);
  const at::Tensor fourth = random({8, 64});
  const at::Tensor bias = random({9});
  const auto op = [&](auto* lora, bool expanded) {
    return [&, lora, expanded](const std::vector<at::Tensor>& in) {
      const auto type = in[0].scalar_type();
      const auto weight = [&](const Weight& of) { return expanded ? Weight(dense(of, type)) : of; };
      const std::vector<LoraProjection> projections{{weight(first), {}, in[1], in[2]},
                                                    {weight(second), bias.to(type), {}, {}},
                                                    {weight(third), {}, {}, {}},
                                                    {fourth.to(type), {}, in[3], in[4]}};
      return at::cat(lora(in[0], projections, LoraOptions{.scaling = 0.5, .dropout = 0}), 1);
    };
  };
  const std::vector<at::Tensor> inputs{random({50, 64}), random({4, 64}), random({24, 4}), random({4, 64}),
                                       random({8, 4})};
  testing::expect_matches_twin(op(&lora_linear, false), op(&composite::lora_linear, true), inputs);
  testing::expect_matches_twin(op(&composite::lora_linear, false), op(&composite::lora_linear, true), inputs);
  const at::Tensor seed = random({50, 49});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto actual = testing::run(op(&lora_linear, false), inputs, type, seed);
    const auto expected = testing::run(op(&lora_linear, true), inputs, type, seed);
    for (size_t i = 1; i < actual.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << type << " " << i;
    // What is computed again for the backward must be what was computed first.
    const at::NoGradGuard no_gradients;
    std::vector<at::Tensor> constants;
    for (const at::Tensor& input : inputs) constants.push_back(input.to(type));
    EXPECT_TRUE(at::equal(op(&lora_linear, false)(constants), actual[0])) << type;
  }
}

TEST(GroupedWeight, TakesTheBytesItPromises) {
  const int64_t codes = 64 * 256;
  const int64_t scales = 64 * 8;
  const auto bytes = [](int bits, const Kind& kind) { return pack(random_codes(bits, {50, 256, 32}, kind)).bytes(); };
  EXPECT_EQ(bytes(2, {false, false}), codes / 4 + scales * 4);
  EXPECT_EQ(bytes(3, {false, false}), codes / 2 + scales * 4);
  EXPECT_EQ(bytes(4, {true, false}), codes / 2 + scales * 5);
  EXPECT_EQ(bytes(8, {true, true}), codes + scales * 5 + 256 * 8);
}

TEST(GroupedWeight, LeavesOutZerosAndGroupsThatSayNothing) {
  PlainCodes plain = random_codes(4, {20, 64, 32}, {false, false});
  plain.zeros = at::zeros({20, 2}, at::kByte) + 8;
  plain.group_of = at::arange(64, at::kInt).floor_divide(32).to(at::kInt);
  const GroupedWeight weight = pack(plain);
  EXPECT_FALSE(weight.zeros.defined());
  EXPECT_FALSE(weight.order.defined());
}

TEST(GroupedWeight, RefusesWhatIsNoSuchMatrix) {
  const auto refuses = [](const auto& change) {
    PlainCodes plain = random_codes(4, {20, 64, 32}, {true, true});
    change(plain);
    EXPECT_THROW(pack(plain), c10::Error);
  };
  refuses([](PlainCodes& plain) { plain.bits = 0; });
  refuses([](PlainCodes& plain) { plain.bits = 9; });
  refuses([](PlainCodes& plain) { plain.group = 0; });
  refuses([](PlainCodes& plain) { plain.group = 48; });
  refuses([](PlainCodes& plain) { plain.group = 64; });
  refuses([](PlainCodes& plain) { plain.codes[19][63] = 16; });
  refuses([](PlainCodes& plain) { plain.codes = plain.codes.to(at::kInt); });
  refuses([](PlainCodes& plain) { plain.scales = plain.scales.to(at::kDouble); });
  refuses([](PlainCodes& plain) { plain.scales = plain.scales.narrow(0, 0, 19); });
  refuses([](PlainCodes& plain) { plain.zeros = plain.zeros.narrow(1, 0, 1); });
  refuses([](PlainCodes& plain) { plain.zeros[3][1] = 136; });
  refuses([](PlainCodes& plain) { plain.group_of = at::zeros({64}, at::kInt); });
  refuses([](PlainCodes& plain) { plain.group_of[5] = 2; });
  refuses([](PlainCodes& plain) { plain.group_of[5] = -1; });
  refuses([](PlainCodes& plain) { plain.group_of = plain.group_of.narrow(0, 0, 63); });
}

TEST(GroupedWeight, MovesWhole) {
  const Weight weight = pack(random_codes(4, {20, 64, 32}, {true, true}));
  const auto moved_weight = std::get<GroupedWeight>(moved(weight, at::kMeta));
  for (const at::Tensor* part : {&moved_weight.codes, &moved_weight.scales, &moved_weight.zeros, &moved_weight.order}) {
    EXPECT_TRUE(part->is_meta());
  }
  EXPECT_FALSE(std::get<GroupedWeight>(moved(pack(random_codes(4, {20, 64, 32}, {})), at::kMeta)).zeros.defined());
}

TEST(GroupedLinear, RefusesWhatDoesNotFit) {
  const GroupedWeight weight = pack(random_codes(4, {20, 64, 32}, {false, false}));
  EXPECT_THROW(grouped_linear(at::ones({2, 63}), weight, {}), c10::Error);
  EXPECT_THROW(grouped_linear(at::ones({64}), weight, {}), c10::Error);
  EXPECT_THROW(grouped_linear(at::ones({2, 64}), weight, at::ones({19})), c10::Error);
  EXPECT_THROW(grouped_linear(at::ones({2, 64}).requires_grad_(true), weight, {}), c10::Error);
  EXPECT_THROW(grouped_linear(at::ones({2, 64}).to(at::kMeta), weight, {}), c10::Error);
}

}  // namespace
}  // namespace fettle::ops
