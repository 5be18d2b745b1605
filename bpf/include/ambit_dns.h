/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bpf_sock_addr with IPv6 addresses, and where a datagram to one of the pod's resolvers goes. */
#ifndef AMBIT_DNS_H
#define AMBIT_DNS_H

static __always_inline void read6(struct bpf_sock_addr *ctx, struct ambit_addr *a)
{
	a->w[0] = ctx->user_ip6[0];
	barrier();
	a->w[1] = ctx->user_ip6[1];
	barrier();
	a->w[2] = ctx->user_ip6[2];
	barrier();
	a->w[3] = ctx->user_ip6[3];
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct ambit_addr *a)
{
	ctx->user_ip6[0] = a->w[0];
	barrier();
	ctx->user_ip6[1] = a->w[1];
	barrier();
	ctx->user_ip6[2] = a->w[2];
	barrier();
	ctx->user_ip6[3] = a->w[3];
	barrier();
}

/* Index of the pod's resolver that is asked, -1 for any other destination. The port is in network order. */
static __always_inline int resolver_index(const struct ambit_pod *pod, const struct ambit_addr *a, u32 port)
{
	if (port != bpf_htons(53))
		return -1;
#pragma unroll
	for (int i = 0; i < AMBIT_MAX_RESOLVERS; i++)
		if (i < pod->resolver_count && addr_eq(&pod->resolvers[i], a))
			return i;
	return -1;
}

static __always_inline void dns_target(const struct ambit_addr *asked, int index, struct ambit_addr *to, u32 *port)
{
	if (addr_is4(asked)) {
		addr4(to, bpf_htonl(0x7f000001));
	} else {
		to->w[0] = 0;
		to->w[1] = 0;
		to->w[2] = 0;
		to->w[3] = bpf_htonl(1);
	}
	*port = AMBIT_PORT_DNS + index;
}

#endif
