# hpu_environment: by what a program finds the stand-in of a Gaudi card, for a test's ENVIRONMENT.
set(site "${CMAKE_BINARY_DIR}/tests/hpu/site")
set(hpu_environment "FETTLE_HPU_BRIDGE=${site}/habana_frameworks/torch" "LD_LIBRARY_PATH=${site}/habanalabs"
                    "GC_KERNEL_PATH=${site}/habanalabs/libtpc_kernels.so")
