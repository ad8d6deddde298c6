#!/usr/bin/env bash
# Builds the image for the cluster's tests where there is no container engine's daemon and no image registry: on a
# Debian made by debootstrap, by buildah, with this machine's Rust and ccache lent to the build.
#   image.sh FILE [cpu|cuda]    the archive that cluster.sh load-image takes; the image is localhost/fettle:test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
(($# == 1 || $# == 2)) || { sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
archive=$(realpath -m "$1") target=${2:-cpu}
base=localhost/debian:bookworm-slim

# What Docker's slim image leaves out is left out here too: documentation and translations.
make_base() {
  local folder container
  folder=$(mktemp -d)
  debootstrap --variant=minbase bookworm "$folder" >/dev/null
  rm -rf "$folder"/usr/share/{doc,man,info,locale}/* "$folder"/var/{cache,lib}/apt/*/* "$folder"/var/log/*.log
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$folder" / >/dev/null
  buildah commit --quiet --rm "$container" "$base" >/dev/null
  rm -rf "$folder"
}
buildah inspect "$base" >/dev/null 2>&1 || make_base

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
IMAGE_ENGINE="buildah bud --isolation chroot --pull-never --layers --quiet" tools/image.sh "$target" localhost/fettle:test \
  --build-arg BASE_IMAGE="$base" --build-arg BUILD_IMAGE="$base" "${lent[@]}" >&2
rm -f "$archive"
buildah push --quiet localhost/fettle:test "oci-archive:$archive:localhost/fettle:test"
