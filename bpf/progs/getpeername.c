/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/getpeername4, getpeername6: the application sees the peer it asked for. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_dns.h"

int getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct ambit_record *origin = sk ? origins.sk_storage_get(sk, 0, 0) : 0;

	if (origin && addr_is4(&origin->destination)) {
		ctx->user_ip4 = origin->destination.w[3];
		barrier();
		ctx->user_port = origin->port;
	}
	return 1;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct ambit_record *origin = sk ? origins.sk_storage_get(sk, 0, 0) : 0;

	if (origin) {
		write6(ctx, &origin->destination);
		ctx->user_port = origin->port;
	}
	return 1;
}
