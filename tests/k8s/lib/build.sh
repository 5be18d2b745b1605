# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Builds the binaries and the cluster's own images into the cache; the key is a hash of their sources.

LAST_GO=1.26
BUILD_KEY=$(cd "$SOURCES" && cat kube/go.mod kube/go.sum kube/*.go kube/pause/*.go coredns/go.mod coredns/go.sum \
  coredns/*.go lib/build.sh | sha256sum | cut -c1-16)
BIN=$CACHE/$BUILD_KEY/bin
IMAGES=$CACHE/$BUILD_KEY/images
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

make_images() {
  local name
  mkdir -p "$IMAGES"
  for name in pause coredns; do
    [ -e "$IMAGES/$name.tar" ] || python3 "$SOURCES/../../daemonset/images/oci.py" --name "ambit.local/$name:1" \
      --add "$BIN/$name=/$name" --entrypoint "/$name" "$IMAGES/$name.tar"
  done
}
