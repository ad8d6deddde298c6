// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "hub/json.h"
#include "hub/path.h"
#include "hub/safetensors.h"

namespace fettle::hub {
namespace fs = std::filesystem;
namespace {

using nlohmann::ordered_json;

size_t byte_count(const TensorView& view) {
  return static_cast<size_t>(element_count(view) * block_layout(view.dtype).bytes);
}

void check_view(const TensorView& view) {
  if (block_layout(view.dtype).elements != 1 || view.interleaved_heads != 0 || view.name == "__metadata__") {
    throw Error(ExitCode::kInternal, fmt::format("tensor {} cannot be written as it is", quote(view.name)));
  }
}

/// The reference sorts by descending alignment, in this order of types.
int layout_rank(DType dtype) {
  constexpr std::array kOrder = {DType::kI64, DType::kF64, DType::kF32, DType::kI32, DType::kBF16,
                                 DType::kF16, DType::kI16, DType::kI8,  DType::kU8,  DType::kBool};
  return static_cast<int>(std::find(kOrder.begin(), kOrder.end(), dtype) - kOrder.begin());
}

std::vector<const TensorView*> in_layout_order(std::span<const TensorView> tensors) {
  std::vector<const TensorView*> ordered;
  for (const TensorView& view : tensors) {
    check_view(view);
    ordered.push_back(&view);
  }
  std::sort(ordered.begin(), ordered.end(), [](const TensorView* a, const TensorView* b) {
    return std::pair(layout_rank(a->dtype), std::string_view(a->name)) <
           std::pair(layout_rank(b->dtype), std::string_view(b->name));
  });
  return ordered;
}

std::string make_header(const std::vector<const TensorView*>& ordered,
                        const std::map<std::string, std::string>& metadata) {
  ordered_json header = ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t position = 0;
  std::set<std::string_view> seen;
  for (const TensorView* view : ordered) {
    if (!seen.insert(view->name).second) {
      throw Error(ExitCode::kInternal, fmt::format("two tensors are named {}", quote(view->name)));
    }
    // Not header[name]: ordered_json looks a key up by walking all of them.
    header.get_ref<ordered_json::object_t&>().emplace_back(
        view->name, ordered_json{{"dtype", dtype_name(view->dtype)},
                                 {"shape", view->shape},
                                 {"data_offsets", {position, position + byte_count(*view)}}});
    position += byte_count(*view);
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

std::string shard_name(size_t index, size_t count) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

/// Shards as transformers makes them: in the given order; a tensor above the limit gets a shard of its own.
std::vector<std::vector<TensorView>> split(std::span<const TensorView> tensors, uint64_t max_shard_size) {
  std::vector<std::vector<TensorView>> shards;
  std::vector<TensorView> current;
  uint64_t current_size = 0;
  for (const TensorView& view : tensors) {
    if (byte_count(view) > max_shard_size) {
      shards.push_back({view});
      continue;
    }
    if (current_size + byte_count(view) > max_shard_size) {
      shards.push_back(std::exchange(current, {}));
      current_size = 0;
    }
    current.push_back(view);
    current_size += byte_count(view);
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

/// Removes the weight files of an earlier save that `kept` does not name. transformers prefers model.safetensors to an
/// index, so an old one would hide the new shards.
void remove_stale(const fs::path& folder, const std::set<std::string>& kept) {
  static const std::regex kWeights(R"(model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?)");
  for (const fs::path& path : list_folder(folder)) {
    const std::string name = path.filename().string();
    if (!std::regex_match(name, kWeights) || kept.contains(name)) continue;
    if (::unlink(path.c_str()) != 0) throw_system_error("remove", path, errno);
  }
}

std::span<const std::byte> own_bytes(const TensorView& view) {
  return view.bytes;
}

/// Both see a piece while it is in the processor's cache.
void write_and_hash(std::span<const std::byte> bytes, AtomicFile& file, Blake3& hash) {
  constexpr size_t kPiece = size_t{256} << 10;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(kPiece, bytes.size()))) {
    const auto piece = bytes.first(std::min(kPiece, bytes.size()));
    hash.update(piece);
    file.write(piece);
  }
}

/// Each file with its tensors, and the index unless there is one file of the name that needs none.
void write_files(const fs::path& folder, const std::map<std::string, std::vector<TensorView>>& files,
                 const TensorBytes& bytes) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::set<std::string> kept;
  nlohmann::json weight_map;
  int64_t parameters = 0;
  uint64_t sum = 0;
  for (const auto& [name, tensors] : files) {
    write_safetensors(folder / name, tensors, metadata, bytes);
    kept.insert(name);
    for (const TensorView& view : tensors) {
      weight_map[view.name] = name;
      parameters += element_count(view);
      sum += byte_count(view);
    }
  }
  if (kept != std::set<std::string>{kSafetensorsFile}) {
    const nlohmann::json index = {{"metadata", {{"total_parameters", parameters}, {"total_size", sum}}},
                                  {"weight_map", weight_map}};
    write_file(folder / kSafetensorsIndex, index.dump(2) + "\n");
    kept.insert(kSafetensorsIndex);
  }
  remove_stale(folder, kept);
}

}  // namespace

std::string write_safetensors(const fs::path& path, std::span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata) {
  return write_safetensors(path, tensors, metadata, own_bytes);
}

std::string write_safetensors(const fs::path& path, std::span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata, const TensorBytes& bytes) {
  const auto ordered = in_layout_order(tensors);
  const std::string header = make_header(ordered, metadata);
  const uint64_t length = header.size();
  AtomicFile file(path, PageCache::kBypass);
  Blake3 hash;
  write_and_hash(std::as_bytes(std::span(&length, 1)), file, hash);
  write_and_hash(std::as_bytes(std::span(header)), file, hash);
  for (const TensorView* view : ordered) {
    const std::span<const std::byte> content = bytes(*view);
    if (content.size() != byte_count(*view)) {
      throw Error(ExitCode::kInternal, fmt::format("tensor {} cannot be written as it is", quote(view->name)));
    }
    write_and_hash(content, file, hash);
  }
  file.commit();
  return hash.finish();
}

void write_model_safetensors(const fs::path& folder, std::span<const TensorView> tensors, uint64_t max_shard_size) {
  write_model_safetensors(folder, tensors, max_shard_size, own_bytes);
}

void write_model_safetensors(const fs::path& folder, std::span<const TensorView> tensors, uint64_t max_shard_size,
                             const TensorBytes& bytes) {
  const auto shards = split(tensors, max_shard_size);
  std::map<std::string, std::vector<TensorView>> files;
  for (size_t i = 0; i < shards.size(); ++i)
    files[shards.size() == 1 ? kSafetensorsFile : shard_name(i, shards.size())] = shards[i];
  write_files(folder, files, bytes);
}

void write_model_safetensors(const fs::path& folder, std::span<const TensorView> tensors,
                             const std::map<std::string, std::string>& files, const TensorBytes& bytes) {
  std::map<std::string, std::vector<TensorView>> shards;
  for (const TensorView& view : tensors) shards[files.at(view.name)].push_back(view);
  write_files(folder, shards, bytes);
}

}  // namespace fettle::hub
