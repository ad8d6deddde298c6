#!/usr/bin/env bash
# Builds an image of Fettle with docker, podman or buildah, whichever is there and works.
#   tools/image.sh cpu|cuda|hpu TAG [arguments of the engine's build …]
set -euo pipefail
cd "$(dirname "$0")/.."
(($# >= 2)) || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
target=$1 tag=$2
shift 2

engine() {
  if command -v docker >/dev/null && docker info >/dev/null 2>&1; then echo docker build
  elif command -v podman >/dev/null; then echo podman build
  elif command -v buildah >/dev/null; then echo buildah bud
  else echo "image.sh: install docker, podman or buildah" >&2; exit 69
  fi
}

chosen=${IMAGE_ENGINE:-$(engine)}
read -ra build <<<"$chosen"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
exec "${build[@]}" --file deploy/Dockerfile --target "$target" --tag "$tag" \
  --build-arg VERSION="$(sed -n 's/^project(fettle VERSION \([^ ]*\).*/\1/p' CMakeLists.txt)" --build-arg REVISION="$revision" "$@" .
