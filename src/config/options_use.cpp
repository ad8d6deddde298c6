// SPDX-License-Identifier: Apache-2.0
// The option table's sections for what is done with a trained model: merge, quantize, benchmark, export.
#include "config/option_table.h"

namespace fettle::config::table {
namespace {

constexpr unsigned kQuantizes = kTrain | kQuantize;
constexpr unsigned kBenchmarks = kTrain | kBenchmark;

std::vector<Option> method_options() {
  return {
      {.name = "do_quantize",
       .slot = slot<&QuantizationConfig::do_quantize>,
       .help = "Quantize the result of the training, an adapter merged into its base first.",
       .commands = kTrain},
      {.name = "quantize_output_dir",
       .slot = slot<&QuantizationConfig::quantize_output_dir>,
       .help = "Folder of the quantized model after training; empty: quantized in output_dir.",
       .commands = kTrain},
      {.name = "woq_bits",
       .slot = slot<&QuantizationConfig::woq_bits>,
       .help = "Bits of a weight.",
       .commands = kQuantizes,
       .range = between(1, 8)},
      {.name = "woq_group_size",
       .slot = slot<&QuantizationConfig::woq_group_size>,
       .help = "Inputs of a row that share a scale; -1: all of a row.",
       .commands = kQuantizes,
       .range = {.minimum = 8, .or_minus_one = true}},
      {.name = "woq_scheme",
       .slot = slot<&QuantizationConfig::woq_scheme>,
       .help = "Whether the range of a group lies symmetrically around zero, or anywhere with a zero point of its own.",
       .commands = kQuantizes,
       .choices = {"sym", "asym"}},
      {.name = "woq_algo",
       .slot = slot<&QuantizationConfig::woq_algo>,
       .help = "How the whole numbers are found: RTN rounds each weight; GPTQ, AWQ and TEQ look at what the layers are "
               "given on the training records.",
       .commands = kQuantizes,
       .choices = {"RTN", "GPTQ", "AWQ", "TEQ"},
       .value_aliases = {{"rtn", "RTN"}, {"gptq", "GPTQ"}, {"awq", "AWQ"}, {"teq", "TEQ"}}},
      {.name = "woq_format",
       .slot = slot<&QuantizationConfig::woq_format>,
       .help = "The files' layout: compressed-tensors (pack-quantized), gptq, gptq_v2, or awq (gemm; 4 bits); auto: "
               "compressed-tensors.",
       .commands = kQuantizes,
       .choices = {"auto", "compressed-tensors", "gptq", "gptq_v2", "awq"}},
      {.name = "max_perplexity_ratio",
       .slot = slot<&QuantizationConfig::max_perplexity_ratio>,
       .help = "Perplexity after quantization over that before, from which on the command fails; 0: never.",
       .commands = kQuantizes,
       .range = at_least(0)},
  };
}

std::vector<Option> calibration_options() {
  return {
      {.name = "calibration_samples",
       .slot = slot<&QuantizationConfig::calibration_samples>,
       .help = "Rows of calibration_length tokens of the training records that the layers are shown.",
       .commands = kQuantizes,
       .range = at_least(1)},
      {.name = "calibration_length",
       .slot = slot<&QuantizationConfig::calibration_length>,
       .help = "Tokens of such a row.",
       .commands = kQuantizes,
       .range = between(8, 1 << 20)},
      {.name = "act_order",
       .slot = slot<&QuantizationConfig::act_order>,
       .help = "GPTQ: columns with the largest inputs first (desc_act).",
       .commands = kQuantizes},
      {.name = "static_groups",
       .slot = slot<&QuantizationConfig::static_groups>,
       .help = "GPTQ: scales are found before columns are rounded, for neighbouring ones, which loads and runs faster.",
       .commands = kQuantizes},
      {.name = "gptq_clip",
       .slot = slot<&QuantizationConfig::gptq_clip>,
       .help =
           "GPTQ with static_groups: also search for the smaller range of each group that changes the output least.",
       .commands = kQuantizes},
      {.name = "damp_percent",
       .slot = slot<&QuantizationConfig::damp_percent>,
       .help = "GPTQ: part of the mean of the Hessian's diagonal that is added to it.",
       .commands = kQuantizes,
       .range = {.minimum = 0, .maximum = 1, .minimum_excluded = true}},
      {.name = "gptq_block_size",
       .slot = slot<&QuantizationConfig::gptq_block_size>,
       .help = "GPTQ: columns whose error is passed on to the rest at once. It changes the speed alone.",
       .commands = kQuantizes,
       .range = at_least(1)},
      {.name = "awq_clip",
       .slot = slot<&QuantizationConfig::awq_clip>,
       .help = "AWQ: also search for the smaller range of each group that changes the layer's output least.",
       .commands = kQuantizes},
      {.name = "awq_grid_size",
       .slot = slot<&QuantizationConfig::awq_grid_size>,
       .help = "AWQ: exponents between 0 and 1 that are tried for the scales.",
       .commands = kQuantizes,
       .range = between(1, 1000)},
      {.name = "teq_steps",
       .slot = slot<&QuantizationConfig::teq_steps>,
       .help = "TEQ: steps in which a layer's scales are trained.",
       .commands = kQuantizes,
       .range = at_least(1)},
      {.name = "teq_learning_rate",
       .slot = slot<&QuantizationConfig::teq_learning_rate>,
       .help = "TEQ: learning rate of the scales.",
       .commands = kQuantizes,
       .range = above(0)},
  };
}

}  // namespace

std::vector<Option> merge_options() {
  return {{.name = "merge_adapters",
           .slot = slot<&MergeConfig::merge_adapters>,
           .help = "Adapters to merge, each a folder or hub name, with =weight after it if that is not 1; added to "
                   "adapter_name_or_path.",
           .commands = kMerge,
           .list_syntax = ListSyntax::kPaths}};
}

std::vector<Option> quantization_options() {
  return join({method_options(), calibration_options()});
}

std::vector<Option> benchmark_options() {
  return {
      {.name = "do_benchmark",
       .slot = slot<&BenchmarkConfig::do_benchmark>,
       .help = "Measure the speed of the result after the training, and of the quantized one beside it.",
       .commands = kTrain},
      {.name = "benchmark_warmup",
       .slot = slot<&BenchmarkConfig::benchmark_warmup>,
       .help = "Runs before those that are measured.",
       .commands = kBenchmarks,
       .range = at_least(0)},
      {.name = "benchmark_iterations",
       .slot = slot<&BenchmarkConfig::benchmark_iterations>,
       .help = "Runs that are measured; each processes a prompt and generates an answer.",
       .commands = kBenchmarks,
       .range = at_least(1)},
      {.name = "benchmark_cores_per_instance",
       .slot = slot<&BenchmarkConfig::benchmark_cores_per_instance>,
       .help = "Cores that each instance is pinned to; 0: all, shared out among the instances.",
       .commands = kBenchmarks,
       .range = between(0, 4096)},
      {.name = "benchmark_num_instances",
       .slot = slot<&BenchmarkConfig::benchmark_num_instances>,
       .help = "Processes that measure side by side.",
       .commands = kBenchmarks,
       .range = between(1, 1024)},
      {.name = "benchmark_batch_size",
       .slot = slot<&BenchmarkConfig::benchmark_batch_size>,
       .help = "Sequences that are generated together.",
       .commands = kBenchmarks,
       .range = between(1, 4096)},
      {.name = "benchmark_input_tokens",
       .slot = slot<&BenchmarkConfig::benchmark_input_tokens>,
       .help = "Tokens of the prompt.",
       .commands = kBenchmarks,
       .range = between(1, 1 << 20)},
      {.name = "benchmark_output_tokens",
       .slot = slot<&BenchmarkConfig::benchmark_output_tokens>,
       .help = "Tokens that are generated after it.",
       .commands = kBenchmarks,
       .range = between(2, 1 << 20)},
      {.name = "benchmark_output",
       .slot = slot<&BenchmarkConfig::benchmark_output>,
       .help = "JSON file for the figures; empty, after training: benchmark.json in output_dir.",
       .commands = kBenchmarks},
  };
}

std::vector<Option> export_options() {
  return {{.name = "gguf_type",
           .slot = slot<&ExportConfig::gguf_type>,
           .help = "Type of the GGUF file's matrices; vectors are always f32.",
           .commands = kExport,
           .choices = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"}}};
}

}  // namespace fettle::config::table
