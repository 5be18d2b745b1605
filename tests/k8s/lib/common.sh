# shellcheck shell=bash
# shellcheck disable=SC2034  # read by the files that source this one
# SPDX-License-Identifier: Apache-2.0
# Settings, process records and waiting, for all parts of `cluster`.

EX_USAGE=64
EX_UNAVAILABLE=69
MAX_NODES=5

# A second cluster on the machine takes other values of these five.
NAME=${AMBIT_K8S_NAME:-ambitk8s}
STATE=${AMBIT_K8S_STATE:-/var/lib/$NAME}
NET=${AMBIT_K8S_NET:-10.89} # nodes: $NET.0.1N, this machine: $NET.0.1, pods of node N: $NET.N.0/24
API_PORT=${AMBIT_K8S_API_PORT:-6443}
ETCD_PORT=${AMBIT_K8S_ETCD_PORT:-23790} # and the next one

PATIENCE=${AMBIT_K8S_PATIENCE:-1} # factor of every deadline, for slow machines
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/ambit/k8s
SOURCES=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LOGS=$STATE/log
PKI=$STATE/pki
RECORDS=$STATE/processes
KUBECONFIG_FILE=$PKI/admin.kubeconfig
BRIDGE=$NAME
SERVICE_NET=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_IP=10.96.0.10
NODE_PACKAGES=(containerd runc containernetworking-plugins nftables iptables conntrack iproute2 util-linux procps)

say() { printf '%s\n' "$1" >&2; }

die() { # MESSAGE [EXIT CODE]
  printf 'cluster: %s\n' "$1" >&2
  exit "${2:-1}"
}

require_root() {
  [ "$(id -u)" = 0 ] || die "nodes are namespaces, which only root may make: sudo make cluster" "$EX_UNAVAILABLE"
}

installed() { [ "$(dpkg-query -W -f '${Status}' "$1" 2>/dev/null)" = "install ok installed" ]; }

one_at_a_time() { # who finds this cluster being changed waits; descriptor 8 is not handed on (launch)
  mkdir -p "$CACHE"
  exec 8>"$CACHE/$NAME.lock"
  flock -w 600 8 || die "another \`cluster\` has been changing $NAME for ten minutes" "$EX_UNAVAILABLE"
}

install_packages() { # PACKAGE...
  local package log policy=/usr/sbin/policy-rc.d made=
  local -a missing=()
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  log=$(mktemp)
  # Packages start their services; this machine's own containerd is none of ours.
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made=1
  fi
  apt_install "${missing[@]}" >"$log" 2>&1 || { apt-get update -q && apt_install "${missing[@]}"; } >>"$log" 2>&1 || {
    [ -z "$made" ] || rm -f "$policy"
    tail -n 15 "$log" >&2
    die "apt-get could not install ${missing[*]}; log: $log" "$EX_UNAVAILABLE"
  }
  [ -z "$made" ] || rm -f "$policy"
  rm -f "$log"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; }

# A process is known by pid and start time, so that a pid that was given out again is never taken for ours.

start_time() { # PID
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The name, in brackets, may hold anything; fields 3 (state) and 22 (start time) come after it.
  local -a fields
  read -ra fields <<<"${stat##*) }"
  [ "${fields[0]}" != Z ] && echo "${fields[19]}"
}

pid_of() { # NAME: prints the pid of a recorded process that runs
  local pid began
  [ -e "$RECORDS/$1" ] || return 1
  read -r pid began <"$RECORDS/$1" || return 1
  [ "$(start_time "$pid")" = "$began" ] && echo "$pid"
}

runs() { pid_of "$1" >/dev/null; }
ended() { ! runs "$1"; }

launch() { # NAME COMMAND...: in the background, recorded; nothing if it runs
  local name=$1
  shift
  if runs "$name"; then return 0; fi
  setsid "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 8>&- &
  echo "$! $(start_time $!)" >"$RECORDS/$name"
}

end() { # NAME SIGNAL [SECONDS]: signal it, kill it when it outlives the seconds
  local pid
  if pid=$(pid_of "$1"); then
    kill "-$2" "$pid"
    if ! eventually "${3:-5}" ended "$1"; then
      kill -KILL "$pid"
      eventually 5 ended "$1" || die "$1 (pid $pid) cannot be ended"
    fi
  fi
  rm -f "$RECORDS/$1"
}

eventually() { # SECONDS COMMAND...
  local until=$((SECONDS + $1 * PATIENCE))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.2
  done
}

wait_for() { # SECONDS WHAT COMMAND...
  local seconds=$1 what=$2
  shift 2
  eventually "$seconds" "$@" || die "$what: not there after $((seconds * PATIENCE)) s; logs are in $LOGS"
}

kc() { timeout $((60 * PATIENCE)) "$BIN/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }

remove_state() {
  if [ -f "$STATE/made" ]; then
    # Mount points that this machine lacked; not with anything in them, nor under the mounts of another cluster.
    while read -r directory; do
      grep -qsF " $directory" /proc/[0-9]*/mountinfo || rmdir --ignore-fail-on-non-empty "$directory" 2>/dev/null || true
    done < <(sort -ru "$STATE/made")
  fi
  case $STATE in
    /?*/?*) rm -rf --one-file-system "$STATE" ;;
    *) die "will not remove $STATE" ;;
  esac
}
