#!/usr/bin/env bash
# Builds the image for the cluster's tests where there is no container engine's daemon and no image registry: on a
# Debian made by debootstrap, by buildah, with this machine's Rust and ccache lent to the build.
#   image.sh FILE [cpu|cuda|hpu]           the archive that cluster.sh load-image takes, with localhost/fettle:test in it;
#                                          `-`: no archive. hpu: localhost/fettle:test-hpu, on tests/hpu/vendor_image.sh
#   image.sh --base TAG [SUITE [MIRROR]]   only what images are built on: a distribution without what runs on it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base=localhost/debian:bookworm-slim

usage() {
  sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

# What Docker's slim image leaves out is left out here too: documentation and translations.
make_base() {
  local tag=$1 suite=${2:-bookworm} mirror=${3:-} folder container
  buildah inspect "$tag" >/dev/null 2>&1 && return
  folder=$(mktemp -d)
  # Ubuntu has half of what Debian's main has in another component.
  debootstrap --variant=minbase ${mirror:+--components=main,universe} "$suite" "$folder" ${mirror:+"$mirror"} >/dev/null
  rm -rf "$folder"/usr/share/{doc,man,info,locale}/* "$folder"/var/{cache,lib}/apt/*/* "$folder"/var/log/*.log
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$folder" / >/dev/null
  buildah commit --quiet --rm "$container" "$tag" >/dev/null
  rm -rf "$folder"
}

if [[ ${1:-} == --base ]]; then
  (($# >= 2 && $# <= 4)) || usage
  make_base "${@:2}"
  exit
fi
(($# == 1 || $# == 2)) || usage
archive=$1 target=${2:-cpu} image=localhost/fettle:test
make_base "$base"

# What cargo and the C++ compiler made before is taken up again, by this build and the next.
rust=${XDG_CACHE_HOME:-$HOME/.cache}/fettle-image/rust
mkdir -p "$rust"
lent=(--volume "$rust:/src/rust/target" --volume "${RUSTUP_HOME:-$HOME/.rustup}:/usr/local/rustup:ro" --volume "${CARGO_HOME:-$HOME/.cargo}:/usr/local/cargo")
if command -v ccache >/dev/null; then
  cache=$(ccache --get-config cache_dir)
  mkdir -p "$cache"
  lent+=(--volume "$cache:/root/.cache/ccache")
fi
# A network that is reached through a proxy of its own certificate.
if [[ -n ${PIP_CERT:-} ]]; then
  lent+=(--volume "$PIP_CERT:/run/authorities.crt:ro")
  lent+=(--build-arg PIP_CERT=/run/authorities.crt --build-arg CARGO_HTTP_CAINFO=/run/authorities.crt)
fi
[[ -z ${JOBS:-} ]] || lent+=(--build-arg JOBS="$JOBS")
if [[ $target == hpu ]]; then
  tests/hpu/vendor_image.sh
  image+=-hpu
  lent+=(--build-arg HPU_IMAGE=localhost/gaudi-vendor:test)
fi
IMAGE_ENGINE="buildah bud --isolation chroot --pull-never --layers --quiet" tools/image.sh "$target" "$image" \
  --build-arg BASE_IMAGE="$base" --build-arg BUILD_IMAGE="$base" "${lent[@]}" >&2
[[ $archive != - ]] || exit 0
rm -f "$archive"
buildah push --quiet "$image" "oci-archive:$archive:$image"
