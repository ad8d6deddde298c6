// SPDX-License-Identifier: Apache-2.0
/// fettle_hpu_operators: the operators that the Gaudi bridge of this machine registers under hpu::, one schema a line.
/// Compare with what src/ops/hpu expects.
#include <ATen/core/dispatch/Dispatcher.h>

#include <iostream>
#include <set>
#include <sstream>
#include <string>

#include "base/error.h"
#include "device/hpu.h"

int main() {
  try {
    fettle::device::load_hpu({});
    std::set<std::string> schemas;
    for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
      const auto found = c10::Dispatcher::singleton().findSchema(name);
      if (!found || !name.name.starts_with("hpu::")) continue;
      std::ostringstream schema;
      schema << found->schema();
      schemas.insert(schema.str());
    }
    for (const std::string& schema : schemas) std::cout << schema << '\n';
    return schemas.empty() ? 1 : 0;
  } catch (const fettle::Error& error) {
    std::cerr << "error: " << error.what() << "; " << error.hint() << '\n';
    return static_cast<int>(error.code());
  }
}
