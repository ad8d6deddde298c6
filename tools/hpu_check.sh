#!/usr/bin/env bash
# On a machine with Gaudi cards, in the vendor's image (docs/gaudi.md): builds Fettle against the image's own torch, runs
# the tests that compare a card with the processor, and measures. Root, for the packages.
#   hpu_check.sh [arguments of hpu_check.py, e.g. --cards 8]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build/hpu
hl-smi || { echo "hpu_check: hl-smi shows no card" >&2; exit 69; }
apt-get update -qq
grep -v -e '^ccache$' -e '^cmake$' -e '^python3' tools/apt-packages.txt |
  DEBIAN_FRONTEND=noninteractive xargs apt-get install -qq -y --no-install-recommends libgtest-dev libgmock-dev >/dev/null
python3 -m pip install --quiet --target "$build/cmake" cmake==3.31.10
export PYTHONPATH=$PWD/$build/cmake PATH=$PWD/$build/cmake/bin:$PATH
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFETTLE_CUDA=OFF -DFETTLE_WERROR=OFF -DTORCH_ROOT="$torch" >/dev/null
cmake --build "$build" --target fettle fettle_hpu_operators
FETTLE_BUILD=$build FETTLE_TEST_CARD=1 python3 tests/hpu/hpu_test.py
exec python3 tools/hpu_check.py "$build" "$@"
