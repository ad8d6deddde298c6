// SPDX-License-Identifier: Apache-2.0
// Linked into the unit tests that compute, as every program does what this does.
#include <gtest/gtest.h>

#include "ops/vector_math.h"

namespace fettle::ops {
namespace {

class SettledVectorMath : public ::testing::Environment {
 public:
  void SetUp() override { settle_vector_math(); }
};
[[maybe_unused]] const auto* const environment = ::testing::AddGlobalTestEnvironment(new SettledVectorMath);

}  // namespace
}  // namespace fettle::ops
