#!/bin/bash
# A real, throw-away Kubernetes cluster on one Linux machine, for Fettle's end-to-end tests.
#
#   cluster.sh install               install Debian packages, build the binaries (cached; install.sh)
#   cluster.sh up                    start the cluster and wait until every node is Ready
#   cluster.sh load-image FILE...    import OCI or docker archives into every node
#   cluster.sh env                   print the exports for a shell: eval "$(cluster.sh env)"
#   cluster.sh in-node N COMMAND...  run a command in the namespaces of node N
#   cluster.sh down                  stop everything and remove all but the cached binaries
#
# It needs root, a Go toolchain and package registries; no container engine, no systemd and no
# image registry. etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy
# and CoreDNS are the upstream programs, built from their Go modules; containerd, runc and the CNI
# plugins are Debian's.
#
# Every node is a set of Linux namespaces (network, mount, PID, UTS, IPC) with its own containerd
# and kubelet; the control plane runs in the first node. The namespaces hold all that the cluster
# makes (mounts, processes, iptables rules, bridges, listening ports), so nothing listens on the
# host at all: the host reaches the nodes over a bridge of its own, and `down` ends each node by
# killing its init process, whose id `up` recorded.
#
# Settings, from the environment:
#   CLUSTER_DIR      all state                                              (./.cluster)
#   CLUSTER_CACHE    built binaries, kept by `down`                         (~/.cache/fettle-cluster)
#   CLUSTER_NODES    number of nodes, 1 to 9                                (1)
#   CLUSTER_NET      first two octets of the nodes' network                 (10.241)
#   CLUSTER_DEVICES  fake accelerators a node advertises, RESOURCE=COUNT or empty
#                                                                           (habana.ai/gaudi=8)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CLUSTER_DIR=$(realpath -m "${CLUSTER_DIR:-.cluster}")
CLUSTER_CACHE=${CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fettle-cluster}
CLUSTER_NODES=${CLUSTER_NODES:-1}
CLUSTER_NET=${CLUSTER_NET:-10.241}
CLUSTER_DEVICES=${CLUSTER_DEVICES-habana.ai/gaudi=8}

bin=$CLUSTER_CACHE/bin
state=$CLUSTER_DIR/state
# Names in the kernel (namespaces, links, cgroups) are global: derive them from the directory, so
# that two clusters with different directories and networks can run side by side.
id=f$(printf %s "$CLUSTER_DIR" | sha256sum | cut -c1-6)

# Addresses. Node n is $CLUSTER_NET.0.n; its Pods are in $CLUSTER_NET.$((100+n)).0/24.
server=$CLUSTER_NET.0.1
pod_cidr=$CLUSTER_NET.0.0/16
service_cidr=10.96.0.0/16
dns_ip=10.96.0.10
pause_image=localhost/pause:1  # install.sh makes it

die() { echo "cluster.sh: $*" >&2; exit 1; }
log() { echo "cluster.sh: $*" >&2; }

# ------------------------------------------------------------------------------------------ certs

# certificate NAME SUBJECT [SAN]: a client certificate, or with SAN a serving one, by the cluster CA.
certificate() {
  local name=$1 subject=$2 san=${3:-} extensions="extendedKeyUsage=clientAuth"
  [[ -z $san ]] || extensions=$'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName='$san
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$subject" \
    -keyout "$pki/$name.key" -out "$pki/$name.csr" 2>/dev/null
  openssl x509 -req -in "$pki/$name.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -days 30 \
    -extfile <(echo "$extensions") -out "$pki/$name.crt" 2>/dev/null
}

# kubeconfig NAME: writes $state/NAME.kubeconfig, which uses the certificate NAME.
kubeconfig() {
  (
    umask 077
    cat >"$state/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: fettle, cluster: {server: "https://$server:6443", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$pki/$1.crt"), client-key-data: $(base64 -w0 "$pki/$1.key")}}]
contexts: [{name: fettle, context: {cluster: fettle, user: $1}}]
current-context: fettle
YAML
  )
}

make_pki() {
  pki=$state/pki
  mkdir -p "$pki"
  chmod 700 "$pki"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
    -subj /CN=fettle-test-ca -keyout "$pki/ca.key" -out "$pki/ca.crt" 2>/dev/null
  openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null
  certificate apiserver /CN=kube-apiserver "IP:$server,IP:127.0.0.1,IP:${service_cidr%.*}.1,\
DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
DNS:kubernetes.default.svc.cluster.local"
  certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate admin /O=system:masters/CN=admin
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  certificate dns /CN=system:coredns
  local n name
  for name in admin controller-manager scheduler proxy dns; do kubeconfig "$name"; done
  for ((n = 1; n <= CLUSTER_NODES; n++)); do
    certificate "node$n" "/O=system:nodes/CN=system:node:node$n"
    kubeconfig "node$n"
  done
}

# ------------------------------------------------------------------------------------------ nodes

# in_node N COMMAND...: runs a command inside node N's namespaces.
in_node() {
  local pid
  pid=$(node_pid "$1") || die "node$1 is not running"
  shift
  nsenter -t "$pid" -m -p -n -u -i -- "$@"
}

# The node's init as the host sees it: the only child of the recorded `unshare`.
node_pid() {
  local parent
  parent=$(cat "$state/node$1/unshare.pid" 2>/dev/null) || return 1
  # After a crash or a reboot the id may be another process's.
  grep -qsF "$state/node$1/init.sh" "/proc/$parent/cmdline" || return 1
  awk '{print $1; found = 1} END {exit !found}' "/proc/$parent/task/$parent/children" 2>/dev/null
}

# start NODE NAME COMMAND...: starts a daemon in a node; its output goes to $state/logs/NAME.log.
# A daemon that exits is started again after a second, as a supervisor would.
start() {
  local n=$1 name=$2
  shift 2
  in_node "$n" setsid bash -c '
    log=$1; shift
    while :; do "$@" >>"$log" 2>&1; echo "exited with $?; starting again" >>"$log"; sleep 1; done
    ' start "$state/logs/$name.log" "$@" </dev/null >/dev/null 2>&1 &
}

# await SECONDS WHAT COMMAND...: polls until the command succeeds.
await() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || die "timed out waiting for $what (logs in $state/logs)"
    sleep 0.3
  done
}

# The control groups that a node's containers live in, in every version-1 hierarchy.
make_cgroups() {
  local hierarchy file
  [[ $(stat -fc %T /sys/fs/cgroup) != cgroup2fs ]] || { mkdir -p "/sys/fs/cgroup/$id/node$1"; return; }
  for hierarchy in /sys/fs/cgroup/*/; do
    [[ $(stat -fc %T "$hierarchy") == cgroupfs ]] || continue
    mkdir -p "$hierarchy$id/node$1"
    # A new cpuset is empty, and nothing can run in it until it names CPUs and memory nodes.
    for file in cpuset.cpus cpuset.mems; do
      [[ -f $hierarchy$file ]] || continue
      cat "$hierarchy$file" >"$hierarchy$id/$file"
      cat "$hierarchy$file" >"$hierarchy$id/node$1/$file"
    done
  done
}

make_node() {
  local n=$1 m dir=$state/node$1 ns=$id-n$1
  mkdir -p "$dir"/{containerd,kubelet,log,cni}
  make_cgroups "$n"

  # Network: one veth pair to the host's bridge, and a route to each other node's Pods.
  ip netns add "$ns"
  ip link add "$id-v$n" type veth peer name eth0 netns "$ns"
  ip link set "$id-v$n" master "$id-br" up
  ip -n "$ns" link set lo up
  ip -n "$ns" link set eth0 up
  ip -n "$ns" address add "$CLUSTER_NET.0.$n/24" dev eth0
  ip -n "$ns" route add default via "$CLUSTER_NET.0.254"
  for ((m = 1; m <= CLUSTER_NODES; m++)); do
    ((m == n)) || ip -n "$ns" route add "$CLUSTER_NET.$((100 + m)).0/24" via "$CLUSTER_NET.0.$m"
  done
  cat >"$dir/cni/10-fettle.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "fettle", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/cni/state",
            "ranges": [[{"subnet": "$CLUSTER_NET.$((100 + n)).0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON

  # Paths that the kubelet and containerd have built in are bound to the node's own directory. The
  # mount points have to exist on the host; `down` removes them again if they are empty.
  mkdir -p /var/lib/kubelet /tmp/hostpath_pv
  cat >"$dir/init.sh" <<SH
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount --bind "$dir/log" /var/log
mount --bind "$dir/kubelet" /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
mount --bind "$state/volumes" /tmp/hostpath_pv
hostname node$n
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true
touch "$dir/ready"
trap 'exit 0' TERM
# As PID 1 of the node: reap orphans for ever.
while :; do sleep 3600 & wait \$!; done
SH
  nsenter --net="/run/netns/$ns" unshare --mount --pid --uts --ipc --fork --kill-child \
    --mount-proc bash "$dir/init.sh" </dev/null >"$state/logs/node$n-init.log" 2>&1 &
  echo $! >"$dir/unshare.pid"
  await 10 "node$n" test -e "$dir/ready"

  cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause_image"
  # Without CAP_SYS_RESOURCE, as in many CI sandboxes, nobody may lower a process's OOM score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
TOML
  start "$n" "containerd-node$n" containerd -c "$dir/containerd.toml"
  await 20 "containerd on node$n" in_node "$n" ctr version
  in_node "$n" ctr -n k8s.io images import "$bin/pause.tar" >/dev/null
}

start_kubelet() {
  local n=$1 dir=$state/node$1
  cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$pki/ca.crt"}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$id/node$n
clusterDomain: cluster.local
clusterDNS: [$dns_ip]
resolvConf: "$state/resolv.conf"
failSwapOn: false
# Tests must not depend on how full the disk happens to be.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
syncFrequency: 10s
YAML
  start "$n" "kubelet-node$n" "$bin/kubelet" --config "$dir/kubelet.yaml" \
    --kubeconfig "$state/node$n.kubeconfig" --hostname-override "node$n" \
    --node-ip "$CLUSTER_NET.0.$n" --v 1
  start "$n" "kube-proxy-node$n" "$bin/kube-proxy" --kubeconfig "$state/proxy.kubeconfig" \
    --hostname-override "node$n" --cluster-cidr "$pod_cidr" --proxy-mode iptables \
    --conntrack-max-per-core 0 --conntrack-min 0 --conntrack-tcp-timeout-established 0 \
    --conntrack-tcp-timeout-close-wait 0
  if [[ -n $CLUSTER_DEVICES ]]; then
    start "$n" "device-plugin-node$n" "$bin/kube" device-plugin \
      --resource "${CLUSTER_DEVICES%=*}" --count "${CLUSTER_DEVICES#*=}"
  fi
}

# ---------------------------------------------------------------------------------- control plane

start_control_plane() {
  start 1 etcd "$bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  start 1 kube-apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
    --bind-address 0.0.0.0 --advertise-address "$server" --secure-port 6443 \
    --service-cluster-ip-range "$service_cidr" --authorization-mode Node,RBAC \
    --enable-admission-plugins NodeRestriction --allow-privileged \
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
    --client-ca-file "$pki/ca.crt" \
    --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key "$pki/apiserver-kubelet-client.key" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$pki/sa.pub" --service-account-signing-key-file "$pki/sa.key"
  await 60 kube-apiserver "${kubectl[@]}" get --raw /readyz
  start 1 kube-controller-manager "$bin/kube-controller-manager" \
    --kubeconfig "$state/controller-manager.kubeconfig" --leader-elect=false \
    --use-service-account-credentials --root-ca-file "$pki/ca.crt" \
    --service-account-private-key-file "$pki/sa.key" --enable-hostpath-provisioner \
    --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
    --bind-address 127.0.0.1
  # The provisioner makes directories that only root may write, and a hostPath volume takes no
  # fsGroup. A storage system would honour fsGroup, so Pods that run as a user need this to start.
  start 1 volume-permissions bash -c \
    'while :; do chmod -f 0777 "$1"/*/ || true; sleep 0.3; done' volumes "$state/volumes"
  start 1 kube-scheduler "$bin/kube-scheduler" --kubeconfig "$state/scheduler.kubeconfig" \
    --leader-elect=false --bind-address 127.0.0.1
}

# What a distribution adds to a bare control plane: DNS, a default StorageClass, rights for both.
install_addons() {
  cat >"$state/Corefile" <<CONF
.:53 {
  bind $server
  errors
  health 127.0.0.1:8080
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig $state/dns.kubeconfig
    pods insecure
  }
  cache 5
}
CONF
  "${kubectl[@]}" apply -f - >/dev/null <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:coredns"}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:coredns"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:coredns"}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $dns_ip
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: ["$server"]}]
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
# The controller manager's own provisioner for tests: a directory per claim, which every node sees,
# since all nodes share the host's files. So ReadWriteMany works too.
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/host-path
YAML
  start 1 coredns "$bin/coredns" -conf "$state/Corefile"
}

# --------------------------------------------------------------------------------------- commands

nodes_ready() {
  [[ $("${kubectl[@]}" get nodes --no-headers 2>/dev/null | awk '$2 == "Ready"' | wc -l) \
    == "$CLUSTER_NODES" ]]
}

devices_ready() {
  local key=${CLUSTER_DEVICES%=*}
  [[ $("${kubectl[@]}" get nodes --no-headers -o \
    "custom-columns=N:.status.allocatable.${key//./\\.}" 2>/dev/null |
    grep -cx "${CLUSTER_DEVICES#*=}") == "$CLUSTER_NODES" ]]
}

up() {
  local n start=$SECONDS
  [[ $EUID == 0 ]] || die "up needs root"
  [[ -x $bin/kube && -x $bin/coredns && -f $bin/pause.tar ]] || die "run '$0 install' first"
  [[ $CLUSTER_NODES =~ ^[1-9]$ ]] || die "CLUSTER_NODES must be 1 to 9"
  [[ ! -e $state ]] || die "$state exists: run '$0 down' first"
  # A cluster that did not come up leaves nothing but its logs behind.
  trap 'status=$?; if ((status)); then trap - EXIT; down keep-logs; fi; exit $status' EXIT

  mkdir -p "$state"/{logs,volumes}
  chmod 777 "$state/volumes"
  # Pods get no name server from outside: there is none to reach.
  : >"$state/resolv.conf"
  make_pki
  kubectl=("$bin/kubectl" --kubeconfig "$state/admin.kubeconfig")

  ip link add "$id-br" type bridge
  ip address add "$CLUSTER_NET.0.254/24" dev "$id-br"
  ip link set "$id-br" up
  # The host reaches Pods as well, so that a test may talk to one by its address.
  for ((n = 1; n <= CLUSTER_NODES; n++)); do
    make_node "$n"
    ip route add "$CLUSTER_NET.$((100 + n)).0/24" via "$CLUSTER_NET.0.$n"
  done

  start_control_plane
  for ((n = 1; n <= CLUSTER_NODES; n++)); do start_kubelet "$n"; done
  install_addons
  await 90 "the nodes" nodes_ready
  await 30 "DNS" in_node 1 bash -c 'exec 3<>/dev/tcp/127.0.0.1/8181'
  [[ -z $CLUSTER_DEVICES ]] || await 30 "the device plugin" devices_ready
  await 30 "the default service account" "${kubectl[@]}" get serviceaccount default
  log "up in $((SECONDS - start)) s with $CLUSTER_NODES node(s)"
}

load_image() {
  local n file
  (($#)) || die "load-image needs archives"
  for file; do
    file=$(realpath -e "$file")
    for ((n = 1; ; n++)); do
      [[ -d $state/node$n ]] || break
      # In a mount namespace of the node, /run is another one: read the file from the host's.
      in_node "$n" ctr -n k8s.io images import --digests=false - <"$file"
    done
    ((n > 1)) || die "the cluster is not up"
  done
}

print_env() {
  cat <<SH
export KUBECONFIG="$state/admin.kubeconfig"
export PATH="$bin:\$PATH"
SH
}

down() {
  local n pid dir link hierarchy logs=
  # Killing a node's init makes the kernel kill all that runs in the node, containers included.
  for dir in "$state"/node*/; do
    n=$(basename "$dir")
    n=${n#node}
    if pid=$(node_pid "$n"); then
      kill -KILL "$pid" 2>/dev/null || true
      while [[ -e /proc/$pid ]]; do sleep 0.1; done
    fi
  done
  for link in $(ip -o link show 2>/dev/null | grep -oE "\b$id-(v[0-9]|br)\b" | sort -u); do
    ip link delete "$link" 2>/dev/null || true
  done
  for n in $(ip netns list 2>/dev/null | awk '{print $1}' | grep -E "^$id-n[0-9]$"); do
    ip netns delete "$n"
  done
  for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [[ ! -d $hierarchy/$id ]] || find "$hierarchy/$id" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
  if [[ ${1:-} == keep-logs && -d $state/logs ]]; then
    rm -rf "$CLUSTER_DIR/failed-logs"
    mv "$state/logs" "$CLUSTER_DIR/failed-logs"
    log "the logs are in $CLUSTER_DIR/failed-logs"
  fi
  rm -rf --one-file-system "$state"
  rmdir /var/lib/kubelet /tmp/hostpath_pv 2>/dev/null || true
}

case ${1:-} in
  install) exec "$here/install.sh" cluster ;;
  up) up ;;
  load-image) shift; load_image "$@" ;;
  in-node) shift; in_node "$@" ;;
  env) print_env ;;
  down) down ;;
  *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
