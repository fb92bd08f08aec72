/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR MIT */
/*
 * The one layout between kernel and user space: the file modification message ("record") as the loadable module and the
 * eBPF programs make it, the ring in which the module keeps records, and the requests that /dev/farwrite understands.
 *
 * Included by kernel/ (C), bpf/ (C) and asserted field by field by crates/capture (Rust). All integers are in the
 * machine's byte order. A change of any layout here raises FARWRITE_ABI; there is no silent compatibility.
 */
#ifndef _UAPI_FARWRITE_H
#define _UAPI_FARWRITE_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#include <linux/ioctl.h>
#endif

#define FARWRITE_ABI		1
#define FARWRITE_DEVICE		"/dev/farwrite"

/* Bounds. A path longer than FARWRITE_PATH_MAX bytes loses its beginning (FARWRITE_F_PATH_CUT), never its last name. */
#define FARWRITE_ROOTS_MAX	64
#define FARWRITE_PATH_MAX	4096
#define FARWRITE_DEPTH_MAX	256
#define FARWRITE_RECORD_MAX	(sizeof(struct farwrite_record) + 2 * FARWRITE_PATH_MAX + 8)

/* ---- the file modification message ---------------------------------------------------------------------------- */

/* What happened. */
enum farwrite_op {
	FARWRITE_OP_PAD		= 0,	/* nothing: fills the ring up to its end; only `size`, `version` and `op` hold */
	FARWRITE_OP_CREATE	= 1,	/* a name appeared: create, mkdir, mknod, symlink, O_TMPFILE's linkat, link */
	FARWRITE_OP_DELETE	= 2,	/* a name disappeared: unlink, rmdir */
	FARWRITE_OP_RENAME	= 3,	/* `path` went to `to_path`, over whatever was there */
	FARWRITE_OP_EXCHANGE	= 4,	/* `path` and `to_path` changed places; `ino` is what had `path` before */
	FARWRITE_OP_WRITE	= 5,	/* the bytes of the extent may have changed */
	FARWRITE_OP_MMAP	= 6,	/* a mapping of the extent became writable: start writeback of it, then read */
	FARWRITE_OP_TRUNCATE	= 7,	/* the size became `offset`; `length` was the size before, or ~0 */
	FARWRITE_OP_ATTRIB	= 8,	/* mode, owner, times, flags, xattr or ACL; FARWRITE_F_* says which */
	FARWRITE_OP_LOST	= 9,	/* `length` records of the roots in `offset` (bit n: root n) had no room */
	FARWRITE_OP_GONE	= 10,	/* the filesystem of root `root` was unmounted: it is no longer watched */
};

/* Flags of a record. */
#define FARWRITE_F_PATH_CUT	(1u << 0)	/* `path` or `to_path` lacks its beginning */
#define FARWRITE_F_LEAF_FIRST	(1u << 1)	/* the components of both paths come in reverse order: c/b/a for a/b/c */
#define FARWRITE_F_IDENTITY	(1u << 2)	/* the name used is below no root, or not known (another hard link, an unlinked
						 * or unnamed file, opened by handle): the file is told by `dev`, `ino` and
						 * `generation` alone. `root` is one, or FARWRITE_ROOT_NONE: all roots on `dev`.
						 * A file that has no name left (link count 0) makes no record */
#define FARWRITE_F_TO_EOF	(1u << 3)	/* the extent reaches to the end of the file, wherever that is */
#define FARWRITE_F_DIR		(1u << 4)	/* what it is about is a directory */
#define FARWRITE_F_OVER		(1u << 5)	/* rename: something had the new name */
#define FARWRITE_F_SHARED	(1u << 6)	/* MMAP: no writeback will tell of later stores (tmpfs): dirty until unmapped */
#define FARWRITE_F_XATTR	(1u << 7)	/* ATTRIB: an extended attribute */
#define FARWRITE_F_ACL		(1u << 8)	/* ATTRIB: an ACL */
#define FARWRITE_F_HOLE		(1u << 9)	/* WRITE: the extent was punched or zeroed */
#define FARWRITE_F_COMPAT	(1u << 10)	/* made by a 32-bit system call */
#define FARWRITE_F_TMPFILE	(1u << 11)	/* CREATE: the file had no name before (O_TMPFILE and linkat) */
#define FARWRITE_F_MOVED	(1u << 12)	/* CREATE, DELETE: a rename across the root's border; a directory that came in
						 * brings what is below it */

/* `call`: no system call of the predetermined ones was under way (io_uring worker, writeback fault, kernel writer) */
#define FARWRITE_CALL_NONE	0xffff

/* `root`: not about one root (FARWRITE_OP_LOST, FARWRITE_F_IDENTITY) */
#define FARWRITE_ROOT_NONE	0xffff

/*
 * A record: this header, `path_len` bytes of path, `to_path_len` bytes of second path, zeros up to a multiple of 8.
 *
 * Paths are relative to the watched root, components joined by '/', without a '/' at either end, not terminated, any
 * bytes; empty is the root itself. The last name (first with FARWRITE_F_LEAF_FIRST) is the file's name.
 *
 * Where one write system call touches several extents (writev does not, copy_file_range to itself may), or several hooks
 * see the same call, one record is made whose extent covers all of them. An extent is never too small.
 *
 * A rename is RENAME where both names are below the root; else a DELETE of the one (F_MOVED) or a CREATE of the other. Where
 * one watched root lies below another, each gets its own record.
 */
struct farwrite_record {
	__u32 size;		/* bytes of all this, a multiple of 8 */
	__u16 version;		/* FARWRITE_ABI */
	__u16 op;		/* enum farwrite_op */
	__u64 seq;		/* counts up by one for each record of an instance; a step means lost records */
	__u64 time;		/* CLOCK_REALTIME, ns since 1970, when the call had done its work */
	__u64 ino;		/* the file */
	__u64 parent;		/* inode number of the directory of `path` */
	__u64 to_parent;	/* of the directory of `to_path`, or 0 */
	__u64 offset;		/* of the extent, in bytes */
	__u64 length;		/* of the extent, in bytes; ~0 with FARWRITE_F_TO_EOF */
	__s64 result;		/* what the call returned; 0 where that is not known */
	__u32 dev;		/* s_dev of the super block, as (major << 20 | minor) */
	__u32 generation;	/* i_generation of the file */
	__u32 flags;		/* FARWRITE_F_* */
	__u32 pid;		/* thread group id; 0 if the kernel did it */
	__u32 tid;		/* thread id */
	__u16 root;		/* which watched root */
	__u16 call;		/* x86-64 number of the system call (i386 with FARWRITE_F_COMPAT), or FARWRITE_CALL_NONE */
	__u16 hook;		/* index of the hook that made it, as in struct farwrite_counter */
	__u16 path_len;		/* bytes */
	__u16 to_path_len;	/* bytes */
	__u16 reserved[5];	/* zero */
};				/* 112 bytes, then the paths */

/* ---- the module's ring ---------------------------------------------------------------------------------------- */

/*
 * mmap of /dev/farwrite at offset 0, read-only: one page with this header, then info.ring_bytes of data (a power of two).
 * Positions count bytes since the instance began and never wrap; the byte at position p is data[p & (ring_bytes - 1)]. A
 * record lies in one piece. Records in [tail, head) are there to be read (load `head` with acquire); they stay until
 * FARWRITE_IOC_RELEASE moves `tail`.
 */
struct farwrite_ring {
	__u64 head;		/* end of the last whole record */
	__u64 tail;		/* all before this is released */
	__u64 dropped;		/* records that had no room, ever */
	__u64 recorded;		/* records written, ever */
	__u64 lost;		/* records that had no room and of which no FARWRITE_OP_LOST tells yet: there is no room */
	__u64 lost_roots;	/* the roots that they are about (bit n: root n) */
};

/* ---- requests ------------------------------------------------------------------------------------------------- */

/* Opening the device takes CAP_SYS_ADMIN in the initial user namespace (else EPERM). */

struct farwrite_info {
	__u32 abi;		/* FARWRITE_ABI */
	__u32 on;		/* the replacement unit has the calls replaced */
	__u8  instance[16];	/* random, one per load of the module */
	__u64 epoch;		/* counts up each time it is switched on: between two epochs nothing was recorded */
	__u64 ring_bytes;
	__u64 head;
	__u64 tail;
	__u64 dropped;
	__u64 next_seq;
	__u32 replaced;		/* system calls replaced now */
	__u32 hooked;		/* functions below them hooked now */
	__u32 roots;		/* watched roots */
	__u32 consumer;		/* thread group id of the attached consumer, or 0 */
	__u32 counters;		/* how many struct farwrite_counter there are */
	__u32 reserved;
};

struct farwrite_watch {
	__s32 dirfd;		/* in: an open directory */
	__u16 root;		/* out: its number; the same directory gets the same number again */
	__u16 fresh;		/* out: 1 if it was not watched before this request */
	__u32 dev;		/* out: as in a record */
	__u32 reserved;
	__u64 ino;		/* out */
};

struct farwrite_counter {
	__u32 index;		/* in: which */
	__u32 replaces;		/* out: 1: a system call that is replaced; 0: a function below that is hooked */
	__u64 seen;		/* out: calls that came by */
	__u64 recorded;		/* out: records made of them */
	__u64 dropped;		/* out: records that had no room */
	char  name[48];		/* out: the function, terminated */
};

#define FARWRITE_IOC_MAGIC	0xFB
/* All return 0, or -1 with errno. EBADF/EPERM: only the attached consumer may; EINVAL: the argument; ENODEV: no such thing. */
#define FARWRITE_IOC_INFO	_IOR(FARWRITE_IOC_MAGIC, 0, struct farwrite_info)
#define FARWRITE_IOC_COUNTER	_IOWR(FARWRITE_IOC_MAGIC, 1, struct farwrite_counter)
/* Makes this open file the one consumer (EBUSY if there is one) until it is closed. Recording does not depend on it. */
#define FARWRITE_IOC_ATTACH	_IO(FARWRITE_IOC_MAGIC, 2)
/*
 * Only while it is switched on (else ENOTCONN), since an unmount is noticed by a hook. From the return on, everything below
 * is recorded. ENOSPC: FARWRITE_ROOTS_MAX, or numbers of former roots still stand in unreleased records; ENOTDIR;
 * EOPNOTSUPP: a filesystem whose writes the module cannot hook. Holds no reference that would keep it from being unmounted.
 */
#define FARWRITE_IOC_WATCH	_IOWR(FARWRITE_IOC_MAGIC, 3, struct farwrite_watch)
/* Argument: the root's number. */
#define FARWRITE_IOC_UNWATCH	_IO(FARWRITE_IOC_MAGIC, 4)
/*
 * Argument: 1 replaces the predetermined calls, 0 forgets all roots and puts the originals back; when it returns, no call
 * that was replaced is under way but such as block (the module then cannot be unloaded before they end). EBUSY: livepatch or another has one of them.
 */
#define FARWRITE_IOC_SWITCH	_IO(FARWRITE_IOC_MAGIC, 5)
/* Argument: pointer to a position in [tail, head], the end of a record: everything before it may be overwritten. */
#define FARWRITE_IOC_RELEASE	_IOW(FARWRITE_IOC_MAGIC, 6, __u64)

/*
 * Argument: pointer to a position in [tail, head]: records before it have been read, if not released. Only poll(2) looks at
 * this; it is the tail when a consumer attaches, and never behind it.
 */
#define FARWRITE_IOC_SEEN	_IOW(FARWRITE_IOC_MAGIC, 7, __u64)

/*
 * poll(2) on the device: readable while head is beyond what FARWRITE_IOC_SEEN told. read(2) is not offered (EINVAL):
 * records are read in place.
 */

#endif /* _UAPI_FARWRITE_H */
