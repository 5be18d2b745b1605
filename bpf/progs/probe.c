/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sockops of the node's cgroup: the 4-tuple of each connect that the node itself makes to an enrolled pod, so
 * that the kubelet's probes reach the application by exact tuple and not by a source address. The node itself
 * is its own network namespace, outside the pods' cgroup; where containers share the v2 root, the kubelet. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_flow.h"

static __always_inline int from_node(struct bpf_sock_ops *ctx)
{
	u32 zero = 0;
	struct ambit_node *self = node.lookup(&zero);

	if (!self || !self->netns_cookie || bpf_get_netns_cookie(ctx) != self->netns_cookie)
		return 0;
	if (self->kubelet_tgid)
		return bpf_get_current_pid_tgid() >> 32 == self->kubelet_tgid;
	return bpf_get_current_ancestor_cgroup_id(self->pods_level) != self->pods_cgroup;
}

int probe(struct bpf_sock_ops *ctx)
{
	struct ambit_flow flow;
	u64 now;

	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		if (!from_node(ctx))
			return 1;
		flow_of_client(ctx, &flow);
		if (!addresses.lookup(&flow.destination))
			return 1;
		now = bpf_ktime_get_ns();
		if (probes.update(&flow, &now)) {
			count(AMBIT_C_PROBE_QUOTA);
			return 1;
		}
		count(AMBIT_C_PROBE_RECORDED);
		watch_state(ctx);
	} else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[0] == BPF_TCP_SYN_SENT &&
		   ctx->args[1] == BPF_TCP_CLOSE) {
		flow_of_client(ctx, &flow);
		probes.delete(&flow);
	}
	return 1;
}
