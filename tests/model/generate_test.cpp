// SPDX-License-Identifier: Apache-2.0
/// Generation against transformers (tests/golden/make_generation.py) and against the plain forward pass.
#include "model/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "model/kv_cache.h"
#include "model/sampling.h"
#include "tiny_model.h"

namespace fettle::model {
namespace {

using nlohmann::json;
using testing::TinyModel;
using Tokens = std::vector<int32_t>;

json golden(const std::string& name) {
  return json::parse(read_file(FETTLE_SOURCE_DIR "/tests/golden/" + name));
}

TEST(Generate, GreedyEqualsTransformersOnARealModel) {
  const std::string folder = FETTLE_SOURCE_DIR "/examples/stories260K";
  const DecoderSpec spec = DecoderSpec::from_config(json::parse(read_file(folder + "/config.json")));
  const Decoder decoder = Decoder::load(spec, hub::TensorSource::open_safetensors(folder), at::kFloat);
  for (const json& expected : golden("generation.json")) {
    SCOPED_TRACE(expected["text"].get<std::string>());
    config::GenerationConfig options;
    options.max_new_tokens = static_cast<int64_t>(expected["new_tokens"].size());
    options.repetition_penalty = expected["repetition_penalty"].get<double>();
    EXPECT_EQ(generate(decoder, expected["prompt"].get<Tokens>(), options, 0), expected["new_tokens"].get<Tokens>());
  }
}

TEST(Sampling, ProcessorsEqualTransformers) {
  const json all = golden("processors.json");
  for (const json& expected : all["cases"]) {
    config::GenerationConfig options;
    options.do_sample = true;
    options.repetition_penalty = expected["repetition_penalty"].get<double>();
    options.temperature = expected["temperature"].get<double>();
    options.top_k = expected["top_k"].get<int64_t>();
    options.top_p = expected["top_p"].get<double>();
    options.min_p = expected["min_p"].get<double>();
    const at::Tensor actual =
        process_logits(at::tensor(all["logits"].get<std::vector<float>>()), all["tokens"].get<Tokens>(), options);
    for (int64_t i = 0; i < actual.numel(); ++i) {
      const json& value = expected["expected"][static_cast<size_t>(i)];
      const float logit = actual[i].item<float>();
      if (value.is_null()) {
        EXPECT_TRUE(std::isinf(logit) && logit < 0) << i;
      } else {
        EXPECT_NEAR(logit, value.get<float>(), 1e-6 * std::abs(value.get<float>())) << i;
      }
    }
  }
}

// The token that the plain forward pass over the whole text finds most likely, again and again.
Tokens greedy_without_cache(const Decoder& decoder, Tokens tokens, int64_t count) {
  const at::NoGradGuard no_gradients;
  const size_t prompt = tokens.size();
  for (int64_t i = 0; i < count; ++i) {
    const auto length = static_cast<int64_t>(tokens.size());
    const Batch batch{at::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()), at::kLong),
                      {},
                      at::arange(length, at::kLong),
                      {0, static_cast<int32_t>(length)}};
    tokens.push_back(static_cast<int32_t>(decoder.logits(decoder.hidden_states(batch))[-1].argmax().item<int64_t>()));
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt), tokens.end()};
}

TEST(Generate, CacheWithASlidingWindowEqualsThePlainForward) {
  json config = testing::tiny_config();
  config.update({{"model_type", "mistral"}, {"sliding_window", 5}});
  const TinyModel tiny(config);
  const Decoder decoder = tiny.load();
  config::GenerationConfig options;
  options.max_new_tokens = 25;
  const Tokens prompt{3, 1, 4, 1, 5, 9, 2, 6};
  EXPECT_EQ(generate(decoder, prompt, options, 0), greedy_without_cache(decoder, prompt, 25));
}

class GenerateTiny : public ::testing::Test {
 protected:
  GenerateTiny() { options.max_new_tokens = 20; }
  TinyModel tiny;
  Decoder decoder = tiny.load();
  config::GenerationConfig options;
};

TEST_F(GenerateTiny, SamplingIsAFunctionOfTheSeed) {
  options.do_sample = true;
  options.temperature = 3.0;
  const Tokens first = generate(decoder, {1, 2}, options, 7);
  EXPECT_EQ(generate(decoder, {1, 2}, options, 7), first);
  EXPECT_NE(generate(decoder, {1, 2}, options, 8), first);
}

TEST_F(GenerateTiny, OneCandidateIsGreedy) {
  const Tokens greedy = generate(decoder, {1, 2}, options, 0);
  options.do_sample = true;
  options.top_k = 1;
  EXPECT_EQ(generate(decoder, {1, 2}, options, 1), greedy);
  options.top_k = 0;
  options.top_p = 1e-9;
  EXPECT_EQ(generate(decoder, {1, 2}, options, 1), greedy);
  options.top_p = 1.0;
  options.min_p = 1.0;
  EXPECT_EQ(generate(decoder, {1, 2}, options, 1), greedy);
}

TEST_F(GenerateTiny, StopsAtAStopTokenAndAtTheCallersWish) {
  const Tokens all = generate(decoder, {1, 2}, options, 0);
  ASSERT_EQ(all.size(), 20U);
  const auto first = std::find(all.begin(), all.end(), all[4]) - all.begin();
  const Tokens stopped = generate(decoder, {1, 2}, options, 0, {{all[4]}, {}});
  EXPECT_EQ(stopped, Tokens(all.begin(), all.begin() + first));
  int calls = 0;
  EXPECT_EQ(generate(decoder, {1, 2}, options, 0, {{}, [&](int32_t) { return ++calls < 3; }}).size(), 3U);
}

std::vector<Request> requests_of(const std::vector<Tokens>& prompts) {
  std::vector<Request> requests;
  for (const Tokens& prompt : prompts) requests.push_back({prompt, prompt.size(), {}});
  return requests;
}

const std::vector<Tokens> kPrompts = {{3, 1, 4, 1, 5, 9, 2, 6}, {7}, {1, 2, 3}, {8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4}};

TEST(Generate, TogetherIsWhatEachIsAlone) {
  for (const bool has_window : {false, true}) {
    json config = testing::tiny_config();
    if (has_window) config.update({{"model_type", "mistral"}, {"sliding_window", 5}});
    const TinyModel tiny(config);
    const Decoder decoder = tiny.load();
    config::GenerationConfig options;
    options.max_new_tokens = 25;
    const std::vector<Tokens> together = generate(decoder, requests_of(kPrompts), options);
    ASSERT_EQ(together.size(), kPrompts.size());
    for (size_t i = 0; i < kPrompts.size(); ++i) {
      EXPECT_EQ(together[i], greedy_without_cache(decoder, kPrompts[i], 25)) << has_window << i;
    }
  }
}

// They end after 1, 5, 2 and 20 tokens: those that go on move up in the cache.
TEST_F(GenerateTiny, WhoHasEndedDoesNotDisturbTheOthers) {
  const std::vector<int> lengths = {1, 5, 2, 20};
  std::vector<Request> requests = requests_of(kPrompts);
  std::vector<int> counts(kPrompts.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].stop.on_token = [&counts, &lengths, i](int32_t) { return ++counts[i] < lengths[i]; };
  }
  const std::vector<Tokens> together = generate(decoder, requests, options);
  for (size_t i = 0; i < kPrompts.size(); ++i) {
    EXPECT_EQ(together[i], greedy_without_cache(decoder, kPrompts[i], lengths[i])) << i;
  }
}

TEST_F(GenerateTiny, EachSamplesFromItsOwnSeed) {
  options.do_sample = true;
  options.temperature = 3.0;
  const std::vector<Tokens> together = generate(decoder, requests_of(kPrompts), options);
  for (size_t i = 0; i < kPrompts.size(); ++i) {
    EXPECT_EQ(together[i], generate(decoder, kPrompts[i], options, kPrompts[i].size())) << i;
  }
  const std::vector<Tokens> twins = generate(decoder, {Request{{1, 2}, 7, {}}, Request{{1, 2}, 8, {}}}, options);
  EXPECT_NE(twins[0], twins[1]);
}

TEST_F(GenerateTiny, ADialogueReusesWhatItsTurnsHaveInCommon) {
  Dialogue dialogue(decoder);
  Tokens prompt = {3, 1, 4, 1, 5};
  const Tokens first = dialogue.generate({prompt, 0, {}}, options);
  EXPECT_EQ(first, generate(decoder, prompt, options, 0));
  EXPECT_EQ(dialogue.reused(), 0);
  prompt.insert(prompt.end(), first.begin(), first.end());
  prompt.insert(prompt.end(), {9, 2, 6});
  EXPECT_EQ(dialogue.generate({prompt, 0, {}}, options), generate(decoder, prompt, options, 0));
  EXPECT_EQ(dialogue.reused(), 24);  // all but the last of the 25, whose keys nobody needed
  prompt[10] = prompt[10] == 1 ? 2 : 1;
  EXPECT_EQ(dialogue.generate({prompt, 0, {}}, options), generate(decoder, prompt, options, 0));
  EXPECT_EQ(dialogue.reused(), 10);
  const Tokens again(prompt.begin(), prompt.begin() + 4);
  EXPECT_EQ(dialogue.generate({again, 0, {}}, options), generate(decoder, again, options, 0));
  EXPECT_EQ(dialogue.reused(), 3);
}

TEST_F(GenerateTiny, TheCacheKeepsTheDocumentsThatItIsToldTo) {
  KvCache cache(decoder.spec(), 4, at::kFloat, 3);
  const std::vector<int32_t> boundaries = {0, 1, 3, 6};
  const at::Tensor values = at::arange(6 * 2 * 8, at::kFloat).view({6, 2, 8});
  for (int64_t layer = 0; layer < 3; ++layer) cache.append(layer, values, values + 1, boundaries);
  cache.advance(boundaries);
  cache.retain({0, 2});
  ASSERT_EQ(cache.documents(), 2);
  EXPECT_EQ(cache.length(1), 3);
  cache.reserve(9);
  EXPECT_EQ(cache.capacity(), 9);
  const at::Tensor kept = cache.keys(2).select(0, 1).narrow(1, 0, 3).transpose(0, 1);
  EXPECT_TRUE(kept.equal(values.narrow(0, 3, 3)));
  EXPECT_TRUE(cache.values(0).select(0, 1).narrow(1, 0, 3).transpose(0, 1).equal(values.narrow(0, 3, 3) + 1));
  EXPECT_TRUE(cache.values(0).isfinite().all().item<bool>());
  cache.truncate(1, 2);
  EXPECT_EQ(cache.length(1), 2);
  EXPECT_THROW(cache.truncate(1, 3), c10::Error);
  EXPECT_THROW(cache.append(0, at::zeros({9, 2, 8}), at::zeros({9, 2, 8}), {0, 9, 9}), c10::Error) << "1 + 9";
}

TEST_F(GenerateTiny, LogitsThatAreNotFiniteEndIt) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const bool sampled : {false, true}) {
      options.do_sample = sampled;
      try {
        next_token(at::tensor({0.5f, bad, 1.0f}), {1, 2}, options, at::make_generator<at::CPUGeneratorImpl>(1));
        ADD_FAILURE() << "accepted " << bad;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kDiverged);
      }
    }
  }
}

TEST_F(GenerateTiny, TheCacheTakesWhatItSays) {
  const double bytes = 2 * 3 * 100 * 2 * 8 * 4;  // keys and values, layers, tokens, heads, elements, float32
  EXPECT_EQ(KvCache::bytes(decoder.spec(), 100, at::kFloat), bytes);
  EXPECT_GT(KvCache::bytes(decoder.spec(), INT64_MAX, at::kFloat), 1e20);
}

TEST_F(GenerateTiny, RefusesAPromptItCannotRead) {
  EXPECT_THROW(generate(decoder, {}, options, 0), Error);
  EXPECT_THROW(generate(decoder, {1, 61}, options, 0), Error);
  EXPECT_THROW(generate(decoder, {-1}, options, 0), Error);
}

}  // namespace
}  // namespace fettle::model
