# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Builds the binaries and the cluster's own images into the cache; the key is a hash of their sources.

LAST_GO=1.26
TOOLS=curl,nginx-light,netcat-openbsd,iproute2,procps
BUILD_KEY=$(cd "$SOURCES" && cat kube/go.mod kube/go.sum kube/*.go kube/pause/*.go coredns/go.mod coredns/go.sum \
  coredns/*.go | sha256sum | cut -c1-16)
BIN=$CACHE/$BUILD_KEY/bin
IMAGES=$CACHE/$BUILD_KEY/images-$(echo "$TOOLS" | sha256sum | cut -c1-8)
COMPONENTS=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)

go_build() { # DIRECTORY PACKAGE OUTPUT [LDFLAGS]
  # Without debugging information compiling takes a fifth less.
  (cd "$SOURCES/$1" && CGO_ENABLED=0 nice go build -trimpath -gcflags=all=-dwarf=false -ldflags "-s -w ${4:-}" \
    -o "$3" "$2") || die "go build of $1 failed"
}

build_binaries() {
  [ ! -e "$BIN/.complete" ] || return 0
  command -v go >/dev/null || die "no \`go\`: install Go $LAST_GO or newer and put it on PATH" "$EX_UNAVAILABLE"
  local release minor component version=k8s.io/component-base/version
  release=$(sed -n 's/.*k8s.io\/kubernetes \(v[0-9.]*\)$/\1/p' "$SOURCES/kube/go.mod")
  minor=${release#v1.}
  mkdir -p "$BIN"
  (
    # One build at a time; who waited finds the first one's result.
    flock 9
    [ ! -e "$BIN/.complete" ] || exit 0
    say "building Kubernetes $release into $BIN: minutes, once"
    go_build kube . "$BIN/kube" "-X $version.gitVersion=$release -X $version.gitMajor=1 \
      -X $version.gitMinor=${minor%%.*} -X $version.gitTreeState=clean -X $version.gitCommit=$BUILD_KEY \
      -X $version.buildDate=2026-01-01T00:00:00Z"
    for component in "${COMPONENTS[@]}"; do ln -sf kube "$BIN/$component"; done
    go_build kube ./pause "$BIN/pause"
    go_build coredns . "$BIN/coredns"
    touch "$BIN/.complete"
  ) 9>"$BIN/.lock" || die "the build failed"
}

write_image() { # NAME ARGUMENT...
  local name=$1
  shift
  [ -e "$IMAGES/$name.tar" ] ||
    python3 "$SOURCES/../../daemonset/images/oci.py" --name "ambit.local/$name:1" "$@" "$IMAGES/$name.tar"
}

make_images() { # every node starts with these
  mkdir -p "$IMAGES"
  write_image pause --add "$BIN/pause=/pause" --entrypoint /pause
  write_image coredns --add "$BIN/coredns=/coredns" --entrypoint /coredns
  [ ! -e "$IMAGES/tools.tar" ] || return 0
  # What pods of tests run: programs that are none of ours.
  install_packages mmdebstrap
  say "making the image of tools"
  mmdebstrap --quiet --mode=root --variant=essential --include="$TOOLS" --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$CACHE/$BUILD_KEY/tools.tar" ||
    die "mmdebstrap could not make the image of tools"
  write_image tools --layer "$CACHE/$BUILD_KEY/tools.tar"
  rm "$CACHE/$BUILD_KEY/tools.tar"
}
