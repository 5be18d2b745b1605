/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sockops of the pods' cgroup. A captured client's record is published under its 4-tuple before the SYN leaves
 * and moves into the accepted socket when the handshake ends: there it lives as long as that socket, whatever
 * the client does. ztunnel's in-pod listeners enter the table from which sk_lookup hands out connections. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_flow.h"

static __always_inline int store(struct bpf_sock_ops *ctx, u64 cookie, struct ambit_flow *flow,
				 struct ambit_record *record)
{
	void *own = records.lookup(&cookie);

	if (!own)
		return 0;
	record->born_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(own, flow, record, BPF_ANY)) {
		count(AMBIT_C_RECORD_QUOTA);
		return 0;
	}
	watch_state(ctx);
	return 1;
}

/* ztunnel dials the pod's application from inside, mostly from the client's own address: sk_lookup cannot tell
 * that from a stranger (the interface it sees is that of the address, not lo), so the 4-tuple is recorded. */
static __always_inline void publish_dial(struct bpf_sock_ops *ctx, u64 cookie, struct ambit_pod *pod)
{
	struct ambit_record record;
	struct ambit_flow flow;

	flow_of_client(ctx, &flow);
	if (capture_port(bpf_ntohs(flow.destination_port)) || !pod_owns(pod, &flow.destination))
		return;
	__builtin_memset(&record, 0, sizeof(record));
	record.destination = flow.destination;
	record.port = flow.destination_port;
	record.workload_id = pod->workload_id;
	record.netns_cookie = cookie;
	if (store(ctx, cookie, &flow, &record))
		count(AMBIT_C_DIAL_RECORDED);
}

static __always_inline void publish(struct bpf_sock_ops *ctx)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct ambit_pod *pod = pods.lookup(&cookie);
	struct bpf_sock *sk = ctx->sk;
	struct ambit_record *origin;
	struct ambit_record record;
	struct ambit_flow flow;

	if (!pod || !sk)
		return;
	if (made.sk_storage_get(sk, 0, 0)) {
		publish_dial(ctx, cookie, pod);
		return;
	}
	origin = origins.sk_storage_get(sk, 0, 0);
	if (!origin || origin->netns_cookie != cookie)
		return;
	flow_of_client(ctx, &flow);
	if (!capture_port(bpf_ntohs(flow.destination_port)) || !pod_owns(pod, &flow.destination))
		return;
	/* IP_FREEBIND and IP_TRANSPARENT forge a source: such a connection gets no record, hence nowhere. */
	if (!pod_owns(pod, &flow.source)) {
		count(AMBIT_C_FOREIGN_SOURCE);
		return;
	}
	record = *origin;
	if (store(ctx, cookie, &flow, &record))
		count(AMBIT_C_RECORDED);
}

/* A connect that never got through leaves no record. Any later close says nothing about the server's side,
 * which may still be finishing the handshake: its record waits for it, or for the sweep. */
static __always_inline void withdraw(struct bpf_sock_ops *ctx)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	void *own = records.lookup(&cookie);
	struct ambit_flow flow;

	if (!own)
		return;
	flow_of_client(ctx, &flow);
	bpf_map_delete_elem(own, &flow);
}

static __always_inline void adopt(struct bpf_sock_ops *ctx)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct ambit_record *record, *kept;
	struct ambit_flow flow;
	void *own;

	flow_of_server(ctx, &flow);
	probes.delete(&flow);
	own = records.lookup(&cookie);
	if (!own || !sk)
		return;
	record = bpf_map_lookup_elem(own, &flow);
	if (!record)
		return;
	if (capture_port(bpf_ntohs(flow.destination_port))) {
		kept = accepted.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (kept) {
			*kept = *record;
			count(AMBIT_C_ACCEPTED);
		} else {
			count(AMBIT_C_NO_STORAGE);
		}
	}
	bpf_map_delete_elem(own, &flow);
}

static __always_inline void offer_listener(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct ambit_listener key;
	struct ambit_slots place;
	u32 kind, *high;

	if (ctx->local_port == AMBIT_PORT_OUTBOUND)
		kind = AMBIT_OUTBOUND;
	else if (ctx->local_port == AMBIT_PORT_INBOUND)
		kind = AMBIT_INBOUND;
	else if (ctx->local_port == AMBIT_PORT_HBONE)
		kind = AMBIT_HBONE;
	else
		return;
	if (!sk || !made.sk_storage_get(sk, 0, 0))
		return;
	__builtin_memset(&key, 0, sizeof(key));
	key.netns_cookie = bpf_get_netns_cookie(ctx);
	key.family = ctx->family;
	key.kind = kind;
	place.netns_cookie = key.netns_cookie;
	place.family = key.family;
	place.kind = kind;
	high = slots.lookup(&place);
#pragma unroll
	for (u32 slot = 0; slot < AMBIT_MAX_SLOTS; slot++) {
		u32 used = slot + 1;
		int error;

		key.slot = slot;
		error = listeners.sock_hash_update(ctx, &key, BPF_NOEXIST);
		if (error == -17)
			continue;
		if (error) {
			count(AMBIT_C_LISTENER_FAILED);
			return;
		}
		if ((!high || *high < used) && slots.update(&place, &used)) {
			count(AMBIT_C_LISTENER_FAILED);
			return;
		}
		count(AMBIT_C_LISTENER_ADDED);
		return;
	}
	count(AMBIT_C_LISTENER_FULL);
}

int sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		publish(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		adopt(ctx);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		offer_listener(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[0] == BPF_TCP_SYN_SENT && ctx->args[1] == BPF_TCP_CLOSE)
			withdraw(ctx);
		break;
	}
	return 1;
}
