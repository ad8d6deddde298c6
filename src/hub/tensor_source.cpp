// SPDX-License-Identifier: Apache-2.0
#include "hub/tensor_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "hub/json.h"
#include "hub/path.h"
#include "hub/safetensors.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

constexpr const char* kOtherSave = "index and shards are of different saves; download or save the model again";

/// Refuses a difference, in either direction, between the index and what a shard holds.
void check_against_index(const Safetensors& shard, const std::map<std::string, std::string>& index,
                         const std::string& shard_name, const fs::path& folder) {
  size_t listed = 0;
  for (const auto& [tensor, file] : index) listed += file == shard_name ? 1 : 0;
  for (const TensorView& view : shard.tensors) {
    const auto found = index.find(view.name);
    if (found == index.end() || found->second != shard_name) {
      throw Error(ExitCode::kData,
                  fmt::format("{}: tensor {} is not listed for this shard in {}", (folder / shard_name).string(),
                              quote(view.name), kSafetensorsIndex),
                  kOtherSave);
    }
  }
  if (shard.tensors.size() == listed) return;
  std::map<std::string_view, bool> present;
  for (const TensorView& view : shard.tensors) present[view.name] = true;
  for (const auto& [tensor, file] : index) {
    if (file == shard_name && !present.contains(tensor)) {
      throw Error(ExitCode::kData,
                  fmt::format("{}: tensor {} is missing, although {} lists it", (folder / shard_name).string(),
                              quote(tensor), kSafetensorsIndex),
                  kOtherSave);
    }
  }
}

[[noreturn]] void fail_no_weights(const fs::path& folder) {
  const bool pickled =
      path_exists(folder / "pytorch_model.bin") || path_exists(folder / "pytorch_model.bin.index.json");
  throw Error(ExitCode::kNoInput,
              fmt::format("{}: neither {} nor {} is there", folder.string(), kSafetensorsFile, kSafetensorsIndex),
              pickled ? "pytorch_model.bin is a pickle and not read: save the model once with transformers' "
                        "save_pretrained, which writes safetensors"
                      : "give a folder with the model's weights");
}

}  // namespace

TensorSource::TensorSource(std::vector<std::shared_ptr<const MappedFile>> files, std::vector<TensorView> tensors)
    : files_(std::move(files)), tensors_(std::move(tensors)) {
  for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

const TensorView* TensorSource::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

TensorSource TensorSource::open_safetensors(const fs::path& file_or_folder) {
  const bool folder = is_folder(file_or_folder);
  if (!folder || path_exists(file_or_folder / kSafetensorsFile)) {
    auto file = MappedFile::open(folder ? file_or_folder / kSafetensorsFile : file_or_folder);
    auto content = parse_safetensors(file->bytes(), file->path().string());
    return {{std::move(file)}, std::move(content.tensors)};
  }
  const fs::path index_path = file_or_folder / kSafetensorsIndex;
  if (!path_exists(index_path)) fail_no_weights(file_or_folder);

  const auto index = parse_safetensors_index(read_file(index_path), index_path.string());
  std::set<std::string> names;
  for (const auto& [tensor, shard] : index) names.insert(shard);
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<TensorView> tensors;
  for (const std::string& name : names) {
    const fs::path path = file_or_folder / name;
    if (!path_exists(path)) {
      throw Error(ExitCode::kNoInput, fmt::format("{}: the shard {} is missing", index_path.string(), quote(name)),
                  "complete the download of the model");
    }
    auto& file = files.emplace_back(MappedFile::open(path));
    auto content = parse_safetensors(file->bytes(), path.string());
    check_against_index(content, index, name, file_or_folder);
    std::move(content.tensors.begin(), content.tensors.end(), std::back_inserter(tensors));
  }
  return {std::move(files), std::move(tensors)};
}

TensorSource TensorSource::open_gguf(const GgufFile& file) {
  return {{file.mapping()}, file.model_tensors()};
}

std::map<std::string, std::string> weight_files(const fs::path& folder) {
  const TensorSource source = TensorSource::open_safetensors(folder);
  if (!path_exists(folder / kSafetensorsFile))
    return parse_safetensors_index(read_file(folder / kSafetensorsIndex), kSafetensorsIndex);
  std::map<std::string, std::string> files;
  for (const TensorView& view : source.tensors()) files[view.name] = kSafetensorsFile;
  return files;
}

bool has_weights(const fs::path& folder) {
  return path_exists(folder / kSafetensorsFile) || path_exists(folder / kSafetensorsIndex);
}

}  // namespace fettle::hub
