// SPDX-License-Identifier: Apache-2.0
/// fettle_parity --model DIR --batch batch.safetensors --output out.safetensors [--dtype float32|bfloat16]
///   [--adapter DIR] [--full] [--gradient_checkpointing] [--device cpu|hpu]
///
/// batch: int64 tokens [T], cu_seqlens [n+1], labels [T] (as transformers takes them: unshifted, -100 ignored).
/// out: float32 logits [T, V], loss_sum [1], int64 target_tokens [1], and with --adapter or --full float32
/// grad.<parameter> of the summed loss, by the name PEFT or transformers gives the parameter.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "hub/adapter.h"
#include "hub/model_folder.h"
#include "hub/safetensors.h"
#include "hub/tensor_source.h"
#include "model/decoder.h"
#include "train/inputs.h"

namespace {

using fettle::Error;
using fettle::ExitCode;
namespace hub = fettle::hub;
namespace model = fettle::model;

std::map<std::string, std::string> parse(int argc, char** argv) {
  const std::set<std::string> with_value{"--model", "--batch", "--output", "--dtype", "--adapter", "--device"};
  const std::set<std::string> alone{"--full", "--gradient_checkpointing"};
  std::map<std::string, std::string> options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (with_value.contains(name) && i + 1 < argc) {
      options[name] = argv[++i];
    } else if (alone.contains(name)) {
      options[name] = "yes";
    } else {
      throw Error(ExitCode::kUsage, "fettle_parity: unknown or incomplete option " + name);
    }
  }
  for (const char* name : {"--model", "--batch", "--output"}) {
    if (!options.contains(name)) {
      throw Error(ExitCode::kUsage, std::string("fettle_parity: missing ") + name);
    }
  }
  return options;
}

at::Tensor read_integers(const hub::TensorSource& source, const std::string& name) {
  const hub::TensorView* view = source.find(name);
  if (view == nullptr || view->dtype != hub::DType::kI64 || view->shape.size() != 1) {
    throw Error(ExitCode::kData, "fettle_parity: the batch needs int64 [n] " + name);
  }
  at::Tensor result = at::empty(view->shape, at::kLong);
  std::memcpy(result.mutable_data_ptr(), view->bytes.data(), view->bytes.size());
  return result;
}

model::Batch read_batch(const std::string& file) {
  const auto source = hub::TensorSource::open_safetensors(file);
  model::Batch batch;
  batch.tokens = read_integers(source, "tokens");
  const at::Tensor labels = read_integers(source, "labels");
  const at::Tensor boundaries = read_integers(source, "cu_seqlens");
  batch.labels = at::full(labels.sizes(), -100, at::kLong);
  batch.positions = at::empty(labels.sizes(), at::kLong);
  for (int64_t i = 0; i < boundaries.size(0); ++i) {
    batch.cu_seqlens.push_back(static_cast<int32_t>(boundaries[i].item<int64_t>()));
  }
  for (size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    const int64_t begin = batch.cu_seqlens[i];
    const int64_t length = batch.cu_seqlens[i + 1] - begin;
    batch.positions.narrow(0, begin, length).copy_(at::arange(length));
    batch.labels.narrow(0, begin, length - 1).copy_(labels.narrow(0, begin + 1, length - 1));
  }
  return batch;
}

/// One row for a device that compiles for one shape.
void fill_row(model::Batch& batch) {
  constexpr int64_t kStep = 128;
  const int64_t tokens = batch.tokens.size(0);
  batch.row_length = (tokens + kStep - 1) / kStep * kStep;
  const auto filled = [&](const at::Tensor& values, int64_t by) {
    return at::cat({values, at::full({batch.row_length - tokens}, by, at::kLong)});
  };
  batch.tokens = filled(batch.tokens, 0);
  batch.labels = filled(batch.labels, -100);
  batch.positions = filled(batch.positions, 0);
  if (batch.row_length > tokens) batch.cu_seqlens.push_back(static_cast<int32_t>(batch.row_length));
}

at::Tensor on_host(const at::Tensor& tensor) {
  return tensor.to(at::kCPU, at::kFloat).contiguous();
}

hub::TensorView view_of(const std::string& name, const at::Tensor& tensor) {
  const hub::DType dtype = tensor.scalar_type() == at::kLong ? hub::DType::kI64 : hub::DType::kF32;
  return {.name = name,
          .dtype = dtype,
          .shape = tensor.sizes().vec(),
          .bytes = {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()},
          .interleaved_heads = 0};
}

void run(const std::map<std::string, std::string>& options) {
  fettle::config::ModelConfig config;
  config.model_name_or_path = options.at("--model");
  const hub::ModelFolder folder = hub::resolve_model(config);
  const bool bfloat16 = options.contains("--dtype") && options.at("--dtype") == "bfloat16";
  fettle::config::DeviceConfig where;
  where.device = options.contains("--device") ? options.at("--device") : "cpu";
  const at::Device device = fettle::train::start_device(where).torch_device;
  auto decoder = model::Decoder::load(model::DecoderSpec::from_config(folder.config), folder.open_weights(),
                                      bfloat16 ? at::kBFloat16 : at::kFloat, {.device = device});
  if (options.contains("--adapter")) {
    const std::string& adapter = options.at("--adapter");
    decoder.load_adapter(hub::read_adapter_config(adapter), hub::open_adapter_weights(adapter));
  }
  if (options.contains("--full")) {
    decoder.make_trainable_full();
  }
  decoder.set_gradient_checkpointing(options.contains("--gradient_checkpointing"));

  model::Batch batch = read_batch(options.at("--batch"));
  const int64_t tokens = batch.tokens.size(0);
  if (device.is_hpu()) fill_row(batch);
  std::vector<std::pair<std::string, at::Tensor>> results;
  {
    const at::NoGradGuard no_gradients;
    results.emplace_back("logits", on_host(decoder.logits(decoder.hidden_states(batch)).narrow(0, 0, tokens)));
  }
  const at::Tensor loss = decoder.loss_sum(batch);
  results.emplace_back("loss_sum", on_host(loss.detach().reshape({1})));
  results.emplace_back("target_tokens", (batch.labels != -100).sum().reshape({1}));
  if (loss.requires_grad()) {
    loss.backward();
    for (const auto& [name, tensor] : decoder.trainable()) {
      results.emplace_back("grad." + name, on_host(tensor.grad().defined() ? tensor.grad() : at::zeros_like(tensor)));
    }
  }
  std::vector<hub::TensorView> views;
  for (const auto& [name, tensor] : results) {
    views.push_back(view_of(name, tensor));
  }
  hub::write_safetensors(options.at("--output"), views, {});
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
    return 0;
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return static_cast<int>(error.code());
  }
}
