/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The contract between the programs and user space: every struct that lies in a map, every port, every
 * counter. bpf/abi.py mirrors it field for field and compile.py compares the two before anything loads.
 * Addresses have one form: 16 bytes, IPv4 as ::ffff:a.b.c.d. Padding is explicit, keys are zeroed. */
#ifndef AMBIT_ABI_H
#define AMBIT_ABI_H

#define AMBIT_PORT_OUTBOUND 15001
#define AMBIT_PORT_INBOUND 15006
#define AMBIT_PORT_HBONE 15008
#define AMBIT_PORT_DNS 15053
#define AMBIT_CAPTURE_FIRST 15100
#define AMBIT_CAPTURE_COUNT 64

#define AMBIT_MAX_ADDRESSES 8
#define AMBIT_MAX_RESOLVERS 3
#define AMBIT_MAX_SLOTS 16

#define AMBIT_OPT_ORIGINAL_DST 80
#define AMBIT_OPT_SOURCE 82

#define AMBIT_POD_DENY_NON_TCP 1

/* Put here by attach_pod_lookup: the netns cookie of the one pod that an sk_lookup instance serves. */
#define AMBIT_COOKIE_CONSTANT 0xa3b1700c00c1e5ULL

enum ambit_kind { AMBIT_OUTBOUND = 1, AMBIT_INBOUND = 2, AMBIT_HBONE = 3 };

struct ambit_addr {
	__be32 w[4];
};

/* pods: netns cookie -> this. self4 and self6 are the addresses that a captured connect is sent to. */
struct ambit_pod {
	u32 workload_id;
	u32 flags;
	u32 address_count;
	u32 resolver_count;
	struct ambit_addr self4;
	struct ambit_addr self6;
	struct ambit_addr addresses[AMBIT_MAX_ADDRESSES];
	struct ambit_addr resolvers[AMBIT_MAX_RESOLVERS];
};

/* One TCP connection, seen from the side that opened it. */
struct ambit_flow {
	struct ambit_addr source;
	struct ambit_addr destination;
	__be16 source_port;
	__be16 destination_port;
	u32 pad;
};

/* What the application asked for: in the client's socket, then under its flow, then in the accepted socket. */
struct ambit_record {
	struct ambit_addr destination;
	__be16 port;
	u16 pad;
	u32 workload_id;
	u64 netns_cookie;
	u64 born_ns;
};

/* What getsockopt 82 answers. */
struct ambit_source {
	u64 netns_cookie;
	u32 workload_id;
	u32 flags;
};

struct ambit_listener {
	u64 netns_cookie;
	u32 family;
	u32 kind;
	u32 slot;
	u32 pad;
};

struct ambit_slots {
	u64 netns_cookie;
	u32 family;
	u32 kind;
};

struct ambit_node {
	u64 netns_cookie;
	u64 pods_cgroup;
	u32 pods_level;
	u32 kubelet_tgid;
};

struct ambit_meta {
	u8 schema[32];
	u64 next_workload_id;
	u32 records_quota;
	u32 pad;
};

/* Order is part of the contract: abi.Counter has the same members. */
enum ambit_counter {
	AMBIT_C_CAPTURED,            /* connect rewritten to a capture port */
	AMBIT_C_NO_ADDRESS,          /* connect refused: the pod has no address of that family */
	AMBIT_C_NO_STORAGE,          /* no memory for what a socket has to carry: its connect is refused */
	AMBIT_C_NO_CAPTURE_PORT,     /* the bound source port is in use on every capture port: mostly EADDRNOTAVAIL */
	AMBIT_C_FOREIGN_SOURCE,      /* no record: the source address is not the pod's */
	AMBIT_C_RECORD_QUOTA,        /* no record: the pod has used up its quota */
	AMBIT_C_RECORDED,            /* capture record published */
	AMBIT_C_DIAL_RECORDED,       /* a dial of ztunnel to the pod's own application recorded */
	AMBIT_C_ACCEPTED,            /* record moved to the socket that ztunnel accepted */
	AMBIT_C_NO_RECORD,           /* dropped: a capture port was dialled without a record */
	AMBIT_C_NO_OUTBOUND,         /* dropped: no live outbound listener */
	AMBIT_C_NO_INBOUND,          /* dropped: no live inbound listener */
	AMBIT_C_NO_HBONE,            /* dropped: no live HBONE listener */
	AMBIT_C_TO_OUTBOUND,         /* handed to ztunnel's outbound listener */
	AMBIT_C_TO_INBOUND,          /* handed to ztunnel's inbound listener */
	AMBIT_C_TO_HBONE,            /* handed to ztunnel's HBONE listener */
	AMBIT_C_DIAL_QUOTA,          /* dial of ztunnel refused: its record would not fit the pod's quota */
	AMBIT_C_DIAL_PASSED,         /* ztunnel's dial passed to the application */
	AMBIT_C_PROBE_RECORDED,      /* connect of the node recorded */
	AMBIT_C_PROBE_QUOTA,         /* probe not recorded: the map is full */
	AMBIT_C_PROBE_PASSED,        /* probe passed to the application */
	AMBIT_C_DNS_REDIRECTED,      /* datagram or connect sent to ztunnel's resolver */
	AMBIT_C_NON_TCP_DENIED,      /* refused: the pod denies what is not TCP */
	AMBIT_C_LISTENER_ADDED,      /* a listener of ztunnel entered the table */
	AMBIT_C_LISTENER_FULL,       /* a listener of ztunnel found no free slot */
	AMBIT_C_LISTENER_FAILED,     /* a listener of ztunnel could not be stored */
	AMBIT_C_COUNT
};

#endif
