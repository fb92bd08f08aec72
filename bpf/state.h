/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs have besides the kernel's structures: the maps, room to put a record together, and what is looked up in
 * them. The maps whose values stand in shared.h, and the ring, are the daemon's too; the others are the programs' own.
 */
#ifndef FARWRITE_EBPF_STATE_H
#define FARWRITE_EBPF_STATE_H

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "../uapi/farwrite.h"
#include "shared.h"

/* The order is part of the record (`hook`) and of the map `counters`. crates/capture/src/ebpf/hooks.rs has the names. */
enum hook {
	HOOK_WRITE,
	HOOK_DIO,
	HOOK_FAULT,
	HOOK_MMAP,
	HOOK_CLOSE,
	HOOK_FALLOCATE,
	HOOK_CLONE,
	HOOK_COPY,
	HOOK_SETATTR,
	HOOK_XATTR,
	HOOK_ACL,
	HOOK_FILEATTR,
	HOOK_CREATE,
	HOOK_RENAME,
	HOOK_UNLINK,
	HOOK_RMDIR,
	HOOK_UMOUNT,
	HOOKS,
};

/*
 * Where a record is put together: the stack is too small. One program can be put off its processor by another, so there are
 * several; a per-processor value is 32 KiB at most.
 */
#define SLOTS		3
#define PATH_ROOM	(2 * FARWRITE_PATH_MAX)
struct scratch {
	__u64 busy;
	__u32 begin;			/* of the path being walked, in `path` */
	__u32 at;			/* its end */
	__s32 found;			/* WALK_*, or the number of the root */
	__u32 cut;
	__u32 unlinked;
	__u32 steps;			/* of the walk, up from the leaf */
	__u32 moving;			/* one of the dentries was being moved */
	__u64 trace;			/* which dentries, and how often each had been moved */
	__u64 again;			/* the same of a second walk */
	__u64 address;			/* of a dentry, as a number: the verifier lets no program compute with the pointer */
	__u64 dev;
	__u64 bits;			/* as in struct farwrite_device */
	__u64 mask;			/* the roots of the device */
	struct farwrite_record r;
	__u8 path[PATH_ROOM + NAME_MAX + 1 + 8];
};

/* Results of a walk to the root. */
#define WALK_DEEP	-1		/* more than FARWRITE_DEPTH_MAX directories */
#define WALK_OUTSIDE	-2		/* came to the top of the filesystem */
#define WALK_NOWHERE	-3		/* came to an end that is not the top: the file has no known name */
#define WALK_SKIP	-4		/* below a directory that is skipped */
#define WALK_MOVING	-5		/* directories on the way kept moving: where it is is not known */

/* A walk is tried again this often if a directory on the way was moved meanwhile. */
#define TRIES		8

struct scratches {
	struct scratch slot[SLOTS];
};

/* A call whose exit needs what only its entry knows. */
struct object {
	__u64 address;		/* rename: the old directory's dentry; direct write: the request */
	__u64 dev;
	__u64 ino;		/* rename: of the old directory; direct write: of the file */
	__u64 offset;
	__u32 generation;
};

struct pending {
	struct object object;
	__u32 over;
	__u32 name_len;
	__u8 name[NAME_MAX + 1];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct farwrite_control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FARWRITE_ROOTS_MAX);
	__type(key, __u64);
	__type(value, struct farwrite_device);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * FARWRITE_ROOTS_MAX);
	__type(key, struct farwrite_place);
	__type(value, struct farwrite_place_is);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FARWRITE_ROOTS_MAX);
	__type(key, __u32);
	__type(value, struct farwrite_root);
} roots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, __u32);
	__type(value, struct farwrite_hook_counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratches);
} scratch SEC(".maps");

/* Calls under way, by the address of an object that only this call has. The oldest give way: a call whose exit was missed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct pending);
} calls SEC(".maps");

/* Files of tmpfs with a mapping that may be stored to. If the oldest give way, the close of one is not told of as a write. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} mapped SEC(".maps");

static __always_inline __u64 device_of(struct inode *inode)
{
	struct super_block *sb = inode->i_sb;

	if (sb->s_magic == BTRFS_SUPER_MAGIC && bpf_core_field_exists(struct btrfs_inode, vfs_inode)) {
		void *whole = (void *)inode - bpf_core_field_offset(struct btrfs_inode, vfs_inode);
		struct btrfs_root *root = BPF_CORE_READ((struct btrfs_inode *)whole, root);

		return BPF_CORE_READ(root, anon_dev);
	}
	return sb->s_dev;
}

static __always_inline struct farwrite_device *watched(struct inode *inode, __u64 *dev)
{
	if (!inode)
		return NULL;
	*dev = device_of(inode);
	return bpf_map_lookup_elem(&devices, dev);
}

static __always_inline struct farwrite_control *the_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&control, &zero);
}

static __always_inline struct farwrite_hook_counter *counter_of(__u32 hook)
{
	return bpf_map_lookup_elem(&counters, &hook);
}

/* Something on this device was not told of. */
static __noinline int lose(__u64 mask, __u32 hook)
{
	struct farwrite_control *c = the_control();
	struct farwrite_hook_counter *n = counter_of(hook);
	__u32 i;

	if (!c)
		return 0;
	for (i = 0; i < FARWRITE_ROOTS_MAX; i++)
		if (mask & (1ull << i))
			__sync_fetch_and_add(&c->lost[i], 1);
	if (n)
		n->dropped++;
	return 0;
}

#endif
