// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

#include <utility>

namespace fettle {

Error::Error(ExitCode code, std::string what, std::string hint)
    : code_(code), message_(std::move(what)), hint_(std::move(hint)) {}

}  // namespace fettle
