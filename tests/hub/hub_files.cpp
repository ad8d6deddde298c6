// SPDX-License-Identifier: Apache-2.0
/// Reads files with the hub room and writes what it read, for comparison with the reference libraries:
///   copy IN.safetensors OUT.safetensors        every tensor, and metadata {"format": "pt"}
///   split IN.safetensors FOLDER BYTES          a model's shards and index
///   join FOLDER OUT.safetensors                a model folder, sharded or not, as one file
///   floats IN OUT.safetensors                  a GGUF or safetensors file, every tensor as float32
///   adapter FOLDER FOLDER                      adapter_config.json
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "hub/adapter.h"
#include "hub/gguf.h"
#include "hub/safetensors.h"
#include "hub/tensor_source.h"

namespace fettle::hub {
namespace {

using Arguments = std::vector<std::string>;

const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

void copy(const Arguments& arguments) {
  write_safetensors(arguments.at(1), TensorSource::open_safetensors(arguments.at(0)).tensors(), kMetadata);
}

void split(const Arguments& arguments) {
  // The reference splits in the order of the model's tensors; a file of its own is sorted by name within a type.
  const TensorSource source = TensorSource::open_safetensors(arguments.at(0));
  write_model_safetensors(arguments.at(1), source.tensors(), std::stoull(arguments.at(2)));
}

void write_floats(const Arguments& arguments) {
  const std::string& in = arguments.at(0);
  const TensorSource source =
      in.ends_with(".gguf") ? TensorSource::open_gguf(GgufFile::open(in)) : TensorSource::open_safetensors(in);
  std::vector<std::vector<float>> values;
  std::vector<TensorView> views;
  for (const TensorView& stored : source.tensors()) {
    auto& floats = values.emplace_back(static_cast<size_t>(element_count(stored)));
    read_floats(stored, floats);
    views.push_back(
        {.name = stored.name, .dtype = DType::kF32, .shape = stored.shape, .bytes = std::as_bytes(std::span(floats))});
  }
  write_safetensors(arguments.at(1), views, kMetadata);
}

void copy_adapter_config(const Arguments& arguments) {
  write_adapter_config(arguments.at(1), read_adapter_config(arguments.at(0)));
}

const std::map<std::string, std::function<void(const Arguments&)>> kCommands = {
    {"copy", copy}, {"split", split}, {"join", copy}, {"floats", write_floats}, {"adapter", copy_adapter_config}};

}  // namespace
}  // namespace fettle::hub

int main(int count, char** words) {
  const std::vector<std::string> arguments(words + 1, words + count);
  try {
    fettle::hub::kCommands.at(arguments.at(0))({arguments.begin() + 1, arguments.end()});
    return 0;
  } catch (const fettle::Error& error) {
    std::fprintf(stderr, "error: %s; %s\n", error.what(), error.hint().c_str());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wrong arguments: %s\n", error.what());
    return static_cast<int>(fettle::ExitCode::kUsage);
  }
}
