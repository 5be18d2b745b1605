/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sk_lookup of one pod's network namespace: who gets an arriving connection. This is the boundary: whatever
 * the pod's processes bind, and whatever address a segment is for, an arriving connection goes to ztunnel, is
 * a recorded probe of the node, or is dropped. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"

static __always_inline u64 own_cookie(void)
{
	u64 cookie;

	asm volatile("%0 = %1 ll" : "=r"(cookie) : "i"(AMBIT_COOKIE_CONSTANT));
	return cookie;
}

static __always_inline int hand_to(struct bpf_sk_lookup *ctx, struct ambit_listener *key)
{
	struct bpf_sock *sk = (struct bpf_sock *)listeners.lookup(key);
	long error;

	if (!sk)
		return 0;
	error = bpf_sk_assign((void *)ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	return !error;
}

/* Hash over the slots in use; a gap that a worker left is hashed again, so its share goes to all others, and
 * only then are they tried in turn. */
static __always_inline int hand_to_family(struct bpf_sk_lookup *ctx, u64 cookie, u32 kind, u32 family, u32 hash)
{
	struct ambit_slots place = { cookie, family, kind };
	struct ambit_listener key = { cookie, family, kind, 0, 0 };
	u32 *found = slots.lookup(&place);
	u32 high = found ? *found : 0;

	if (!high || high > AMBIT_MAX_SLOTS)
		return 0;
	for (u32 i = 0; i < 8; i++) {
		key.slot = hash % high;
		if (hand_to(ctx, &key))
			return 1;
		hash = mix(hash + 0x9e3779b9);
	}
	for (u32 i = 0; i < AMBIT_MAX_SLOTS; i++) {
		key.slot = i;
		if (i < high && hand_to(ctx, &key))
			return 1;
	}
	return 0;
}

/* An IPv6 listener that is not IPv6-only serves IPv4 too: a ztunnel may have just that one. */
static __always_inline int hand_to_kind(struct bpf_sk_lookup *ctx, u64 cookie, u32 kind, u32 hash, u32 done, u32 none)
{
	if (hand_to_family(ctx, cookie, kind, ctx->family, hash) ||
	    (ctx->family == AMBIT_AF_INET && hand_to_family(ctx, cookie, kind, AMBIT_AF_INET6, hash))) {
		count(done);
		return SK_PASS;
	}
	count(none);
	return SK_DROP;
}

/* A segment between the pod's own addresses, or on lo itself, was sent in this namespace: from outside, the
 * kernel drops it as martian (IPv4), or its answer never leaves the pod (IPv6). */
static __always_inline int from_within(struct bpf_sk_lookup *ctx, u64 cookie, const struct ambit_flow *flow)
{
	struct ambit_pod *pod;

	if (ctx->ingress_ifindex == 1)
		return 1;
	pod = pods.lookup(&cookie);
	return pod && pod_owns(pod, &flow->source) && pod_owns(pod, &flow->destination);
}

/* A datagram for no connected socket: an answer that ztunnel or the pod awaits does not come here. */
static __always_inline int datagram(struct bpf_sk_lookup *ctx, u64 cookie, const struct ambit_flow *flow)
{
	struct ambit_pod *pod = pods.lookup(&cookie);

	if (!pod || !(pod->flags & AMBIT_POD_DENY_NON_TCP) || from_within(ctx, cookie, flow))
		return SK_PASS;
	count(AMBIT_C_NON_TCP_DENIED);
	return SK_DROP;
}

int sk_lookup(struct bpf_sk_lookup *ctx)
{
	u64 cookie = own_cookie();
	u32 port = ctx->local_port;
	struct ambit_flow flow;
	void *own;
	u32 hash;

	__builtin_memset(&flow, 0, sizeof(flow));
	AMBIT_READ(&flow.source, ctx->family, ctx->remote_ip4, ctx->remote_ip6);
	AMBIT_READ(&flow.destination, ctx->family, ctx->local_ip4, ctx->local_ip6);
	flow.source_port = ctx->remote_port;
	flow.destination_port = bpf_htons(port);
	if (ctx->protocol != AMBIT_TCP)
		return datagram(ctx, cookie, &flow);
	hash = flow_hash(&flow.source, flow.source_port) ^ flow_hash(&flow.destination, port);
	own = records.lookup(&cookie);
	if (capture_port(port)) {
		/* Reserved: no stranger and no process of the pod has any business here. */
		if (!own || !bpf_map_lookup_elem(own, &flow)) {
			count(AMBIT_C_NO_RECORD);
			return SK_DROP;
		}
		return hand_to_kind(ctx, cookie, AMBIT_OUTBOUND, hash, AMBIT_C_TO_OUTBOUND, AMBIT_C_NO_OUTBOUND);
	}
	if (from_within(ctx, cookie, &flow))
		return SK_PASS;
	/* Before the port: an application may serve 15008 itself, and only ztunnel's dial reaches it. */
	if (own && bpf_map_lookup_elem(own, &flow)) {
		count(AMBIT_C_DIAL_PASSED);
		return SK_PASS;
	}
	if (port == AMBIT_PORT_HBONE)
		return hand_to_kind(ctx, cookie, AMBIT_HBONE, hash, AMBIT_C_TO_HBONE, AMBIT_C_NO_HBONE);
	if (probes.lookup(&flow)) {
		count(AMBIT_C_PROBE_PASSED);
		return SK_PASS;
	}
	return hand_to_kind(ctx, cookie, AMBIT_INBOUND, hash, AMBIT_C_TO_INBOUND, AMBIT_C_NO_INBOUND);
}
