// SPDX-License-Identifier: Apache-2.0
/// What of a merge the comparison with PEFT (tests/interop/test_merge.py) does not reach.
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/file.h"
#include "train/inputs.h"
#include "train/merge_check.h"
#include "train/probe.h"
#include "train/save.h"
#include "train/tiny.h"

namespace fettle::train {
namespace {

using testing::ElementsAre;

config::Config naming(const std::string& adapter, const std::vector<std::string>& more) {
  config::Config config;
  config.model.adapter_name_or_path = adapter;
  config.merge.merge_adapters = more;
  return config;
}

TEST(AdapterNames, AreFoldersOrHubNamesWithWeights) {
  EXPECT_THAT(adapter_names(naming("a", {"org/b=0.5", "c=-2", "d"})),
              ElementsAre(AdapterName{"a", 1}, AdapterName{"org/b", 0.5}, AdapterName{"c", -2}, AdapterName{"d", 1}));
}

TEST(AdapterNames, AFolderMayHaveASignInItsName) {
  const TemporaryFolder folder;
  const std::string name = folder / "lr=0.1";
  make_directories(name);
  EXPECT_THAT(adapter_names(naming("", {name})), ElementsAre(AdapterName{name, 1}));
  EXPECT_THAT(adapter_names(naming("", {name + "=2"})), ElementsAre(AdapterName{name, 2}));
}

TEST(AdapterNames, RefusesWhatIsNoWeight) {
  for (const char* text : {"a=", "a=x", "a=1x", "a=inf", "a=nan", "a=1e999", "a= 1", "=1"}) {
    EXPECT_EQ(code_of([&] { adapter_names(naming("", {text})); }), ExitCode::kConfig) << text;
  }
  EXPECT_EQ(code_of([] { adapter_names(naming("a", {"a=2"})); }), ExitCode::kConfig);
}

Answers answers(const at::Tensor& logits) {
  return {{logits}, std::nullopt};
}

TEST(CompareMerged, RefusesMoreThanRoundingExplains) {
  const at::Tensor base = at::randn({7, 11});
  const at::Tensor adapted = base + 1;
  const auto compare = [&](double error, double bound) {
    return code_of([&] { compare_merged(answers(base), answers(adapted), answers(adapted * (1 + error)), bound); });
  };
  EXPECT_EQ(compare(0.01, 0.02), ExitCode::kOk);
  EXPECT_EQ(compare(0.03, 0.02), ExitCode::kInternal);
  EXPECT_EQ(compare(std::numeric_limits<double>::quiet_NaN(), 0.02), ExitCode::kDiverged);
}

// A weak adapter, whose change is less than what rounding may be.
TEST(CompareMerged, RefusesAChangeThatIsMissingOrWrong) {
  const at::Tensor base = at::randn({256, 99});
  const at::Tensor change = at::randn({256, 99}) * 0.01;
  const at::Tensor rounding = at::randn({256, 99}) * 0.02;
  const auto compare = [&](double share) {
    return code_of([&] {
      compare_merged(answers(base), answers(base + change), answers(base + change * share + rounding), 0.08);
    });
  };
  EXPECT_EQ(compare(1), ExitCode::kOk);
  for (const double share : {0.0, 0.3, 2.0, -1.0}) EXPECT_EQ(compare(share), ExitCode::kInternal) << share;
  EXPECT_NEAR(share_of_change(answers(base), answers(base + change), answers(base + change * 0.5)), 0.5, 1e-4);
}

// As LoRA is before its first step.
TEST(CompareMerged, TakesAnAdapterThatChangesNothing) {
  const at::Tensor base = at::randn({7, 11});
  EXPECT_EQ(code_of([&] { compare_merged(answers(base), answers(base), answers(base), 0.02); }), ExitCode::kOk);
}

TEST(CompareMerged, MeasuresTheLargestAndTheWhole) {
  const at::Tensor one = at::full({2, 2}, 3.0);
  at::Tensor other = one.clone();
  other[1][0] = 5.0;
  const LogitDifference found = difference(answers(other), answers(one));
  EXPECT_DOUBLE_EQ(found.largest, 2);
  EXPECT_DOUBLE_EQ(found.relative, 2.0 / 6.0);
}

TEST(RoundingBound, IsThatOfTheTypeThatWasRoundedTo) {
  const TemporaryFolder folder;
  const ModelInputs inputs = load_inputs([] {
    config::ModelConfig model;
    model.model_name_or_path = std::filesystem::path(FETTLE_SOURCE_DIR) / "examples/stories260K";
    return model;
  }());
  config::Config config;
  config.model.model_name_or_path = inputs.base.path;
  config.model.adapter_name_or_path = folder.path();
  save_adapter(folder.path(), tiny_lora(at::kFloat), config.model, inputs.tokenizer);
  const MergedWeights weights(inputs.base, inputs.spec, read_adapters(config, inputs.spec));
  EXPECT_TRUE(weights.rounds_to(hub::DType::kF32));
  EXPECT_FALSE(weights.rounds_to(hub::DType::kBF16));
  EXPECT_FALSE(weights.unties());
  EXPECT_GT(rounding_bound(weights), 1e-5);
  EXPECT_LT(rounding_bound(weights), 2e-5);
}

TEST(Probe, ComesBackAsItWas) {
  const TemporaryFolder folder;
  const hub::ModelFolder base = stories_folder();
  const model::Decoder model = tiny_lora(at::kFloat);
  const Probe probe = make_probe(model, text::Tokenizer::load(base.tokenizer_folder));
  EXPECT_EQ(probe.tokens.size(), 64U);
  write_probe(folder.path(), probe);
  const Probe read = read_probe(folder.path());
  EXPECT_EQ(read.tokens, probe.tokens);
  EXPECT_EQ(compare_with_probe(model, read).difference, 0);
  for (const model::NamedTensor& parameter : model.trainable()) parameter.tensor.data().mul_(1.1);
  EXPECT_FALSE(compare_with_probe(model, read).agrees());
}

TEST(Probe, TokensAreOfTheModelsVocabulary) {
  const text::Tokenizer tokenizer = text::Tokenizer::load(stories_folder().tokenizer_folder);
  for (const int64_t vocabulary : {1, 3, 40, 512}) {
    const std::vector<int32_t> tokens = fixed_tokens(tokenizer, vocabulary, 30);
    EXPECT_FALSE(tokens.empty());
    EXPECT_LE(tokens.size(), 30U);
    for (const int32_t token : tokens) EXPECT_LT(token, vocabulary);
  }
}

}  // namespace
}  // namespace fettle::train
