/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map. Sizes here are only what bcc needs to compile; the loader creates the maps with the sizes it
 * was told (abi.MAPS, load --max-*), and pins them. */
#ifndef AMBIT_MAPS_H
#define AMBIT_MAPS_H

#ifndef BPF_F_NO_PREALLOC
#define BPF_F_NO_PREALLOC 1
#endif

BPF_F_TABLE("hash", u64, struct ambit_pod, pods, 16, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", struct ambit_addr, u64, addresses, 16, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u64, u32, ztunnels, 16, BPF_F_NO_PREALLOC);
BPF_TABLE("array", u32, struct ambit_node, node, 1);
BPF_TABLE("array", u32, struct ambit_meta, meta, 1);
BPF_TABLE("percpu_array", u32, u64, counters, AMBIT_C_COUNT);
/* One map of records a pod: its size is the pod's quota, and no pod can push out another's records. */
BPF_F_TABLE("hash", struct ambit_flow, struct ambit_record, records_of_pod, 16, BPF_F_NO_PREALLOC);
BPF_TABLE("hash_of_maps$records_of_pod", u64, u32, records, 16);
BPF_F_TABLE("hash", struct ambit_flow, u64, probes, 16, BPF_F_NO_PREALLOC);
/* bcc's BPF_SOCKHASH lacks lookup and its values are descriptors; a lookup by user space answers socket cookies. */
struct listeners_table_t {
	struct ambit_listener key;
	u64 leaf;
	u64 *(*lookup)(struct ambit_listener *);
	int (*sock_hash_update)(void *, void *, u64);
	u32 max_entries;
	int flags;
};
__attribute__((section("maps/sockhash"))) struct listeners_table_t listeners = { .max_entries = 16 };
BPF_ANNOTATE_KV_PAIR(listeners, struct ambit_listener, u64);
BPF_F_TABLE("hash", struct ambit_slots, u32, slots, 16, BPF_F_NO_PREALLOC);
BPF_SK_STORAGE(origins, struct ambit_record);
BPF_SK_STORAGE(accepted, struct ambit_record);
/* Who a socket belongs to, found out where the kernel tells (socket, connect) for sockops, where before 6.16
 * it does not: sockets of ztunnel, and those with which the node itself dials a pod. */
BPF_SK_STORAGE(made, u32);
BPF_SK_STORAGE(probing, u32);

#endif
