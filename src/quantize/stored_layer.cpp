// SPDX-License-Identifier: Apache-2.0
#include "quantize/stored_layer.h"

#include <cstring>
#include <vector>

namespace fettle::quantize {

at::ScalarType torch_type(hub::DType type) {
  TORCH_CHECK(type == hub::DType::kF32 || type == hub::DType::kF16 || type == hub::DType::kBF16,
              "quantize: a model is of ", hub::dtype_name(type));
  if (type == hub::DType::kF32) return at::kFloat;
  return type == hub::DType::kF16 ? at::kHalf : at::kBFloat16;
}

hub::StoredTensor store(const std::string& name, const at::Tensor& tensor, hub::DType type) {
  const at::Tensor stored = tensor.to(at::kCPU).to(torch_type(type)).contiguous();
  std::vector<std::byte> bytes(stored.nbytes());
  std::memcpy(bytes.data(), stored.const_data_ptr(), bytes.size());
  return {name, type, stored.sizes().vec(), std::move(bytes)};
}

}  // namespace fettle::quantize
