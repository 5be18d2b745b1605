/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/sock_create: a pod that denies what is not TCP gets no raw, ping, SCTP or other internet socket; its
 * UDP sockets exist for DNS and are held to it by connect and sendmsg. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"

int sock_create(struct bpf_sock *ctx)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct ambit_pod *pod = pods.lookup(&cookie);
	u32 protocol = ctx->protocol, type = ctx->type;

	if (!pod || !(pod->flags & AMBIT_POD_DENY_NON_TCP) || is_ztunnel())
		return 1;
	if (type == 1 && (protocol == AMBIT_TCP || protocol == AMBIT_MPTCP))
		return 1;
	if (type == 2 && protocol == AMBIT_UDP)
		return 1;
	count(AMBIT_C_NON_TCP_DENIED);
	return 0;
}
