# Warnings and sanitizers for every target of ours; none of this reaches foreign headers.
add_library(fettle_options INTERFACE)
target_compile_options(fettle_options INTERFACE -Wall -Wextra -Wnon-virtual-dtor -Woverloaded-virtual)
if(FETTLE_WERROR)
  target_compile_options(fettle_options INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 sees dangling pointers and overflows in inlined std::vector and std::string code that are not there (PR 105329, 105651).
  target_compile_options(fettle_options INTERFACE -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread
                                                  -Wno-array-bounds -Wno-maybe-uninitialized -Wno-dangling-pointer)
endif()
if(CMAKE_UNITY_BUILD)
  # What is local to a source looks to GCC, which sees it included, as if it were in a header. The linter's build is not of one piece.
  target_compile_options(fettle_options INTERFACE -Wno-subobject-linkage)
endif()
if(FETTLE_SANITIZE)
  target_compile_options(fettle_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(fettle_options INTERFACE -fsanitize=address,undefined)
endif()
target_include_directories(fettle_options INTERFACE "${CMAKE_SOURCE_DIR}/src")
