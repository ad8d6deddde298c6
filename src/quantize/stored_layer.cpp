// SPDX-License-Identifier: Apache-2.0
#include "quantize/stored_layer.h"

#include <cstring>
#include <vector>

#include "model/weights.h"

namespace fettle::quantize {

hub::StoredTensor store(const std::string& name, const at::Tensor& tensor, hub::DType type) {
  const at::Tensor stored = tensor.to(at::kCPU).to(model::torch_type(type)).contiguous();
  std::vector<std::byte> bytes(stored.nbytes());
  std::memcpy(bytes.data(), stored.const_data_ptr(), bytes.size());
  return {name, type, stored.sizes().vec(), std::move(bytes)};
}

}  // namespace fettle::quantize
