# libfettle_cuda.so: the kernels of src/ops/cuda, compiled by nvcc and linked with libcudart alone. No GPU, driver or
# whole CUDA toolkit is needed (`tools/setup.sh cuda` installs nvcc), and CMake's CUDA language is not enabled: it would
# demand one. Nothing links the library: the program loads it from beside itself where a GPU is asked for.
set(FETTLE_CUDA AUTO CACHE STRING "Compile the CUDA kernels: ON, OFF, or AUTO (where an nvcc is found)")
# 8.x, 9.0 and 10.0 run machine code; what comes later compiles the last one's PTX when it is first loaded.
set(FETTLE_CUDA_ARCHITECTURES 80 90 100 CACHE STRING "Compute capabilities that the CUDA kernels are compiled for")

if(NOT FETTLE_CUDA STREQUAL "OFF")
  file(GLOB installed "${CMAKE_SOURCE_DIR}/.venv-cuda/lib/python3*/site-packages/nvidia/cu*/bin")
  find_program(FETTLE_NVCC nvcc HINTS ENV CUDACXX ${installed} PATHS /usr/local/cuda/bin DOC "The CUDA compiler")
  if(DEFINED ENV{CUDACXX} AND EXISTS "$ENV{CUDACXX}")
    set(FETTLE_NVCC "$ENV{CUDACXX}" CACHE FILEPATH "The CUDA compiler" FORCE)
  endif()
endif()
if(NOT FETTLE_NVCC OR FETTLE_CUDA STREQUAL "OFF")
  if(FETTLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FETTLE_CUDA is ON, but there is no nvcc: run `tools/setup.sh cuda`, or set CUDACXX")
  endif()
  message(STATUS "CUDA kernels: left out (${FETTLE_CUDA}); `tools/setup.sh cuda` installs nvcc")
  return()
endif()

file(REAL_PATH "${FETTLE_NVCC}" nvcc)
get_filename_component(toolkit "${nvcc}" DIRECTORY)
get_filename_component(toolkit "${toolkit}" DIRECTORY)
file(GLOB cudart "${toolkit}/lib/libcudart.so*" "${toolkit}/lib64/libcudart.so*" "${toolkit}/targets/*/lib/libcudart.so*")
if(NOT cudart)
  message(FATAL_ERROR "CUDA kernels: no libcudart.so below ${toolkit}, where nvcc is; -DFETTLE_CUDA=OFF leaves them out")
endif()
list(GET cudart 0 cudart)
message(STATUS "CUDA kernels: for ${FETTLE_CUDA_ARCHITECTURES} by ${nvcc}")

set(generate "")
foreach(architecture ${FETTLE_CUDA_ARCHITECTURES})
  list(APPEND generate -gencode "arch=compute_${architecture},code=sm_${architecture}")
endforeach()
list(GET FETTLE_CUDA_ARCHITECTURES -1 last)
list(APPEND generate -gencode "arch=compute_${last},code=compute_${last}")

file(GLOB kernels CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/src/ops/cuda/*.cu")
set(objects "")
foreach(source ${kernels})
  get_filename_component(name "${source}" NAME_WE)
  set(object "${CMAKE_BINARY_DIR}/cuda/${name}.o")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND "${nvcc}" -c "${source}" -o "${object}" -MD -MF "${object}.d" -std=c++20 -O3 -lineinfo --threads 2 ${generate}
            -ccbin "${CMAKE_CXX_COMPILER}" -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra -Werror all-warnings
            "-I${CMAKE_SOURCE_DIR}/src"
    DEPENDS "${source}" "${nvcc}"
    DEPFILE "${object}.d"
    COMMENT "Compiling the CUDA kernel ${name}"
    VERBATIM)
  list(APPEND objects "${object}")
endforeach()
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/cuda")

add_library(fettle_cuda SHARED ${objects})
set_target_properties(fettle_cuda PROPERTIES LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}"
                                             SKIP_BUILD_RPATH ON)
# -z defs: what is missing shows here, not where a GPU is. The program finds libcudart beside torch.
target_link_options(fettle_cuda PRIVATE -Wl,-z,defs -Wl,--as-needed)
target_link_libraries(fettle_cuda PRIVATE "${cudart}")
install(TARGETS fettle_cuda LIBRARY DESTINATION lib)
