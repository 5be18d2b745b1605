/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The flow of a sockops context, always named from the side that opened the connection. */
#ifndef AMBIT_FLOW_H
#define AMBIT_FLOW_H

static __always_inline void ops_local(struct bpf_sock_ops *ctx, struct ambit_addr *a)
{
	AMBIT_READ(a, ctx->family, ctx->local_ip4, ctx->local_ip6);
}

static __always_inline void ops_remote(struct bpf_sock_ops *ctx, struct ambit_addr *a)
{
	AMBIT_READ(a, ctx->family, ctx->remote_ip4, ctx->remote_ip6);
}

static __always_inline void flow_of_client(struct bpf_sock_ops *ctx, struct ambit_flow *flow)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	ops_local(ctx, &flow->source);
	ops_remote(ctx, &flow->destination);
	flow->source_port = bpf_htons(ctx->local_port);
	/* remote_port is the 16-bit port in network order, in the upper half of a word in network order. */
	flow->destination_port = bpf_htons(bpf_ntohl(ctx->remote_port));
}

static __always_inline void flow_of_server(struct bpf_sock_ops *ctx, struct ambit_flow *flow)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	ops_remote(ctx, &flow->source);
	ops_local(ctx, &flow->destination);
	flow->source_port = bpf_htons(bpf_ntohl(ctx->remote_port));
	flow->destination_port = bpf_htons(ctx->local_port);
}

static __always_inline void watch_state(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

#endif
