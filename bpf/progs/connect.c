/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/connect4, connect6: what a pod dials goes to the pod's own address and a capture port, where only
 * sk_lookup answers; what it asked for stays in the socket. DNS over UDP goes to ztunnel's resolver. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_dns.h"

static __always_inline int refuse(u32 reason, int error)
{
	count(reason);
	bpf_set_retval(-error);
	return 0;
}

/* A source port that the client has bound may be in use towards some capture ports: the 4-tuple differs from
 * another connection's in nothing else. Take the first free one from where the destination's hash points.
 * A tuple in TIME_WAIT counts as used, since the kernel may not reuse it yet. If none is free, the kernel is let
 * decide on the first: it reuses one that has waited long enough, else the client gets EADDRNOTAVAIL. */
static __always_inline u32 free_port(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct ambit_addr *self,
				     int is4, u32 start)
{
	u32 bound = sk->src_port;
	struct bpf_sock_tuple tuple;

	__builtin_memset(&tuple, 0, sizeof(tuple));
	/* The tuple is that of an arriving segment: it comes from the capture side. */
	if (is4) {
		u32 from = sk->src_ip4;

		tuple.ipv4.saddr = self->w[3];
		tuple.ipv4.daddr = from ? from : self->w[3];
		tuple.ipv4.dport = bpf_htons(bound);
	} else {
		u32 a = sk->src_ip6[0], b = sk->src_ip6[1], c = sk->src_ip6[2], d = sk->src_ip6[3];
		int named = (a | b | c | d) != 0;

		for (int w = 0; w < 4; w++)
			tuple.ipv6.saddr[w] = self->w[w];
		tuple.ipv6.daddr[0] = named ? a : self->w[0];
		tuple.ipv6.daddr[1] = named ? b : self->w[1];
		tuple.ipv6.daddr[2] = named ? c : self->w[2];
		tuple.ipv6.daddr[3] = named ? d : self->w[3];
		tuple.ipv6.dport = bpf_htons(bound);
	}
	for (u32 i = 0; i < AMBIT_CAPTURE_COUNT; i++) {
		u32 port = AMBIT_CAPTURE_FIRST + ((start + i) & (AMBIT_CAPTURE_COUNT - 1));
		struct bpf_sock *used;
		u32 state;

		if (port == bound)
			continue;
		if (is4) {
			tuple.ipv4.sport = bpf_htons(port);
			used = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
		} else {
			tuple.ipv6.sport = bpf_htons(port);
			used = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
		}
		if (!used)
			return port;
		state = used->state;
		bpf_sk_release(used);
		/* Not that tuple, but a listener of the pod on the bound port. */
		if (state == BPF_TCP_LISTEN)
			return port;
	}
	count(AMBIT_C_NO_CAPTURE_PORT);
	return AMBIT_CAPTURE_FIRST + (start & (AMBIT_CAPTURE_COUNT - 1));
}

/* A dial to the pod's application without a record would come back to ztunnel's inbound listener, and again:
 * try, before the SYN leaves, that a record fits. */
static __always_inline int dial_fits(u64 cookie)
{
	void *own = records.lookup(&cookie);
	struct ambit_record record;
	struct ambit_flow trial;
	long error;

	if (!own)
		return 0;
	__builtin_memset(&trial, 0, sizeof(trial));
	__builtin_memset(&record, 0, sizeof(record));
	trial.pad = bpf_get_smp_processor_id() + 1;
	error = bpf_map_update_elem(own, &trial, &record, BPF_ANY);
	if (error)
		return 0;
	bpf_map_delete_elem(own, &trial);
	return 1;
}

/* Decide on one connect: 1 and *to, *port set: rewrite; 1 and *port 0: leave alone; 0: refuse. */
static __always_inline int decide(struct bpf_sock_addr *ctx, const struct ambit_addr *asked, struct ambit_addr *to,
				  u32 *port)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct ambit_pod *pod = pods.lookup(&cookie);
	struct bpf_sock *sk = ctx->sk;
	u32 protocol = ctx->protocol;
	struct ambit_record *origin;
	struct ambit_addr *self;
	u32 start;

	*port = 0;
	if (!pod || !sk)
		return 1;
	/* A socket can connect again: what an earlier connect left must not speak for this one. */
	origins.sk_storage_delete(sk);
	if (is_ztunnel()) {
		if (protocol == AMBIT_UDP || !pod_owns(pod, asked))
			return 1;
		/* Also a socket that ztunnel made before the programs were there must be known as its own. */
		if (!made.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE))
			return refuse(AMBIT_C_NO_STORAGE, AMBIT_ECONNREFUSED);
		return dial_fits(cookie) ? 1 : refuse(AMBIT_C_DIAL_QUOTA, AMBIT_ECONNREFUSED);
	}
	if (protocol == AMBIT_UDP) {
		int index = resolver_index(pod, asked, ctx->user_port);

		if (index >= 0) {
			count(AMBIT_C_DNS_REDIRECTED);
			dns_target(asked, index, to, port);
		} else if ((pod->flags & AMBIT_POD_DENY_NON_TCP) && !addr_local(asked) && !pod_owns(pod, asked)) {
			return refuse(AMBIT_C_NON_TCP_DENIED, AMBIT_ECONNREFUSED);
		} else {
			return 1;
		}
	} else if (protocol == AMBIT_TCP || protocol == AMBIT_MPTCP) {
		if (addr_local(asked) || pod_owns(pod, asked))
			return 1;
		self = addr_is4(asked) ? &pod->self4 : &pod->self6;
		if (!addr_set(self))
			return refuse(AMBIT_C_NO_ADDRESS, AMBIT_ENETUNREACH);
		*to = *self;
		start = flow_hash(asked, ctx->user_port);
		if (sk->src_port) {
			/* Two loops of one family each: the verifier walks each turn of a loop. */
			if (addr_is4(asked))
				*port = free_port(ctx, sk, to, 1, start);
			else
				*port = free_port(ctx, sk, to, 0, start);
		} else {
			/* The kernel picks the source port: spread, so that a small range serves 64 times. */
			*port = AMBIT_CAPTURE_FIRST + (bpf_get_prandom_u32() & (AMBIT_CAPTURE_COUNT - 1));
		}
		count(AMBIT_C_CAPTURED);
	} else if (pod->flags & AMBIT_POD_DENY_NON_TCP) {
		return refuse(AMBIT_C_NON_TCP_DENIED, AMBIT_ECONNREFUSED);
	} else {
		return 1;
	}
	origin = origins.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!origin)
		return refuse(AMBIT_C_NO_STORAGE, AMBIT_ECONNREFUSED);
	origin->destination = *asked;
	origin->port = ctx->user_port;
	origin->workload_id = pod->workload_id;
	origin->netns_cookie = cookie;
	origin->born_ns = bpf_ktime_get_ns();
	return 1;
}

int connect4(struct bpf_sock_addr *ctx)
{
	struct ambit_addr asked, to;
	u32 port;

	addr4(&asked, ctx->user_ip4);
	if (!decide(ctx, &asked, &to, &port))
		return 0;
	if (port) {
		ctx->user_ip4 = to.w[3];
		barrier();
		ctx->user_port = bpf_htons(port);
	}
	return 1;
}

int connect6(struct bpf_sock_addr *ctx)
{
	struct ambit_addr asked, to;
	u32 port;

	read6(ctx, &asked);
	if (!decide(ctx, &asked, &to, &port))
		return 0;
	if (port) {
		write6(ctx, &to);
		ctx->user_port = bpf_htons(port);
	}
	return 1;
}
