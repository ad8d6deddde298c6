// SPDX-License-Identifier: Apache-2.0
/// The stand-in's card: its memory, and whether this process has it.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Allocator.h>

#include "support/closed_memory.h"

namespace fettle::gaudi_stand_in {

const at::Device kDevice(at::kHPU, 0);

stand_in::ClosedMemory& memory();
at::Allocator& allocator();

/// Takes the card, the first time. Throws what a bridge throws that cannot have one.
void acquire();

/// The generator that programs see: one of its own, not the CPU's.
const at::Generator& device_generator();
/// What draws for it on the CPU; `wanted` is an operator's argument. Throws if that is a generator of the CPU.
at::Generator drawing_generator(const c10::IValue& wanted);

/// As a bridge reports a card that is gone.
extern const char* const kLostCard;

}  // namespace fettle::gaudi_stand_in
