#!/usr/bin/env bash
# Builds what the cluster and the chart's tests need, from the Go modules of its makers, into $CLUSTER_CACHE/bin:
#   install.sh cluster    Debian's containerd, runc and buildah, Kubernetes in one binary, CoreDNS, the pause image
#   install.sh chart      helm3 helm4 untt (helm-unittest) kubeconform
#   install.sh manifests  those of training-operator and of Kubeflow Trainer
#   install.sh operators  the same, and training-operator
# Quick when all of it is there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CLUSTER_CACHE=$(realpath -m "${CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fettle-cluster}")
bin=$CLUSTER_CACHE/bin
manifests=$CLUSTER_CACHE/manifests
export CGO_ENABLED=0 GOFLAGS=
mkdir -p "$bin" "$manifests"

operator=github.com/kubeflow/training-operator@v1.8.1
packages=(containerd runc containernetworking-plugins iptables conntrack socat iproute2 util-linux openssl gcc libc6-dev
  buildah debootstrap)

log() { echo "install.sh: $*" >&2; }

# module_folder MODULE@VERSION: where the module's source lies, downloaded if it is not there.
module_folder() {
  go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

# build NAME STAMP FOLDER PACKAGE [LDFLAGS]: builds PACKAGE of the module in FOLDER, by the module's own go.sum, unless
# $bin/NAME was built by the same STAMP.
build() {
  local name=$1 stamp=$2 folder=$3 package=$4 flags=${5:-} start=$SECONDS
  [[ -x $bin/$name && $(cat "$bin/$name.stamp" 2>/dev/null) == "$stamp" ]] && return
  log "$name: building (minutes where nothing is cached)"
  (cd "$folder" && go build -mod=readonly -buildvcs=false -trimpath -ldflags "-s -w $flags" -o "$bin/$name.new" "$package" \
    2> >(grep -v '^go: downloading' >&2))
  mv "$bin/$name.new" "$bin/$name"
  echo "$stamp" >"$bin/$name.stamp"
  log "$name: built in $((SECONDS - start)) s"
}

# build_module NAME MODULE@VERSION PACKAGE [LDFLAGS]
build_module() {
  local folder
  folder=$(module_folder "$2")
  build "$1" "${*:2}" "$folder" "${@:3}"
}

# build_own NAME FOLDER [LDFLAGS]: a module that lies here.
build_own() {
  build "$1" "$(cat "$2"/*.go "$2"/go.mod "$2"/go.sum <(go version) | sha256sum)" "$2" . "${@:3}"
}

# copy_manifests NAME MODULE@VERSION: the module's manifests, writable, since kustomize edits them.
copy_manifests() {
  [[ $(cat "$manifests/$1.stamp" 2>/dev/null) == "$2" ]] && return
  rm -rf "${manifests:?}/$1"
  cp -r "$(module_folder "$2")/manifests" "$manifests/$1"
  chmod -R u+w "$manifests/$1"
  echo "$2" >"$manifests/$1.stamp"
}

# The container that holds a Pod's namespaces: a static binary in a one-layer docker archive.
build_pause() {
  local dir
  dir=$(mktemp -d)
  cat >"$dir/pause.c" <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, stop); signal(SIGTERM, stop); signal(SIGCHLD, reap);
  for (;;) pause();
}
C
  mkdir "$dir/root" "$dir/image"
  gcc -Os -static -s -o "$dir/root/pause" "$dir/pause.c"
  tar -C "$dir/root" --owner=0 --group=0 -cf "$dir/image/layer.tar" pause
  cat >"$dir/image/config.json" <<JSON
{"architecture":"$(dpkg --print-architecture)","os":"linux","config":{"Entrypoint":["/pause"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$(sha256sum <"$dir/image/layer.tar" | cut -d' ' -f1)"]}}
JSON
  echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"localhost/pause:1\"],\"Layers\":[\"layer.tar\"]}]" \
    >"$dir/image/manifest.json"
  tar -C "$dir/image" -cf "$bin/pause.tar" manifest.json config.json layer.tar
  rm -r "$dir"
}

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  log "installing ${missing[*]}"
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
}

cluster() {
  local version name
  install_packages
  version=$(sed -n 's/^\s*k8s.io\/kubernetes \(v[0-9.]*\).*/\1/p' "$here/kube/go.mod" | head -1)
  # The version that the API server and the kubelet report is set by the linker.
  build_own kube "$here/kube" "-X k8s.io/component-base/version.gitVersion=$version \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version") \
    -X k8s.io/client-go/pkg/version.gitVersion=$version"
  build_own coredns "$here/dns"
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -sf kube "$bin/$name"
  done
  [[ -f $bin/pause.tar ]] || build_pause
}

chart_tools() {
  # Helm's own Makefile sets these; without them Helm 3 renders for Kubernetes 1.20.
  local helm3=helm.sh/helm/v3 of flags=
  for of in pkg/chartutil pkg/lint/rules; do flags+=" -X $helm3/$of.k8sVersionMajor=1 -X $helm3/$of.k8sVersionMinor=33"; done
  build_module helm3 $helm3@v3.22.0 ./cmd/helm "-X $helm3/internal/version.version=v3.22.0$flags"
  build_module helm4 helm.sh/helm/v4@v4.3.1 ./cmd/helm '-X helm.sh/helm/v4/internal/version.version=v4.3.1'
  build_module untt github.com/helm-unittest/helm-unittest@v1.1.2 ./cmd/helm-unittest
  build_module kubeconform github.com/yannh/kubeconform@v0.8.0 ./cmd/kubeconform
}

manifests() {
  copy_manifests training-operator $operator
  copy_manifests trainer github.com/kubeflow/trainer/v2@v2.0.0
}

operators() {
  manifests
  build_module training-operator $operator ./cmd/training-operator.v1
}

case ${1:-} in
  cluster) cluster ;;
  chart) chart_tools ;;
  manifests) manifests ;;
  operators) operators ;;
  *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
