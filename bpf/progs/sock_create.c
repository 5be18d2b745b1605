/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/sock_create: the TCP sockets of ztunnel are marked as its own. A pod that denies what is not TCP gets no
 * raw, ping, SCTP or other internet socket; its UDP sockets exist for DNS and are held to it by connect and
 * sendmsg. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"

int sock_create(struct bpf_sock *ctx)
{
	u32 protocol = ctx->protocol, type = ctx->type;
	struct ambit_pod *pod;
	u64 cookie;

	if (is_ztunnel()) {
		if (type == 1 && !made.sk_storage_get(ctx, 0, BPF_SK_STORAGE_GET_F_CREATE))
			count(AMBIT_C_NO_STORAGE);
		return 1;
	}
	cookie = bpf_get_netns_cookie(ctx);
	pod = pods.lookup(&cookie);
	if (!pod || !(pod->flags & AMBIT_POD_DENY_NON_TCP))
		return 1;
	if (type == 1 && (protocol == AMBIT_TCP || protocol == AMBIT_MPTCP))
		return 1;
	if (type == 2 && protocol == AMBIT_UDP)
		return 1;
	count(AMBIT_C_NON_TCP_DENIED);
	return 0;
}
