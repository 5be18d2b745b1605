/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/getsockopt: on a socket that ztunnel accepted, SO_ORIGINAL_DST answers as after netfilter's REDIRECT,
 * and 82 says which pod called. Every other call keeps the kernel's answer. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"

/* Machines that load only from aligned addresses let a program take an answer for aligned to 2 bytes. */
#define AMBIT_ANSWER __attribute__((packed, aligned(2)))

struct sockaddr_v4 {
	u16 family;
	__be16 port;
	__be32 address;
	u8 zero[8];
} AMBIT_ANSWER;

struct sockaddr_v6 {
	u16 family;
	__be16 port;
	__be32 flow;
	__be32 address[4];
	u32 scope;
} AMBIT_ANSWER;

typedef struct ambit_source ambit_source_answer __attribute__((aligned(2)));

static __always_inline int answered(struct bpf_sockopt *ctx, int size)
{
	ctx->optlen = size;
	barrier();
	ctx->retval = 0;
	return 1;
}

static __always_inline int original4(struct bpf_sockopt *ctx, const struct ambit_record *record)
{
	struct sockaddr_v4 *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return 1;
	out->family = AMBIT_AF_INET;
	out->port = record->port;
	out->address = record->destination.w[3];
	__builtin_memset(out->zero, 0, sizeof(out->zero));
	return answered(ctx, sizeof(*out));
}

static __always_inline int original6(struct bpf_sockopt *ctx, const struct ambit_record *record)
{
	struct sockaddr_v6 *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return 1;
	out->family = AMBIT_AF_INET6;
	out->port = record->port;
	out->flow = 0;
	out->address[0] = record->destination.w[0];
	out->address[1] = record->destination.w[1];
	out->address[2] = record->destination.w[2];
	out->address[3] = record->destination.w[3];
	out->scope = 0;
	return answered(ctx, sizeof(*out));
}

static __always_inline int source(struct bpf_sockopt *ctx, const struct ambit_record *record)
{
	ambit_source_answer *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return 1;
	out->netns_cookie = record->netns_cookie;
	out->workload_id = record->workload_id;
	out->flags = 0;
	return answered(ctx, sizeof(*out));
}

int getsockopt(struct bpf_sockopt *ctx)
{
	u32 name = ctx->optname, level = ctx->level;
	struct bpf_sock *sk = ctx->sk;
	struct ambit_record *record;

	if ((level != AMBIT_SOL_IP && level != AMBIT_SOL_IPV6) || !sk || sk->protocol != AMBIT_TCP ||
	    (name != AMBIT_OPT_ORIGINAL_DST && name != AMBIT_OPT_SOURCE)) {
		/* The kernel shows a program one page of the value; saying 0 keeps a longer answer whole. */
		if (ctx->optlen > 4096)
			ctx->optlen = 0;
		return 1;
	}
	record = accepted.sk_storage_get(sk, 0, 0);
	if (!record) {
		if (is_ztunnel())
			bpf_set_retval(-AMBIT_ENOENT);
		return 1;
	}
	if (name == AMBIT_OPT_SOURCE)
		return source(ctx, record);
	if (level == AMBIT_SOL_IP && addr_is4(&record->destination))
		return original4(ctx, record);
	return original6(ctx, record);
}
