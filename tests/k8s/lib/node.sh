# shellcheck shell=bash
# shellcheck disable=SC2153  # NAME and ADDRESS are of common.sh and control.sh
# SPDX-License-Identifier: Apache-2.0
# A node: network, mount, pid, uts, ipc and cgroup namespaces that one process holds (lib/node-init), so that
# ending it ends everything on the node, as pulling the plug would.

CNI_PLUGINS=${AMBIT_K8S_CNI_PLUGINS:-/usr/lib/cni}
HELD=(/var/lib/kubelet /var/lib/containerd /var/log /etc/cni /opt/cni)

start_node() { # N
  local i=$1
  local name=node$i address=$NET.0.1$i pods=$NET.$i.0/24 directory=$STATE/nodes/$i netns=$NAME-node$i began
  if runs "$name"; then return 0; fi
  began=$(date -u +%FT%TZ)
  mkdir -p "$directory"/{kubelet,containerd,log,cni/net.d,opt-cni/bin}
  cp -n "$CNI_PLUGINS"/* "$directory/opt-cni/bin/"
  register_node "$name" "$pods"
  connect_node "$i" "$netns"
  write_cni "$directory" "$pods"
  write_containerd "$directory"
  write_kubelet "$directory" "$name"
  write_proxy "$directory" "$name" "$address"
  make_mount_points
  make_cgroups "$name"
  NODE_NAME=$name NODE_ADDRESS=$address NODE_DIRECTORY=$directory NODE_V2=$V2 BIN=$BIN PKI=$PKI IMAGES=$IMAGES \
    launch "$name" "$SOURCES/lib/node-enter" "$netns" "${CGROUPS[@]}"
  wait_for 90 "$name" node_ready "$name" "$began"
  say "$name is ready: $address, pods $pods"
}

register_node() { # NAME POD_RANGE
  kc apply -f - >/dev/null <<JSON || die "the node object of $1 could not be made"
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "$1", "labels": {"kubernetes.io/hostname": "$1"}},
 "spec": {"podCIDR": "$2", "podCIDRs": ["$2"]}}
JSON
}

node_ready() { # NAME SINCE: a Ready from before a restart does not count
  local status
  status=$(kc get node "$1" \
    -o 'jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}')
  [ "${status%% *}" = True ] && [[ ! ${status#* } < $2 ]]
}

connect_node() { # N NETNS: a veth pair from the bridge; static routes to the pods of every node
  local i=$1 netns=$2 j
  if ip netns list | grep -qw "$netns"; then return 0; fi
  ip netns add "$netns"
  ip link add "$BRIDGE-$i" type veth peer name eth0 netns "$netns"
  ip link set "$BRIDGE-$i" master "$BRIDGE" up
  # Not `ip netns exec`: that mounts /sys anew.
  within() { nsenter --net="/run/netns/$netns" "$@"; }
  within ip link set lo up
  within ip addr add "$NET.0.1$i/24" dev eth0
  within ip link set eth0 up
  within ip route add default via "$ADDRESS"
  within sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
    net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
  for ((j = 1; j <= MAX_NODES; j++)); do
    [ "$j" = "$i" ] || within ip route add "$NET.$j.0/24" via "$NET.0.1$j"
  done
  ip route replace "$NET.$i.0/24" via "$NET.0.1$i"
}

write_cni() { # DIRECTORY POD_RANGE
  cat >"$1/cni/net.d/10-routed.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "routed", "plugins": [
  {"type": "ptp", "mtu": 1500, "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses",
   "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$2"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

write_containerd() { # DIRECTORY
  cat >"$1/containerd.toml" <<'TOML'
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "ambit.local/pause:1"
# A machine without CAP_SYS_RESOURCE refuses negative scores.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
TOML
}

write_kubelet() { # DIRECTORY NAME
  : >"$1/resolv.conf" # there is nothing outside to resolve
  cat >"$1/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: $PKI/ca.crt
authorization:
  mode: Webhook
tlsCertFile: $PKI/node-$2.crt
tlsPrivateKeyFile: $PKI/node-$2.key
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: $1/resolv.conf
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
nodeStatusUpdateFrequency: 5s
# All nodes share one disk, which is this machine's business.
evictionHard:
  memory.available: 100Mi
  nodefs.available: 0%
  nodefs.inodesFree: 0%
  imagefs.available: 0%
imageGCHighThresholdPercent: 100
YAML
}

write_proxy() { # DIRECTORY NAME ADDRESS
  cat >"$1/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${AMBIT_K8S_PROXY_MODE:-nftables}
clientConnection:
  kubeconfig: $PKI/kube-proxy.kubeconfig
hostnameOverride: $2
clusterCIDR: $NET.0.0/16
bindAddress: $3
# Limits of connection tracking are the whole machine's.
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
YAML
}

make_mount_points() { # what this machine lacks is noted, so that `down` can remove it
  local directory part path
  for directory in "${HELD[@]}"; do
    path=
    for part in ${directory//\// }; do
      path+=/$part
      if [ ! -d "$path" ] && mkdir "$path" 2>/dev/null; then echo "$path" >>"$STATE/made"; fi
    done
  done
}

make_cgroups() { # NAME: sets CGROUPS, groups that become the node's roots, and V2, where all of it is v2
  local base=/sys/fs/cgroup hierarchy
  CGROUPS=() V2=
  if [ "$(stat -fc %T "$base")" = cgroup2fs ]; then
    V2=$base/$NAME/$1
    mkdir -p "$V2/init"
    delegate "$base"
    delegate "$base/$NAME"
    CGROUPS=("$V2")
    return 0
  fi
  for hierarchy in "$base"/*/; do
    hierarchy=${hierarchy%/}
    # Named links (cpu,cpuacct) and other things are skipped; `unified` is v2 beside v1, where programs attach.
    case $(stat -fc %T "$hierarchy") in cgroupfs | cgroup2fs) ;; *) continue ;; esac
    mkdir -p "$hierarchy/$NAME/$1"
    if [ -e "$hierarchy/cpuset.cpus" ]; then
      for group in "$hierarchy/$NAME" "$hierarchy/$NAME/$1"; do
        cat "$hierarchy/cpuset.cpus" >"$group/cpuset.cpus"
        cat "$hierarchy/cpuset.mems" >"$group/cpuset.mems"
      done
    fi
    CGROUPS+=("$hierarchy/$NAME/$1")
  done
}

delegate() { # GROUP: its controllers, to the groups below it
  local controller
  local -a controllers
  read -ra controllers <"$1/cgroup.controllers"
  for controller in "${controllers[@]}"; do
    echo "+$controller" >"$1/cgroup.subtree_control" || say "cgroup controller $controller stays out of the nodes"
  done
}

stop_node() { # N
  local name=node$1
  end "$name" KILL
  eventually 10 remove_cgroups "$name" || say "control groups of $name are still in use: processes of it live"
  if [ -e "/run/netns/$NAME-node$1" ]; then ip netns del "$NAME-node$1"; fi
  # Its other end went with the namespace, but not at once.
  ip link del "$BRIDGE-$1" 2>/dev/null || true
}

remove_cgroups() { # NAME: succeeds when none is left
  local group left=0
  for group in "/sys/fs/cgroup/$NAME/$1" /sys/fs/cgroup/*/"$NAME/$1"; do
    [ -d "$group" ] || continue
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
    rmdir "${group%/*}" 2>/dev/null || true # once the last node's is gone
  done
  return "$left"
}

node_process() { # N: the first process of the node, as this machine numbers it
  local holder
  holder=$(pid_of "node$1") || die "node$1 does not run" "$EX_UNAVAILABLE"
  read -r holder _ <"/proc/$holder/task/$holder/children"
  echo "$holder"
}

exec_on_node() { # N COMMAND...
  [ $# -ge 2 ] || die "usage: cluster exec N COMMAND..." "$EX_USAGE"
  local process
  process=$(node_process "$1")
  shift
  exec nsenter --target "$process" --mount --uts --ipc --net --pid --cgroup -- "$@"
}

load_images() { # TAR...
  local tar i
  for tar in "$@"; do
    for ((i = 1; i <= MAX_NODES; i++)); do
      ! runs "node$i" || (exec_on_node "$i" ctr -n k8s.io images import - <"$tar") || die "node$i did not take $tar"
    done
  done
}
