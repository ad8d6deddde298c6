#!/bin/sh
# Puts torch's CUDA libraries into the folder $1 as the wheels lay them out: what libtorch_cuda.so loads, without
# headers, static libraries and Python.
set -eu
root=$1
wheels=$(mktemp -d)
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
  --target "$wheels" -r deploy/requirements-cuda.txt
mkdir -p "$root/torch"
cp -r "$wheels/torch/lib" "$root/torch/lib"
cp -r "$wheels/nvidia" "$root/nvidia"
find "$root" \( -name '*.a' -o -name '*.h' -o -name '*.py' -o -name 'libtorch_python*' \) -delete
find "$root/nvidia" -type d -name include -prune -exec rm -r {} +
find "$root" -name 'libtorch_c*.so' -exec strip --strip-unneeded {} +
rm -r "$wheels"
if ldd "$root/torch/lib/libtorch_cuda.so" | grep 'not found'; then exit 1; fi
