# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The control plane: etcd, API server, controllers and scheduler, as processes of this machine.

choose_address() { # NODES: loopback, or the bridge that the nodes are on; once for the life of a cluster
  if [ -f "$STATE/address" ]; then
    ADDRESS=$(cat "$STATE/address")
    [ "$1" -eq 0 ] || [ "$ADDRESS" != 127.0.0.1 ] || die "this cluster is on loopback; run \`cluster down\` first"
    return 0
  fi
  if [ "$1" -gt 0 ]; then ADDRESS=$NET.0.1; else ADDRESS=127.0.0.1; fi
  echo "$ADDRESS" >"$STATE/address"
}

make_network() {
  if ! ip link show "$BRIDGE" >/dev/null 2>&1; then
    ip link add "$BRIDGE" type bridge
    ip addr add "$ADDRESS/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
  fi
  # Where bridged packets pass iptables and are dropped by default (Docker's doing), ours are let through.
  if iptables -S FORWARD 2>/dev/null | grep -q '^-P FORWARD DROP'; then
    bridged -C 2>/dev/null || bridged -I
  fi
}

bridged() { iptables "$1" FORWARD -i "$BRIDGE" -o "$BRIDGE" -j ACCEPT; }

remove_network() {
  ip link show "$BRIDGE" >/dev/null 2>&1 || return 0
  bridged -D 2>/dev/null || true
  ip link del "$BRIDGE"
}

start_control_plane() {
  local i nodes=
  for ((i = 1; i <= MAX_NODES; i++)); do nodes+="node$i=$NET.0.1$i,"; done
  "$BIN/kube" pki -server "https://$ADDRESS:$API_PORT" -names "$ADDRESS,$API_SERVICE_IP" -nodes "$nodes" "$PKI" ||
    die "no certificates could be made"
  start_etcd
  start_apiserver
  wait_for 60 "the API server" kc get --raw /readyz
  start_controllers
  wait_for 60 "the default service account" kc -n default get serviceaccount default
  wait_for 60 "the ConfigMap kube-root-ca.crt" kc -n default get configmap kube-root-ca.crt
}

start_etcd() {
  local client=http://127.0.0.1:$ETCD_PORT peer=http://127.0.0.1:$((ETCD_PORT + 1))
  launch etcd "$BIN/etcd" --name "$NAME" --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$NAME=$peer"
}

start_apiserver() {
  local -a endpoints=(--advertise-address="$ADDRESS")
  # Nobody may advertise a loopback address.
  [ "$ADDRESS" != 127.0.0.1 ] || endpoints=(--endpoint-reconciler-type=none)
  launch kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers="http://127.0.0.1:$ETCD_PORT" \
    --bind-address="$ADDRESS" --secure-port="$API_PORT" "${endpoints[@]}" \
    --service-cluster-ip-range="$SERVICE_NET" --allow-privileged --profiling=false \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file="$PKI/sa.key" --service-account-key-file="$PKI/sa.pub" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$PKI/apiserver-kubelet-client.crt" \
    --kubelet-client-key="$PKI/apiserver-kubelet-client.key" \
    --requestheader-client-ca-file="$PKI/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$PKI/front-proxy-client.crt" --proxy-client-key-file="$PKI/front-proxy-client.key" \
    --enable-aggregator-routing # webhooks are called at their pods: services have no rules on this machine
}

start_controllers() {
  local component config
  local -a common
  for component in kube-controller-manager kube-scheduler; do
    config=$PKI/$component.kubeconfig
    common=(--secure-port=0 --leader-elect=false --profiling=false --kubeconfig="$config"
      --authentication-kubeconfig="$config" --authorization-kubeconfig="$config")
    if [ "$component" = kube-scheduler ]; then
      launch "$component" "$BIN/$component" "${common[@]}"
    else
      # The default rate of requests makes the first service accounts take five seconds.
      launch "$component" "$BIN/$component" "${common[@]}" --kube-api-qps=200 --kube-api-burst=400 \
        --use-service-account-credentials --service-account-private-key-file="$PKI/sa.key" \
        --root-ca-file="$PKI/ca.crt" --cluster-signing-cert-file="$PKI/ca.crt" \
        --cluster-signing-key-file="$PKI/ca.key" --allocate-node-cidrs=false
    fi
  done
}

start_dns() {
  kc apply -f "$SOURCES/objects/coredns.yaml" >/dev/null
  kc -n kube-system rollout status deployment/coredns --timeout=$((60 * PATIENCE))s >/dev/null ||
    die "the cluster's DNS is not ready; see cluster kubectl -n kube-system describe pods"
}

stop_control_plane() {
  local component
  # The state goes too, so nothing has to be written in good order.
  for component in kube-scheduler kube-controller-manager kube-apiserver etcd; do end "$component" KILL; done
}
