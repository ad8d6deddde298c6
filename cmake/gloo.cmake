# Gloo is inside libtorch_cpu; its headers are not in the wheel. What ProcessGroupGloo.hpp names of it is declared by
# src/dist/gloo_types.h, and lies under the names that header includes. No library is linked for it.
set(FETTLE_GLOO_INCLUDE "${CMAKE_BINARY_DIR}/gloo_include")
foreach(name algorithm common/error context rendezvous/store transport/device)
  file(CONFIGURE OUTPUT "${FETTLE_GLOO_INCLUDE}/gloo/${name}.h" CONTENT "#pragma once\n#include \"dist/gloo_types.h\"\n")
endforeach()
if(NOT EXISTS "${TORCH_ROOT}/include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp")
  message(FATAL_ERROR "libtorch in ${TORCH_ROOT} is built without torch.distributed, which training on several machines "
                      "needs: use the torch wheel (make setup), or a build with USE_DISTRIBUTED=1 and USE_GLOO=1")
endif()
