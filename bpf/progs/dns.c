/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/sendmsg4, sendmsg6, recvmsg4, recvmsg6: datagrams to the pod's resolvers go to ztunnel's, one loopback
 * port per resolver, and the answers bear the address that the application asked. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_dns.h"

static __always_inline int decide_send(struct bpf_sock_addr *ctx, const struct ambit_addr *asked, struct ambit_addr *to,
				       u32 *port)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct ambit_pod *pod = pods.lookup(&cookie);
	int index;

	*port = 0;
	if (!pod || is_ztunnel())
		return 1;
	index = resolver_index(pod, asked, ctx->user_port);
	if (index >= 0) {
		count(AMBIT_C_DNS_REDIRECTED);
		dns_target(asked, index, to, port);
		return 1;
	}
	if (!(pod->flags & AMBIT_POD_DENY_NON_TCP) || addr_local(asked) || pod_owns(pod, asked))
		return 1;
	count(AMBIT_C_NON_TCP_DENIED);
	bpf_set_retval(-AMBIT_ECONNREFUSED);
	return 0;
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct ambit_addr asked, to;
	u32 port;

	addr4(&asked, ctx->user_ip4);
	if (!decide_send(ctx, &asked, &to, &port))
		return 0;
	if (port) {
		ctx->user_ip4 = to.w[3];
		barrier();
		ctx->user_port = bpf_htons(port);
	}
	return 1;
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct ambit_addr asked, to;
	u32 port;

	read6(ctx, &asked);
	if (!decide_send(ctx, &asked, &to, &port))
		return 0;
	if (port) {
		write6(ctx, &to);
		ctx->user_port = bpf_htons(port);
	}
	return 1;
}

/* The resolver whose answer came from this loopback address and port; 0 if it is none. */
static __always_inline struct ambit_addr *answering(struct bpf_sock_addr *ctx, const struct ambit_addr *from)
{
	u32 index = bpf_ntohs(ctx->user_port) - AMBIT_PORT_DNS;
	struct ambit_addr loopback;
	struct ambit_pod *pod;
	u64 cookie;
	u32 port;

	if (index >= AMBIT_MAX_RESOLVERS)
		return 0;
	cookie = bpf_get_netns_cookie(ctx);
	pod = pods.lookup(&cookie);
	if (!pod || is_ztunnel())
		return 0;
#pragma unroll
	for (u32 i = 0; i < AMBIT_MAX_RESOLVERS; i++) {
		if (i != index || i >= pod->resolver_count)
			continue;
		dns_target(&pod->resolvers[i], i, &loopback, &port);
		if (addr_eq(&loopback, from))
			return &pod->resolvers[i];
	}
	return 0;
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct ambit_addr from, *resolver;

	addr4(&from, ctx->user_ip4);
	resolver = answering(ctx, &from);
	if (resolver) {
		ctx->user_ip4 = resolver->w[3];
		barrier();
		ctx->user_port = bpf_htons(53);
	}
	return 1;
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct ambit_addr from, *resolver;

	read6(ctx, &from);
	resolver = answering(ctx, &from);
	if (resolver) {
		write6(ctx, resolver);
		ctx->user_port = bpf_htons(53);
	}
	return 1;
}
