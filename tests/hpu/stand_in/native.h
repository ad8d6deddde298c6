// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/operator_name.h>

namespace fettle::gaudi_stand_in {

/// Whether a bridge computes it on the card. Everything else falls back to the CPU, and is counted.
bool is_native(const c10::OperatorName& name);

}  // namespace fettle::gaudi_stand_in
