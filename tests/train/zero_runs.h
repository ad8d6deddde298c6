// SPDX-License-Identifier: Apache-2.0
/// Whole runs of `fettle train` by several ranks, and what they leave, for the tests of zero_stage.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "config/parse.h"
#include "dist/ranks.h"
#include "hub/tensor_source.h"
#include "train/checkpoint.h"
#include "train/fine_tune.h"

namespace fettle::train {

using Options = std::vector<std::string>;

/// A rank that runs `fettle train` with the options in FETTLE_TEST_OPTIONS.
inline const dist::RankFunction fine_tuning(
    "fine_tune", std::function<void(const dist::RankSetup&)>([](const dist::RankSetup& setup) {
      std::istringstream lines(std::getenv("FETTLE_TEST_OPTIONS"));
      Options options;
      for (std::string line; std::getline(lines, line);) options.push_back(line);
      const config::Parsed parsed = config::parse(options, config::Command::kTrain);
      fine_tune(parsed.config, setup.launch());
    }));

/// For the ranks that are started next.
inline void set_options(const Options& options) {
  ::setenv("FETTLE_TEST_OPTIONS", fmt::format("{}", fmt::join(options, "\n")).c_str(), 1);
}

/// What all ranks of a run ended with.
inline std::vector<dist::Outcome> run_ranks(int64_t world_size, const Options& options) {
  set_options(options);
  dist::Ranks ranks({.function = "fine_tune", .world_size = world_size});
  return ranks.end();
}

/// 17 texts of very unequal lengths: two a micro-batch make 9, so that the last step of an epoch is short.
inline std::string write_texts(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "train.jsonl";
  std::string lines;
  for (int text = 0; text < 17; ++text) {
    std::string words;
    for (int word = 0; word < 3 + (7 * text) % 31; ++word) words += word % 3 == 0 ? "Once upon " : "a little dog ";
    lines += nlohmann::json({{"text", words}}).dump() + '\n';
  }
  write_file(file, lines);
  return file;
}

/// Training on these texts, but for the options given here.
inline Options training(const std::filesystem::path& texts, const std::filesystem::path& output_dir,
                        const Options& more) {
  Options options = {"--model_name_or_path=" FETTLE_SOURCE_DIR "/examples/stories260K",
                     "--train_file=" + texts.string(),
                     "--output_dir=" + output_dir.string(),
                     "--dataset_cache_directory=" + (texts.parent_path() / "cache").string(),
                     "--per_device_train_batch_size=2",
                     "--max_seq_length=128",
                     "--packing=false",
                     "--num_threads=1",
                     "--logging_steps=1",
                     "--adam_epsilon=1e-5",
                     "--log_level=info"};
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

/// Runs it and demands that all ranks end well. Returns rank 0's log.
inline std::string train_ranks(int64_t world_size, const Options& options) {
  std::string log;
  for (const dist::Outcome& outcome : run_ranks(world_size, options)) {
    EXPECT_EQ(outcome.code, 0) << outcome.report << outcome.err;
    if (log.empty()) log = outcome.err;
  }
  return log;
}

/// All tensors of a file, by name.
inline std::map<std::string, at::Tensor> tensors_of(const std::filesystem::path& file) {
  const hub::TensorSource source = hub::TensorSource::open_safetensors(file);
  std::map<std::string, at::Tensor> tensors;
  for (const hub::TensorView& view : source.tensors()) {
    EXPECT_EQ(view.dtype, hub::DType::kF32) << view.name;
    auto* data = const_cast<std::byte*>(view.bytes.data());
    tensors[view.name] = at::from_blob(data, view.shape, at::kFloat).clone();
  }
  return tensors;
}

/// ‖a − b‖ / ‖b‖ over all tensors of two files, which have the same names; the largest of that over the kinds of
/// tensors (exp_avg, exp_avg_sq, step, weight), which differ in size.
inline double distance(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto one = tensors_of(a);
  const auto other = tensors_of(b);
  EXPECT_EQ(one.size(), other.size());
  std::map<std::string, std::pair<double, double>> squares;
  for (const auto& [name, tensor] : other) {
    if (!one.contains(name)) {
      ADD_FAILURE() << a << " lacks " << name;
      continue;
    }
    auto& [difference, size] = squares[name.substr(name.rfind('.'))];
    difference += tensor.sub(one.at(name)).to(at::kDouble).square().sum().item<double>();
    size += tensor.to(at::kDouble).square().sum().item<double>();
  }
  double largest = 0;
  for (const auto& [kind, sums] : squares) largest = std::max(largest, std::sqrt(sums.first / sums.second));
  return largest;
}

inline std::filesystem::path newest_checkpoint(const std::filesystem::path& output_dir) {
  const auto all = list_checkpoints(output_dir);
  if (all.empty()) throw std::runtime_error("no checkpoint in " + output_dir.string());
  EXPECT_EQ(why_broken(all.back()), "");
  return all.back();
}

/// The files with this ending, by name.
inline std::map<std::string, std::string> files_ending_in(const std::filesystem::path& folder, const char* ending) {
  std::map<std::string, std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.ends_with(ending)) found[name] = read_file(entry.path());
  }
  return found;
}

inline nlohmann::json results_of(const std::filesystem::path& output_dir) {
  return nlohmann::json::parse(read_file(output_dir / "all_results.json"));
}

/// The weights' file of a checkpoint.
inline std::filesystem::path weights_in(const std::filesystem::path& checkpoint) {
  const std::filesystem::path adapter = checkpoint / "adapter_model.safetensors";
  return std::filesystem::exists(adapter) ? adapter : checkpoint / "model.safetensors";
}

}  // namespace fettle::train
