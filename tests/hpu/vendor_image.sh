#!/usr/bin/env bash
# Makes an image that looks to deploy/Dockerfile as the vendor's image for Gaudi does: its folders, its environment, its
# compiler, a torch that says it is the vendor's, and in place of bridge and driver libraries the stand-in of this folder.
# It holds nothing of the vendor's.
#   vendor_image.sh    localhost/gaudi-vendor:test, by buildah, as root; what did not change is not made again
# On the Debian of tools/cluster/image.sh; with UBUNTU_MIRROR=<of Ubuntu's packages>, on Ubuntu 22.04 as the vendor's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tag=localhost/gaudi-vendor:test
torch=2.10.0

if [[ -n ${UBUNTU_MIRROR:-} ]]; then
  base=localhost/ubuntu:jammy compiler=
  tools/cluster/image.sh --base "$base" jammy "$UBUNTU_MIRROR"
else
  base=localhost/debian:bookworm-slim compiler=g++-11  # Ubuntu 22.04's
  tools/cluster/image.sh --base "$base"
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir -p "$context/stand_in/hpu" "$context/stand_in/support"
cp -r tests/hpu/stand_in "$context/stand_in/hpu/"
cp tests/support/closed_memory.h "$context/stand_in/support/"
cp "tools/torch/$torch.txt" "$context/torch.txt"
# The vendor's runtime writes its logs where HABANA_LOGS says, and so shows whether they may be there.
cat >"$context/stand_in/synapse.cpp" <<'CPP'
#include <cstdlib>
#include <filesystem>
#include <fstream>
__attribute__((constructor)) static void write_log() {
  const char* folder = std::getenv("HABANA_LOGS");
  std::error_code failed;
  if (folder != nullptr) std::filesystem::create_directories(folder, failed);
  if (folder != nullptr) std::ofstream(std::filesystem::path(folder) / "synapse_runtime.log") << "loaded\n";
}
CPP

lent=()
if [[ -n ${PIP_CERT:-} ]]; then  # a network that is reached through a proxy of its own certificate
  lent=(--volume "$PIP_CERT:/run/authorities.crt:ro" --build-arg PIP_CERT=/run/authorities.crt)
fi

buildah bud --isolation chroot --pull-never --layers --quiet --tag "$tag" "${lent[@]}" --build-arg BASE="$base" \
  --build-arg COMPILER="$compiler" --build-arg TORCH="$torch" --file - "$context" >/dev/null <<'DOCKERFILE'
ARG BASE
FROM ${BASE} AS vendor
ARG COMPILER
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=on PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# pip may install beside the distribution's packages in the vendor's images.
RUN apt-get update -qq \
 && apt-get install -qq -y --no-install-recommends build-essential ${COMPILER} ca-certificates libgoogle-perftools4 python3 python3-pip >/dev/null \
 && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED
ENV CXX=${COMPILER}
ARG PIP_CERT
ARG TORCH
COPY torch.txt /tmp/
RUN python3 -m pip install --quiet --no-deps --no-compile --require-hashes -r /tmp/torch.txt \
 && packages=$(python3 -c 'from importlib.util import find_spec; print(*find_spec("torch").submodule_search_locations)')/.. \
 && cd "$packages" && rm -rf /tmp/torch.txt torch/bin torch/test \
      torch/lib/libtorch_cuda* torch/lib/libtorch_nvshmem* torch/lib/libc10_cuda* torch/lib/libcaffe2_nvrtc* torch/lib/libtorch_python* \
 && sed -i "s/^__version__ = .*/__version__ = '$TORCH+hpu.stand.in'/" torch/version.py \
 && mkdir -p habana_frameworks/torch/lib && echo "$TORCH" >habana_frameworks/torch/required_version.txt

FROM vendor AS bridge
COPY stand_in /stand_in
RUN torch=$(python3 -c 'from importlib.util import find_spec; print(*find_spec("torch").submodule_search_locations)') \
 && mkdir /out && cd /out \
 && ls /stand_in/hpu/stand_in/*.cpp | xargs -P 2 -n 1 ${CXX:-g++} -std=c++20 -O1 -fPIC -fopenmp -w -c -I /stand_in \
      -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
 && ${CXX:-g++} -shared -o libhabana_pytorch_plugin.so *.o -L "$torch/lib" -ltorch_cpu -lc10 -ldl && rm *.o \
 && ${CXX:-g++} -std=c++20 -O1 -fPIC -shared -o libSynapse.so /stand_in/synapse.cpp && : >libtpc_kernels.so

FROM vendor
COPY --from=bridge /out /usr/lib/habanalabs
RUN mkdir /var/log/habana_logs && mv /usr/lib/habanalabs/libhabana_pytorch_plugin.so \
      "$(python3 -c 'from importlib.util import find_spec; print(*find_spec("habana_frameworks").submodule_search_locations)')/torch/lib/"
# As the public Dockerfiles of the vendor's images set them.
ENV GC_KERNEL_PATH=/usr/lib/habanalabs/libtpc_kernels.so HABANA_LOGS=/var/log/habana_logs/ \
    HABANA_SCAL_BIN_PATH=/opt/habanalabs/engines_fw HABANA_PLUGINS_LIB_PATH=/opt/habanalabs/habana_plugins \
    MPI_ROOT=/opt/amazon/openmpi OPAL_PREFIX=/opt/amazon/openmpi LD_LIBRARY_PATH=/opt/amazon/openmpi/lib:/usr/lib/habanalabs: \
    LANG=C.UTF-8 PYTHONPATH=/root:/usr/lib/habanalabs/ RDMAV_FORK_SAFE=1 FI_EFA_USE_DEVICE_RDMA=1 \
    LD_PRELOAD=/lib/x86_64-linux-gnu/libtcmalloc.so.4 TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD=7516192768
DOCKERFILE
