// SPDX-License-Identifier: Apache-2.0
#include "train/inputs.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "base/error.h"
#include "base/log.h"
#include "hub/adapter.h"
#include "ops/dispatch.h"
#include "ops/rms_norm.h"
#include "ops/vector_math.h"

namespace fettle::train {
namespace {

std::string_view health_hint(at::DeviceType type) {
  return type == at::kHPU ? "see hl-smi and the logs in HABANA_LOGS; or use device=cpu"
                          : "see nvidia-smi; GPUs of compute capability 8.0 and newer are served; or use device=cpu";
}

/// Makes the accelerator the current one, and tries it: whether it computes shows at the first kernel.
void use_accelerator(const device::Device& device) {
  const at::Device there = device.torch_device;
  try {
    c10::impl::getDeviceGuardImpl(there.type())->setDevice(there);
    if (device.cuda_kernels != nullptr) {
      ops::set_cuda_kernels(static_cast<const ops::cuda::KernelTable*>(device.cuda_kernels));
    }
    const at::Tensor one = at::ones({8, 8}, there);
    const auto result = ops::rms_norm(at::mm(one, one), at::ones({8}, there), 0).sum().item<float>();
    if (result == 64.0f) return;
    throw Error(ExitCode::kUnavailable, fmt::format("device: {} computes {} where 64 is right", there.str(), result),
                std::string(health_hint(there.type())));
  } catch (const c10::Error& error) {
    const std::string_view reason = error.what_without_backtrace();
    throw Error(ExitCode::kUnavailable,
                fmt::format("device: {} cannot be used: {}", there.str(), reason.substr(0, reason.find('\n'))),
                std::string(health_hint(there.type())));
  }
}

void require_embeddings(const ModelInputs& inputs, std::span<const int32_t> ids, const char* kind, int64_t number) {
  const auto largest = std::ranges::max_element(ids);
  if (largest == ids.end() || *largest < inputs.spec.vocab_size) return;
  throw Error(ExitCode::kConfig,
              fmt::format("{} {} holds token {} ('{}'), but the model's vocabulary has {} tokens", kind, number,
                          *largest, inputs.tokenizer.token(*largest), inputs.spec.vocab_size),
              "the tokenizer belongs to another model: set tokenizer_name to this model's");
}

}  // namespace

device::Device start_device(const config::DeviceConfig& options, const device::Place& place) {
  if (!options.fused_ops) log::warning("fused_ops is false: plain torch operations are slow and need more memory");
  ops::set_fused_ops(options.fused_ops);
  device::Device device = device::start(options, place);
  ops::settle_vector_math();
  const at::DeviceType wanted = device::wanted(options);
  if (wanted == at::kCPU) return device;
  try {
    device::choose_accelerator(device, wanted, place);
    use_accelerator(device);
  } catch (const Error& error) {
    if (options.device != "auto") throw;
    log::warning("{}; computing on the CPU", error.what());
    device.torch_device = at::kCPU;
  }
  return device;
}

ModelInputs load_inputs(const config::ModelConfig& model) {
  hub::ModelFolder base = hub::resolve_model(model);
  model::DecoderSpec spec = model::DecoderSpec::from_config(base.config);
  if (spec.quantization && weight_format(model)) {
    throw Error(
        ExitCode::kConfig,
        fmt::format("load_in_4bit, load_in_8bit or load_in_fp8 is true, and the model in {} has {} bits already",
                    base.path.string(), spec.quantization->bits),
        "leave it out");
  }
  text::Tokenizer tokenizer = text::Tokenizer::load(base.tokenizer_folder);
  return {std::move(base), std::move(spec), std::move(tokenizer)};
}

void require_vocabulary(const ModelInputs& inputs, const data::TokenDataset& dataset) {
  if (inputs.tokenizer.vocab_size() <= inputs.spec.vocab_size) return;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    require_embeddings(inputs, dataset.input_ids(i), "record", dataset.record(i));
  }
}

void require_vocabulary(const ModelInputs& inputs, const data::Task& task) {
  if (inputs.tokenizer.vocab_size() <= inputs.spec.vocab_size) return;
  for (int64_t i = 0; i < std::ssize(task.items); ++i) {
    for (const data::ScoredContinuation& choice : task.items[static_cast<size_t>(i)].encodings) {
      require_embeddings(inputs, choice.input, "item", i);
      require_embeddings(inputs, choice.continuation, "item", i);
    }
  }
}

at::ScalarType compute_type(const config::TrainingConfig& training) {
  return training.bf16 ? at::kBFloat16 : at::kFloat;
}

std::optional<ops::WeightFormat> weight_format(const config::ModelConfig& model) {
  if (model.load_in_8bit) return ops::WeightFormat::kInt8;
  if (model.load_in_fp8) return ops::WeightFormat::kFp8;
  if (!model.load_in_4bit) return std::nullopt;
  if (model.bnb_4bit_quant_type == "int4") return ops::WeightFormat::kInt4;
  return model.bnb_4bit_quant_type == "fp4" ? ops::WeightFormat::kFp4 : ops::WeightFormat::kNf4;
}

model::Decoder load_model(const ModelInputs& inputs, const config::ModelConfig& model, const ComputeOptions& compute,
                          std::optional<double> lora_dropout) {
  const model::LoadOptions options{
      .sharing = compute.sharing, .quantization = weight_format(model), .device = compute.device};
  model::Decoder decoder = model::Decoder::load(inputs.spec, inputs.base.open_weights(), compute.type, options);
  if (model.adapter_name_or_path.empty()) return decoder;
  const auto folder = hub::resolve_folder(model.adapter_name_or_path, model, "adapter_name_or_path");
  hub::AdapterConfig adapter = hub::read_adapter_config(folder);
  adapter.lora_dropout = lora_dropout.value_or(adapter.lora_dropout);
  decoder.load_adapter(adapter, hub::open_adapter_weights(folder));
  return decoder;
}

}  // namespace fettle::train
