/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What the programs and crates/capture/src/ebpf share besides the record of uapi/farwrite.h: the values of the pinned maps.
 * A change of any layout here, or of what a field means, raises FARWRITE_EBPF_ABI: the next daemon then replaces the
 * pinned programs and maps by its own instead of adopting them.
 */
#ifndef FARWRITE_EBPF_SHARED_H
#define FARWRITE_EBPF_SHARED_H

#define FARWRITE_EBPF_ABI	1

/* One entry of the map `control`, mapped by the daemon. */
struct farwrite_control {
	__u32 abi;			/* FARWRITE_EBPF_ABI, written last by the daemon that made the maps */
	__u32 waiting;			/* the daemon sleeps: wake it */
	__u8  instance[16];		/* random, one per life of the maps */
	__u64 epoch;			/* counts up each time recording is switched on in this life */
	__u64 clock_offset;		/* CLOCK_REALTIME - CLOCK_MONOTONIC, ns, kept up by the daemon */
	__u64 seq;			/* records made */
	__u64 lost[FARWRITE_ROOTS_MAX];		/* records of this root that had no room, or calls that could not be told */
	__u64 lost_told[FARWRITE_ROOTS_MAX];	/* how many of them the daemon has had journalled; only it writes this */
	__u64 missed_told;		/* likewise of the sum of the programs' recursion_misses */
	__u8  build[32];		/* which programs these are: a hash of the object file */
};

/* Value of the map `devices`; the key is the device number (__u64) that stat(2) gives, in the kernel's encoding. */
struct farwrite_device {
	__u64 roots;			/* bit n: root n is on it */
	__u64 bits;			/* bit (ino * golden >> 58) for the inode of each root and each skipped directory */
};

/* Key of the map `places`. */
struct farwrite_place {
	__u64 dev;
	__u64 ino;
};

/* Its value. */
struct farwrite_place_is {
	__u32 number;			/* of the root, or FARWRITE_PLACE_SKIP */
	__u32 generation;		/* SKIP: i_generation; with another one it is not the directory that was meant */
};

#define FARWRITE_PLACE_SKIP	0xffffffff
#define FARWRITE_INO_BIT(ino)	(1ull << (((ino) * 0x9e3779b97f4a7c15ull) >> 58))

/* Value of the map `roots`, by number. */
struct farwrite_root {
	__u64 dev;			/* as in `devices` */
	__u64 ino;
	__u32 sb_dev;			/* s_dev of its super block (another one than `dev` on btrfs) */
	__u32 state;			/* FARWRITE_ROOT_* */
};

#define FARWRITE_ROOT_UNUSED	0
#define FARWRITE_ROOT_RECORDED	1
#define FARWRITE_ROOT_GONE	2	/* its filesystem was unmounted */
#define FARWRITE_ROOT_RETIRED	3	/* given up; its number may stand in records in the ring */

/* Value of the map `counters`, per processor, by hook. */
struct farwrite_hook_counter {
	__u64 seen;			/* calls on a device with a watched root */
	__u64 recorded;
	__u64 dropped;
};

#endif
