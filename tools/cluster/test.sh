#!/usr/bin/env bash
# The chart's tests on a real cluster: builds what they need, brings up two nodes with eight cards each, loads the image,
# runs tests/cluster/*_test.py (or those named), takes the cluster down.
#   test.sh [FILE [CASE...]]    e.g. test.sh tests/cluster/faults_test.py late
# KEEP=1 leaves the cluster up, and uses one that is up; the image is built and loaded anew all the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=tools/cluster
export CLUSTER_DIR=${CLUSTER_DIR:-$PWD/.cluster} CLUSTER_NODES=${CLUSTER_NODES:-2}
export CLUSTER_CACHE=${CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fettle-cluster}
export FETTLE_BUILD=${FETTLE_BUILD:-$PWD/build/release} PYTHONDONTWRITEBYTECODE=1 FETTLE_FAULTS_JOBS=1

# The operator with an init container that the "restricted" level takes (docs/kubernetes.md), and what that one calls: an
# nslookup that follows search domains.
operator_images() {
  local container name root=$CLUSTER_DIR/operator
  mkdir -p "$root/tmp" "$root/etc/config"
  cat >"$root/etc/config/initContainer.yaml" <<'YAML'
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: IfNotPresent
  securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  command: [sh, -c, 'for i in $(seq {{.MaxTries}}); do nslookup {{.MasterAddr}} && exit; sleep 2; done; exit 1']
YAML
  chmod 1777 "$root/tmp"
  cp "$CLUSTER_CACHE/bin/training-operator" "$root/manager"
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$root" / >/dev/null
  buildah config --entrypoint '["/manager"]' "$container"
  buildah commit --quiet --rm "$container" localhost/training-operator:test >/dev/null
  container=$(buildah from localhost/debian:bookworm-slim)
  printf '#!/bin/sh\nexec getent ahostsv4 "$1"\n' >"$CLUSTER_DIR/nslookup"
  buildah copy --quiet --chmod 755 "$container" "$CLUSTER_DIR/nslookup" /usr/local/bin/nslookup >/dev/null
  buildah commit --quiet --rm "$container" localhost/training-operator-init:test >/dev/null
  for name in training-operator training-operator-init; do
    rm -f "$CLUSTER_DIR/$name.tar"
    buildah push --quiet "localhost/$name:test" "docker-archive:$CLUSTER_DIR/$name.tar:localhost/$name:test"
  done
}

mkdir -p "$CLUSTER_DIR"
for part in chart cluster operators; do "$tools/install.sh" "$part"; done
"$tools/image.sh" "$CLUSTER_DIR/fettle.tar"
if [[ -z ${KEEP:-} ]]; then
  "$tools/cluster.sh" down  # what an earlier run left
  trap '"$tools/cluster.sh" down' EXIT
fi
if [[ ! -d $CLUSTER_DIR/state ]]; then
  operator_images
  "$tools/cluster.sh" up
  "$tools/cluster.sh" load-image "$CLUSTER_DIR"/{training-operator,training-operator-init}.tar >/dev/null
fi
"$tools/cluster.sh" load-image "$CLUSTER_DIR/fettle.tar" >/dev/null
eval "$("$tools/cluster.sh" env)"
if (($#)); then
  .venv-test/bin/python "$@"
else
  status=0
  for file in tests/cluster/*_test.py; do .venv-test/bin/python "$file" || status=1; done
  exit $status
fi
