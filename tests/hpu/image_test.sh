#!/usr/bin/env bash
# The hpu image, built on an image that imitates the vendor's (vendor_image.sh), trains and answers on the stand-in of a
# Gaudi card as Kubernetes would run it: as the image's own user, the file system read-only but for /tmp, no network.
#   image_test.sh    as root; where it cannot be run, it says why and passes. JOBS is taken from the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
image=localhost/fettle:test-hpu

skip() { echo "image_test: skipped: $*"; exit 0; }
fail() { echo "image_test: $*" >&2; exit 1; }

[[ $(id -u) == 0 ]] || skip "buildah builds images and mounts them as root only here"
for tool in buildah debootstrap unshare; do
  command -v $tool >/dev/null || skip "$tool is not installed"
done
unshare --mount --net true 2>/dev/null || skip "this machine lets nobody unshare mounts and networks"

work=$(mktemp -d)
container=
clean_up() {
  [[ -z $container ]] || buildah rm "$container" >/dev/null
  rm -rf "$work"
}
trap clean_up EXIT

tools/cluster/image.sh - hpu
container=$(buildah from --pull-never "$image")
root=$(buildah mount "$container")
config() { buildah inspect --type image --format "$1" "$image"; }
mapfile -t environment < <(config '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' | sed '/^$/d')
user=$(config '{{.OCIv1.Config.User}}')
[[ $user == 10001:10001 ]] || fail "the image's user is $user"
[[ $(config '{{.OCIv1.Config.Entrypoint}}') == "[fettle]" ]] || fail "the image's entrypoint is not fettle"

# Runs a command in the container, in folder $1. /tmp outlives it: $work/tmp.
mkdir -m 1777 "$work/tmp"
inside() {
  local folder=$1
  shift
  # shellcheck disable=SC2016 # for the inner shell
  unshare --mount --net --ipc --fork --kill-child sh -euc '
    root=$1 tmp=$2 user=$3 folder=$4; shift 4
    mount --bind "$root" "$root" && mount -o remount,ro,bind "$root"
    mount --bind "$tmp" "$root/tmp"
    mount --bind /proc "$root/proc" && mount --rbind /dev "$root/dev"
    exec chroot --userspec="$user" "$root" env -i -C "$folder" "$@"' \
    sh "$root" "$work/tmp" "$user" "$folder" "${environment[@]}" "$@"
}

[[ $(inside / id -u) == 10001 ]] || fail "the container's user is not the image's"
inside / sh -c ': >/var/tmp/file' 2>/dev/null && fail "the container's file system can be written to"

inside / fettle --version
examples=/usr/local/share/fettle
inside $examples fettle train examples/stories260k_tinystories.yaml --device=hpu --output_dir=/tmp/out --max_steps=4 \
  >"$work/train.log" 2>&1 || { cat "$work/train.log" >&2; fail "training ended with an error"; }
cat "$work/train.log"
grep -q stand-in "$work/train.log" || fail "the stand-in did not say that it was loaded"
[[ -s $work/tmp/out/adapter_model.safetensors ]] || fail "there is no adapter"
[[ -s $work/tmp/habana_logs/synapse_runtime.log ]] || fail "logs did not go to where the user may write"
[[ -d $work/tmp/.cache/fettle/hpu-recipes ]] || fail "there is no folder for compiled graphs where the user may write"

answer=$(inside $examples fettle generate --model_name_or_path=examples/stories260K --adapter_name_or_path=/tmp/out --device=hpu \
  --prompt="Once upon a time" --raw_prompt=true --max_new_tokens=16 2>"$work/generate.log") || { cat "$work/generate.log" >&2; fail "no answer"; }
grep -q stand-in "$work/generate.log" || fail "the answer was not made on the stand-in"
[[ -n $answer ]] || fail "the answer is empty"
echo "$answer"

bill=$root/usr/local/share/doc/fettle/sbom.spdx.json
python3 - "$bill" <<'PYTHON' || fail "the bill of materials lacks something"
import json, sys
names = {package["name"] for package in json.load(open(sys.argv[1]))["packages"]}
missing = {"fettle", "tokenizers", "torch", "libc6"} - names
sys.exit(f"missing: {missing}" if missing else 0)
PYTHON

size() { buildah images --format '{{.Size}}' "$1"; }
echo "image_test: passed; the image has $(size "$image"), of which $(size localhost/gaudi-vendor:test) are the base that imitates the vendor's"
