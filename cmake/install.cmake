# `cmake --install` makes a tree that can be moved: bin/fettle, and below lib/fettle what it loads of libtorch, in the
# wheel's own layout, by which its libraries find each other. For a GPU, or where FETTLE_INSTALL_TORCH is off, the torch
# that is there is used: bin/fettle then looks into lib/fettle alone, which may be a link to it.
option(FETTLE_INSTALL_TORCH "Install the CPU part of libtorch beside the program" ON)

set(install_rpath "$ORIGIN/../lib/fettle/torch/lib")
foreach(folder ${cuda_runtime})
  file(REAL_PATH "${folder}" folder)
  file(RELATIVE_PATH below "${TORCH_ROOT}/.." "${folder}")
  list(APPEND install_rpath "$ORIGIN/../lib/fettle/${below}")
  if(FETTLE_INSTALL_TORCH)
    file(GLOB libraries "${folder}/libcudart.so*" "${folder}/libcupti.so*")
    install(FILES ${libraries} DESTINATION "lib/fettle/${below}")
  endif()
endforeach()
set_target_properties(fettle PROPERTIES INSTALL_RPATH "${install_rpath}")
if(FETTLE_INSTALL_TORCH)
  install(FILES "${TORCH_ROOT}/lib/libtorch_cpu.so" "${TORCH_ROOT}/lib/libc10.so" ${openmp_runtime}
          DESTINATION lib/fettle/torch/lib)
endif()
install(DIRECTORY examples DESTINATION share/fettle)
install(FILES LICENSE DESTINATION share/doc/fettle)
if(TARGET fettle_cuda)
  install(FILES "$<TARGET_FILE:fettle_cuda>" DESTINATION bin)
endif()
