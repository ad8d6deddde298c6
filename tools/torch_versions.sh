#!/usr/bin/env bash
# Builds the program, and the stand-in of Gaudi's bridge, against the versions of torch that Gaudi's images hold, and
# trains a few steps on the CPU and on the stand-in with each. The default build has the newest one.
#   tools/torch_versions.sh [VERSION …]    2.9.1 and 2.10.0; tools/torch has the wheels' hashes; about 0.7 GB each
# JOBS, and CMAKE_ARGS for further arguments of cmake, are taken from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
(($#)) || set -- 2.9.1 2.10.0

say() { printf 'torch_versions: %s\n' "$*" >&2; }

# The wheel's CPU part: its CUDA libraries are four times as large, and nothing here loads them.
install_torch() {
  local folder=$1 requirements=$2
  cmp -s "$requirements" "$folder/requirements.txt" && return
  say "installing $requirements into $folder"
  rm -rf "$folder"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-compile --require-hashes \
    --only-binary=:all: --target "$folder" -r "$requirements"
  rm -f "$folder"/torch/lib/{libtorch_cuda*,libtorch_nvshmem*,libc10_cuda*,libcaffe2_nvrtc*,libtorch_python*}.so
  rm -rf "$folder"/torch/bin "$folder"/torch/test
  cp "$requirements" "$folder/requirements.txt"
}

# Gaudi's images for Ubuntu 22.04 carry gcc 11, and torch 2.10 where their version is 1.24.
compiler() {
  if [[ $1 == 2.10.* ]] && command -v g++-11 >/dev/null; then echo g++-11; else echo g++; fi
}

run() {
  local build=$1 device=$2
  shift 2
  local output=$build/run-$device
  rm -rf "$output"
  "$build/fettle" train examples/stories260k_tinystories.yaml --device="$device" --output_dir="$output" --max_steps=4 \
    --log_level=warning "$@" >"$output.log" 2>&1 || { cat "$output.log" >&2; return 1; }
  [ -f "$output/adapter_model.safetensors" ] || { say "$output holds no adapter"; return 1; }
}

on_stand_in() {
  local site=$1/tests/hpu/site
  FETTLE_HPU_BRIDGE="$site/habana_frameworks/torch" LD_LIBRARY_PATH="$site/habanalabs" \
    GC_KERNEL_PATH="$site/habanalabs/libtpc_kernels.so" XDG_CACHE_HOME="$PWD/$1/cache" run "$1" hpu
  grep -q stand-in "$1/run-hpu.log" || { say "$1/run-hpu.log does not name the stand-in"; return 1; }
}

for version in "$@"; do
  torch=.downloads/torch-$version build=build/torch-$version cxx=$(compiler "$version")
  [ -f "tools/torch/$version.txt" ] || { say "tools/torch/$version.txt is missing: it names the wheels"; exit 64; }
  install_torch "$torch" "tools/torch/$version.txt"
  say "building with $cxx against torch $version in $build"
  # shellcheck disable=SC2086 # CMAKE_ARGS is a list
  CXX=$cxx cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DTORCH_ROOT="$PWD/$torch/torch" -DFETTLE_CUDA=OFF \
    -DFETTLE_WERROR=OFF ${CMAKE_ARGS:-} >/dev/null
  cmake --build "$build" --parallel "${JOBS:-$(nproc)}" --target fettle hpu_stand_in hpu_stand_in_synapse
  ldd "$build/fettle" | grep -q "$torch/torch/lib/libtorch_cpu.so" || { say "$build/fettle loads another torch"; exit 1; }
  "$build/fettle" --version
  run "$build" cpu
  on_stand_in "$build"
  say "torch $version: built by $cxx; trained on the CPU and on the stand-in"
done
