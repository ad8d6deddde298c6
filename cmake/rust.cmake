# The Rust static library: tokenizers, minijinja, parquet and blake3 behind a C ABI (rust/include/fettle_text.h).
if(FETTLE_RUST_LIBRARY)
  set(rust_library "${FETTLE_RUST_LIBRARY}")
  add_custom_target(fettle_rust_build)
else()
  set(rust_library "${CMAKE_SOURCE_DIR}/rust/target/release/libfettle_text.a")
  file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/rust/src/*.rs")
  add_custom_command(
    OUTPUT "${rust_library}"
    COMMAND cargo build --release --locked --quiet
    WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}/rust"
    DEPENDS ${rust_sources} "${CMAKE_SOURCE_DIR}/rust/Cargo.toml" "${CMAKE_SOURCE_DIR}/rust/Cargo.lock"
    USES_TERMINAL
    COMMENT "Building the Rust library (tokenizers, minijinja, parquet, blake3)")
  add_custom_target(fettle_rust_build DEPENDS "${rust_library}")
endif()
add_library(fettle_rust INTERFACE)
add_dependencies(fettle_rust fettle_rust_build)
target_include_directories(fettle_rust SYSTEM INTERFACE "${CMAKE_SOURCE_DIR}/rust/include")
target_link_libraries(fettle_rust INTERFACE "${rust_library}" ${CMAKE_DL_LIBS} m)
