/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sockops of the node's cgroup: the 4-tuple of each connect that the node itself makes to an enrolled pod, so
 * that the kubelet's probes reach the application by exact tuple and not by a source address. Whose connect it is
 * was found out by probe_connect.c. */
#include "ambit_abi.h"
#include "ambit_maps.h"
#include "ambit_helpers.h"
#include "ambit_flow.h"

int probe(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct ambit_flow flow;
	u64 now;

	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		if (!sk || !probing.sk_storage_get(sk, 0, 0))
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
