// SPDX-License-Identifier: Apache-2.0
#include "data/preprocess.h"

#include "cli/commands.h"
#include "cli/options.h"

namespace fettle::cli {

int preprocess(const Arguments& arguments) {
  const auto config = read_options(arguments, config::Command::kPreprocess);
  return config ? data::preprocess(*config) : 0;
}

}  // namespace fettle::cli
