/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* cgroup/connect4, connect6 of the node's cgroup: marks the sockets with which the node itself dials an enrolled
 * pod; sockops, which knows the source port, records the 4-tuple. The node itself is its own network namespace,
 * outside the pods' cgroup; where containers share the v2 root, the kubelet. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_dns.h"

static __always_inline int from_node(struct bpf_sock_addr *ctx)
{
	u32 zero = 0;
	struct ambit_node *self = node.lookup(&zero);

	if (!self || !self->netns_cookie || bpf_get_netns_cookie(ctx) != self->netns_cookie)
		return 0;
	if (self->kubelet_tgid)
		return bpf_get_current_pid_tgid() >> 32 == self->kubelet_tgid;
	return bpf_get_current_ancestor_cgroup_id(self->pods_level) != self->pods_cgroup;
}

static __always_inline void mark(struct bpf_sock_addr *ctx, struct ambit_addr *asked)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || !addresses.lookup(asked))
		return;
	/* A socket can connect again, for another process: what an earlier connect left must not speak for it. */
	if (!from_node(ctx))
		probing.sk_storage_delete(sk);
	else if (!probing.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE))
		count(AMBIT_C_NO_STORAGE);
}

int probe_connect4(struct bpf_sock_addr *ctx)
{
	struct ambit_addr asked;

	addr4(&asked, ctx->user_ip4);
	mark(ctx, &asked);
	return 1;
}

int probe_connect6(struct bpf_sock_addr *ctx)
{
	struct ambit_addr asked;

	read6(ctx, &asked);
	mark(ctx, &asked);
	return 1;
}
