// SPDX-License-Identifier: Apache-2.0
/// A line of JSON {"quantization_config": …, "rows": O, "columns": C}, then a safetensors file with the layer "layer".
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "fuzz/target.h"
#include "hub/json.h"
#include "hub/quantization.h"
#include "hub/tensor_source.h"

using namespace fettle;

namespace {

int64_t size_of(const nlohmann::json& config, const char* name) {
  const nlohmann::json& value = config.value(name, nlohmann::json());
  return value.is_number_integer() ? std::clamp<int64_t>(value.get<int64_t>(), 1, 4096) : 64;
}

}  // namespace

void fuzz::run_target(std::string_view input) {
  static const std::filesystem::path file =
      std::filesystem::temp_directory_path() / fmt::format("fettle-fuzz-{}.safetensors", getpid());
  const size_t line = std::min(input.find('\n'), input.size());
  const nlohmann::json config = hub::parse_json_object(input.substr(0, line), "config.json");
  const auto quantization = hub::read_quantization(config);
  if (!quantization) return;
  const int64_t rows = size_of(config, "rows");
  const int64_t columns = size_of(config, "columns");
  hub::require_representable(*quantization, "layer", rows, columns);
  write_file(file, input.substr(std::min(line + 1, input.size())));
  const auto source = hub::TensorSource::open_safetensors(file);
  std::filesystem::remove(file);  // it stays mapped
  if (hub::expected_tensors(*quantization, source, "layer", rows, columns).empty()) return;
  hub::decode(*quantization, source, "layer", rows, columns);
}
