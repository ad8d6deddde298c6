// SPDX-License-Identifier: Apache-2.0
/// Reading a checkpoint's tensors in the type they are wanted in.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "hub/tensor_source.h"
#include "model/spec.h"

namespace fettle::model {

/// The tensor type of plain floats in a file; of blocks, float32. Not for integers.
at::ScalarType torch_type(hub::DType type);

/// The tensor in `type` (kFloat or kBFloat16). Where the file has it so, the result is the mapped memory itself: it may
/// not be written, and keeps `source` alive. Otherwise it is converted, by all threads, and the file's bytes leave
/// memory.
at::Tensor read_tensor(const std::shared_ptr<const hub::TensorSource>& source, const hub::TensorView& view,
                       at::ScalarType type);

/// expected_tensors(spec) as `source` has them: those of the layout in place of each matrix that it holds in few bits.
std::vector<TensorShape> stored_tensors(const DecoderSpec& spec, const hub::TensorSource& source);

/// Whether a tensor of a floating-point type holds neither NaN nor infinity; read in pieces, by all threads.
bool is_finite(const hub::TensorView& view);

/// Throws Error{kData} naming up to five tensors that `source` lacks, that `expected` does not know, or whose shapes
/// differ. `what` is how the message calls the source. A missing "tolerated" tensor is not an error: names whose
/// content the model computes itself (rotary_emb.inv_freq) or has already (a tied lm_head.weight).
void check_names(const hub::TensorSource& source, const std::vector<TensorShape>& expected, bool tied_embeddings,
                 std::string_view what);

}  // namespace fettle::model
