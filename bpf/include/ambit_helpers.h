/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every program needs: canonical addresses, counting, who the caller is. */
#ifndef AMBIT_HELPERS_H
#define AMBIT_HELPERS_H

#define AMBIT_AF_INET 2
#define AMBIT_AF_INET6 10
#define AMBIT_TCP 6
#define AMBIT_UDP 17
#define AMBIT_MPTCP 262
#define AMBIT_SOL_IP 0
#define AMBIT_SOL_IPV6 41
#define AMBIT_ENOENT 2
#define AMBIT_ECONNREFUSED 111
#define AMBIT_ENETUNREACH 101

/* clang joins two adjacent 4-byte stores to the context into one of 8, which the verifier refuses. */
#define barrier() asm volatile("" ::: "memory")

/* Every field is read before any is chosen: clang would else choose between addresses in the context, which
 * the verifier refuses. */
#define AMBIT_READ(a, family, ip4, ip6)                                              \
	do {                                                                         \
		u32 v4_ = (ip4);                                                     \
		barrier();                                                           \
		u32 a_ = (ip6)[0];                                                   \
		barrier();                                                           \
		u32 b_ = (ip6)[1];                                                   \
		barrier();                                                           \
		u32 c_ = (ip6)[2];                                                   \
		barrier();                                                           \
		u32 d_ = (ip6)[3];                                                   \
		barrier();                                                           \
		int is4_ = (family) == AMBIT_AF_INET;                                \
		(a)->w[0] = is4_ ? 0 : a_;                                           \
		(a)->w[1] = is4_ ? 0 : b_;                                           \
		(a)->w[2] = is4_ ? bpf_htonl(0xffff) : c_;                           \
		(a)->w[3] = is4_ ? v4_ : d_;                                         \
	} while (0)

static __always_inline void count(u32 reason)
{
	u64 *n = counters.lookup(&reason);

	/* Atomic even so: a softirq may count on the same processor in between. */
	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline int is_ztunnel(void)
{
	u64 id = bpf_get_current_cgroup_id();

	return ztunnels.lookup(&id) != 0;
}

static __always_inline void addr4(struct ambit_addr *a, __be32 ip)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = ip;
}

static __always_inline int addr_eq(const struct ambit_addr *a, const struct ambit_addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline int addr_is4(const struct ambit_addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline int addr_set(const struct ambit_addr *a)
{
	return (a->w[0] | a->w[1] | a->w[2] | a->w[3]) != 0;
}

/* Loopback, and the unspecified address, which connect takes for loopback. */
static __always_inline int addr_local(const struct ambit_addr *a)
{
	if (addr_is4(a))
		return (bpf_ntohl(a->w[3]) >> 24) == 127 || a->w[3] == 0;
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == 0 && (a->w[3] == 0 || a->w[3] == bpf_htonl(1));
}

static __always_inline int pod_owns(const struct ambit_pod *pod, const struct ambit_addr *a)
{
#pragma unroll
	for (int i = 0; i < AMBIT_MAX_ADDRESSES; i++)
		if (i < pod->address_count && addr_eq(&pod->addresses[i], a))
			return 1;
	return 0;
}

static __always_inline int capture_port(u32 port)
{
	return port >= AMBIT_CAPTURE_FIRST && port < AMBIT_CAPTURE_FIRST + AMBIT_CAPTURE_COUNT;
}

static __always_inline u32 mix(u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	h ^= h >> 16;
	return h;
}

static __always_inline u32 flow_hash(const struct ambit_addr *a, u32 port)
{
	return mix(a->w[0] ^ mix(a->w[1] ^ mix(a->w[2] ^ mix(a->w[3] ^ mix(port)))));
}

#endif
