// SPDX-License-Identifier: GPL-2.0-only
/*
 * The eBPF sensor: programs at the exit of the functions through which every change of a file passes, which put one
 * record (uapi/farwrite.h) per change below a watched root into a ring buffer.
 *
 * They never wait, never allocate, never change what the kernel does. What has no room is counted per root, and the
 * daemon then compares that root's tree. docs/capture.md has the table of hooks and what each shows.
 *
 * A device number here is the one that stat(2) gives: on btrfs that of the subvolume, elsewhere the super block's.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "../uapi/farwrite.h"
#include "shared.h"

char LICENSE[] SEC("license") = "GPL";

#define BTRFS_SUPER_MAGIC	0x9123683E
#define TMPFS_MAGIC		0x01021994
#define BTRFS_FIRST_INO		256	/* the top directory of every subvolume */

#define EPERM			1
#define EINTR			4
#define EIO			5
#define EBADF			9
#define EAGAIN			11
#define ENOMEM			12
#define EINVAL			22
#define ETXTBSY			26
#define EFBIG			27
#define ENOSPC			28
#define EDQUOT			122
#define EIOCBQUEUED		529
#define S_IFMT			0170000
#define S_IFDIR			0040000
#define VM_SHARED		0x08
#define VM_MAYWRITE		0x20
#define PF_KTHREAD		0x00200000
#define I_LINKABLE		(1 << 10)
#define IOCB_DIRECT		(1 << 17)
#define IOMAP_DIO_WRITE		(1u << 30)
#define RENAME_EXCHANGE		(1 << 1)
#define RENAME_WHITEOUT		(1 << 2)
#define PAGE_SHIFT		12
#define HUGE_PAGES		512	/* most pages of a folio of the page cache: 2 MiB */
#define NAME_MAX		255

#define ATTR_SIZE		(1 << 3)
#define ATTR_ATIME		(1 << 4)
#define ATTR_MTIME		(1 << 5)
#define ATTR_CTIME		(1 << 6)
#define ATTR_ATIME_SET		(1 << 7)
#define ATTR_MTIME_SET		(1 << 8)
#define ATTR_FORCE		(1 << 9)
#define ATTR_FILE		(1 << 13)
#define ATTR_OPEN		(1 << 15)
#define ATTR_TIMES_SET		(1 << 16)
#define ATTR_TOUCH		(1 << 17)
/* Nothing besides these: the time of last access alone, which is not backed up. */
#define ATTR_ATIME_ONLY		(ATTR_ATIME | ATTR_ATIME_SET | ATTR_CTIME | ATTR_FORCE | ATTR_FILE | ATTR_TIMES_SET | ATTR_TOUCH)
/* What comes with a change of the size anyway. */
#define ATTR_WITH_SIZE		(ATTR_SIZE | ATTR_MTIME | ATTR_CTIME | ATTR_FORCE | ATTR_FILE | ATTR_OPEN)

#define FALLOC_FL_PUNCH_HOLE	0x02
#define FALLOC_FL_COLLAPSE	0x08
#define FALLOC_FL_ZERO_RANGE	0x10
#define FALLOC_FL_INSERT	0x20

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

/* ---- which device, which root --------------------------------------------------------------------------------- */

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

/* ---- paths ---------------------------------------------------------------------------------------------------- */

struct walk {
	struct dentry *leaf;
	struct dentry *d;
	struct scratch *s;
};

/*
 * The way up is not one look: a walk that takes a step before one directory on it is moved and the next step after another is
 * may come out where the file never was, even outside of all roots. So a second walk looks whether each dentry still has the
 * parent and the count of moves (d_seq) that it had: if so, the whole way was as it was found, at the moment between both. That
 * count, unlike the one of rename_lock, changes for nothing but what is on the way, and takes no symbol to be found. (Where the
 * processor itself reorders loads, a file that was renamed during the first walk may be told of under its name before: its inode
 * and its directory's are right, and the rename is told of.)
 */
static __always_inline __u64 traced(__u64 trace, __u64 dentry, __u32 moves)
{
	return (trace + dentry + moves) * 0x9e3779b97f4a7c15ull;
}

static __always_inline __u64 address_of(struct scratch *s, struct dentry *d)
{
	volatile __u64 *address = &s->address;

	*address = (__u64)d;
	return *address;
}

/* All of the first walk is before all of the second: a compare-and-swap that succeeds is a full barrier. */
static __always_inline void barrier_of(struct scratch *s)
{
	__sync_val_compare_and_swap(&s->busy, 1, 1);
}

/* How often it was moved or renamed: read before anything else of it that a walk uses. */
static __always_inline __u32 moves_of(struct dentry *d)
{
	__u32 moves = *(volatile __u32 *)&d->d_seq.seqcount.sequence;

	asm volatile("" ::: "memory");
	return moves;
}

static __always_inline void begin_walk(struct scratch *s, __u32 at)
{
	s->found = WALK_DEEP;
	s->at = at;
	s->cut = 0;
	s->unlinked = 0;
	s->steps = 0;
	s->moving = 0;
	s->trace = 0;
	s->again = 0;
}

/* Was the whole way as the first walk found it? */
static __always_inline bool is_settled(struct scratch *s)
{
	return !s->moving && s->trace == s->again;
}

/*
 * At a root or a skipped directory? A root that was removed, and whose number a new directory was given, has been watched all
 * the time, so that is as good as the same. A directory in place of a skipped one is not to be skipped.
 */
static __always_inline int arrived(struct scratch *s, struct farwrite_place_is *is, __u32 generation)
{
	if (is->number == FARWRITE_PLACE_SKIP) {
		if (is->generation != generation)
			return 0;
		s->found = WALK_SKIP;
		return 1;
	}
	s->found = is->number;
	return 1;
}

/* Copies the name, and for a short one what is behind it: `to` has room for NAME_MAX bytes. A short one costs no call. */
static __always_inline void copy_name(__u8 *to, struct dentry *d, __u32 len)
{
	const unsigned char *name = d->d_name.name;

	/* Another name of it from 6.14 on. */
	if (bpf_core_field_exists(d->d_iname)) {
		if (len <= sizeof(d->d_iname) && name == d->d_iname) {
			const __u64 *from = (const void *)d->d_iname;
			__u64 *words = (void *)to;

			words[0] = from[0];
			words[1] = from[1];
			words[2] = from[2];
			words[3] = from[3];
			return;
		}
	}
	if (len)
		bpf_probe_read_kernel(to, len, name);
}

static long walk_step(__u32 i, struct walk *w)
{
	struct dentry *d = w->d;
	struct scratch *s = w->s;
	__u32 moves = moves_of(d);
	struct dentry *parent = d->d_parent;
	struct inode *inode = d->d_inode;
	__u64 ino = inode ? inode->i_ino : 0;
	__u32 at, len;

	s->trace = traced(s->trace, address_of(s, d), moves);
	s->moving |= moves & 1;
	s->steps = i + 1;
	if (inode && (s->bits & FARWRITE_INO_BIT(ino))) {
		struct farwrite_place place = { .dev = s->dev, .ino = ino };
		struct farwrite_place_is *is = bpf_map_lookup_elem(&places, &place);

		if (is && arrived(s, is, inode->i_generation))
			return 1;
	}
	if (parent == d) {
		s->found = d->d_sb->s_root == d ? WALK_OUTSIDE : WALK_NOWHERE;
		return 1;
	}
	if (ino == BTRFS_FIRST_INO && d->d_sb->s_magic == BTRFS_SUPER_MAGIC) {
		s->found = WALK_OUTSIDE;
		return 1;
	}
	/* Not hashed: removed, or never named (O_TMPFILE). The leaf of a removal is just that: the caller looks at i == 0. */
	if (!d->d_hash.pprev && i > 0)
		s->unlinked = 1;

	len = d->d_name.len & NAME_MAX;
	at = s->at;
	if (at + len + 1 > s->begin + FARWRITE_PATH_MAX)
		s->cut = 1;
	if (!s->cut) {
		if (at != s->begin) {
			s->path[at & (PATH_ROOM - 1)] = '/';
			at++;
		}
		copy_name(&s->path[at & (PATH_ROOM - 1)], d, len);
		s->at = at + len;
	}
	w->d = parent;
	return 0;
}

static long walk_again(__u32 i, struct walk *w)
{
	struct dentry *d = w->d;
	struct scratch *s = w->s;

	s->again = traced(s->again, address_of(s, d), moves_of(d));
	w->d = d->d_parent;
	return 0;
}

static long walk_try(__u32 i, struct walk *w)
{
	struct scratch *s = w->s;

	begin_walk(s, s->begin);
	w->d = w->leaf;
	bpf_loop(FARWRITE_DEPTH_MAX, walk_step, w, 0);
	barrier_of(s);
	w->d = w->leaf;
	bpf_loop(s->steps, walk_again, w, 0);
	if (is_settled(s))
		return 1;
	s->found = WALK_MOVING;
	return 0;
}

/* Appends the path of `d`, leaf first, at s->at. Returns WALK_* or the root. */
static __always_inline __s32 walk(struct scratch *s, struct dentry *d)
{
	struct walk w = { .leaf = d, .d = d, .s = s };

	s->begin = s->at;
	bpf_loop(TRIES, walk_try, &w, 0);
	return s->found;
}

/* A name that is somewhere, perhaps below a root. */
static __always_inline bool is_unknown(__s32 found)
{
	return found == WALK_DEEP || found == WALK_NOWHERE || found == WALK_MOVING;
}

/* ---- records -------------------------------------------------------------------------------------------------- */

/* For a record about device `dev`. If there is none, that is counted as a loss. */
static __always_inline struct scratch *take_scratch(struct farwrite_device *device, __u64 dev, __u32 hook)
{
	__u32 zero = 0;
	struct scratches *all = bpf_map_lookup_elem(&scratch, &zero);
	int i;

	if (!all)
		return NULL;
#pragma unroll
	for (i = 0; i < SLOTS; i++) {
		struct scratch *s = &all->slot[i];

		if (__sync_val_compare_and_swap(&s->busy, 0, 1))
			continue;
		s->dev = dev;
		s->bits = device->bits;
		s->mask = device->roots;
		s->at = 0;
		return s;
	}
	lose(device->roots, hook);
	return NULL;
}

static __always_inline void give_scratch(struct scratch *s)
{
	s->busy = 0;
}

/* The file that the record is about; NULL: that is not known. */
static __always_inline void about(struct farwrite_record *r, struct inode *inode)
{
	r->ino = 0;
	r->generation = 0;
	r->flags &= ~FARWRITE_F_DIR;
	if (!inode)
		return;
	r->ino = inode->i_ino;
	r->generation = inode->i_generation;
	if ((inode->i_mode & S_IFMT) == S_IFDIR)
		r->flags |= FARWRITE_F_DIR;
}

static __always_inline void fill(struct scratch *s, struct inode *inode, __u16 op, __u16 hook)
{
	struct farwrite_record *r = &s->r;
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	__u64 pid = bpf_get_current_pid_tgid();

	__builtin_memset(r, 0, sizeof(*r));
	r->version = FARWRITE_ABI;
	r->op = op;
	r->hook = hook;
	r->call = FARWRITE_CALL_NONE;
	r->flags = FARWRITE_F_LEAF_FIRST;
	r->dev = s->dev;
	r->tid = (__u32)pid;
	r->pid = task->flags & PF_KTHREAD ? 0 : pid >> 32;
	about(r, inode);
}

/* Puts the record into the ring; wakes the daemon if it sleeps. */
static __noinline int put(struct scratch *s)
{
	struct farwrite_control *c = the_control();
	struct farwrite_hook_counter *n;
	__u32 paths, end, size;
	void *nudge;
	long failed;
	bool wake;

	if (!c || !s)
		return 0;
	n = counter_of(s->r.hook);
	paths = s->r.path_len + s->r.to_path_len;
	end = paths & (2 * PATH_ROOM - 1);
	if (end > PATH_ROOM)
		return 0;
	__builtin_memset(&s->path[end], 0, 8);
	size = sizeof(s->r) + ((end + 7) & ~7u);
	s->r.size = size;
	s->r.time = bpf_ktime_get_ns() + c->clock_offset;
	s->r.seq = __sync_fetch_and_add(&c->seq, 1);
	if (size > sizeof(s->r) + PATH_ROOM + 8)
		return 0;
	/* Taken back before the record is there: the daemon may ask again as soon as it has seen it. */
	wake = c->waiting;
	if (wake)
		c->waiting = 0;
	failed = bpf_ringbuf_output(&ring, &s->r, size, wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	if (failed) {
		__u64 mask = s->mask;

		if (s->r.root < FARWRITE_ROOTS_MAX)
			mask = 1ull << (s->r.root & (FARWRITE_ROOTS_MAX - 1));
		return lose(mask, s->r.hook);
	}
	if (n)
		n->recorded++;
	/* It went to sleep between the look at `waiting` and the record: an empty record wakes it. */
	if (!wake && c->waiting) {
		c->waiting = 0;
		nudge = bpf_ringbuf_reserve(&ring, 8, 0);
		if (nudge)
			bpf_ringbuf_discard(nudge, BPF_RB_FORCE_WAKEUP);
	}
	return 0;
}

/*
 * The record in `s`, about a file known under the name `d`, goes to the root that the name is below. If the name is below
 * none, or is none any more, but the file may have another one, it is about every root of the device, by identity.
 */
static __noinline int put_content(struct scratch *s, struct dentry *d, struct inode *inode)
{
	__s32 found;
	bool dir, nameless;

	dir = s->r.flags & FARWRITE_F_DIR;
	found = walk(s, d);
	nameless = s->unlinked || (!d->d_hash.pprev && d->d_parent != d);
	if (found == WALK_SKIP)
		return 0;
	if (found == WALK_DEEP || (found == WALK_MOVING && dir))
		return lose(s->mask, s->r.hook);
	if (found >= 0 && !nameless) {
		s->r.root = found;
		s->r.parent = d->d_parent->d_inode->i_ino;
		s->r.path_len = s->at;
		if (s->cut)
			s->r.flags |= FARWRITE_F_PATH_CUT;
		return put(s);
	}
	if (dir || (found == WALK_OUTSIDE && !nameless && inode->i_nlink < 2))
		return 0;
	s->r.flags |= FARWRITE_F_IDENTITY;
	s->r.path_len = 0;
	s->r.root = FARWRITE_ROOT_NONE;
	return put(s);
}

/* What happened to a file's content or attributes. */
struct content {
	struct dentry *d;
	struct inode *inode;
	__u64 offset;
	__u64 length;
	__s64 result;
	__u32 flags;
	__u16 op;
	__u16 hook;
};

static __noinline int tell(struct content *e)
{
	struct farwrite_hook_counter *n;
	struct farwrite_device *device;
	struct scratch *s;
	__u64 dev;

	device = watched(e->inode, &dev);
	if (!device)
		return 0;
	n = counter_of(e->hook);
	if (n)
		n->seen++;
	/* No name and none to come, or one that will be told of (O_TMPFILE and linkat). */
	if (e->inode->i_nlink == 0)
		return 0;
	s = take_scratch(device, dev, e->hook);
	if (!s)
		return 0;
	fill(s, e->inode, e->op, e->hook);
	s->r.offset = e->offset;
	s->r.length = e->length;
	s->r.result = e->result;
	s->r.flags |= e->flags;
	put_content(s, e->d, e->inode);
	give_scratch(s);
	return 0;
}

/* ---- content -------------------------------------------------------------------------------------------------- */

static __always_inline int wrote(struct kiocb *iocb, long ret)
{
	struct file *file = iocb->ki_filp;
	struct content e = {
		.d = file->f_path.dentry,
		.inode = file->f_inode,
		.result = ret,
		.op = FARWRITE_OP_WRITE,
		.hook = HOOK_WRITE,
	};

	if (ret > 0) {
		e.offset = iocb->ki_pos - ret;
		e.length = ret;
		return tell(&e);
	}
	/* Nothing was written, except that a failed direct write may have left anything, unless it was refused outright. */
	if (ret == 0 || !(iocb->ki_flags & IOCB_DIRECT))
		return 0;
	/* The end of it is told by iomap. */
	if (ret == -EIOCBQUEUED || ret == -EAGAIN || ret == -EINVAL || ret == -EBADF || ret == -EPERM || ret == -EFBIG ||
	    ret == -ETXTBSY)
		return 0;
	e.length = ~0ull;
	e.flags = FARWRITE_F_TO_EOF;
	return tell(&e);
}

#define WRITE_ITER(function)						\
	SEC("?fexit/" #function)					\
	int BPF_PROG(function, struct kiocb *iocb, void *from, long ret)\
	{								\
		return wrote(iocb, ret);				\
	}

WRITE_ITER(ext4_file_write_iter)
WRITE_ITER(xfs_file_write_iter)
WRITE_ITER(btrfs_file_write_iter)
WRITE_ITER(shmem_file_write_iter)
WRITE_ITER(generic_file_write_iter)

/*
 * The end of a direct write that nobody waits for (io_uring, libaio). Only after iomap_dio_complete() can a reader be sure to
 * see it, and then `dio` has been freed: what it was about is kept from the entry to the exit.
 */
SEC("?fentry/iomap_dio_complete")
int BPF_PROG(iomap_dio_complete_entry, struct iomap_dio *dio)
{
	struct kiocb *iocb = dio->iocb;
	struct inode *inode = iocb->ki_filp->f_inode;
	__u64 key = bpf_get_current_pid_tgid();
	struct farwrite_device *device;
	struct pending p = {};

	if (!(dio->flags & IOMAP_DIO_WRITE) || !iocb->ki_complete)
		return 0;
	device = watched(inode, &p.object.dev);
	if (!device)
		return 0;
	p.object.address = (__u64)iocb;
	p.object.ino = inode->i_ino;
	p.object.generation = inode->i_generation;
	p.object.offset = iocb->ki_pos;
	if (bpf_map_update_elem(&calls, &key, &p, BPF_ANY))
		lose(device->roots, HOOK_DIO);
	return 0;
}

/* By identity: what has no name at hand. */
static __noinline int tell_identity(struct object *p, __s64 result)
{
	struct farwrite_device *device = bpf_map_lookup_elem(&devices, &p->dev);
	struct scratch *s;

	if (!device)
		return 0;
	s = take_scratch(device, p->dev, HOOK_DIO);
	if (!s)
		return 0;
	fill(s, NULL, FARWRITE_OP_WRITE, HOOK_DIO);
	s->r.ino = p->ino;
	s->r.generation = p->generation;
	s->r.offset = result > 0 ? p->offset : 0;
	s->r.length = result > 0 ? result : ~0ull;
	s->r.result = result;
	s->r.flags |= FARWRITE_F_IDENTITY | (result > 0 ? 0 : FARWRITE_F_TO_EOF);
	s->r.root = FARWRITE_ROOT_NONE;
	put(s);
	give_scratch(s);
	return 0;
}

SEC("?fexit/iomap_dio_complete")
int BPF_PROG(iomap_dio_complete_exit, struct iomap_dio *dio, long ret)
{
	__u64 key = bpf_get_current_pid_tgid();
	struct pending *p = bpf_map_lookup_elem(&calls, &key);
	struct kiocb *iocb = dio->iocb;
	struct object was;

	if (!p)
		return 0;
	was = p->object;
	bpf_map_delete_elem(&calls, &key);
	/* The request lives until its completion is called, which follows; `dio` may be another's by now. */
	if ((__u64)iocb == was.address) {
		struct file *file = iocb->ki_filp;
		struct content e = {
			.d = file->f_path.dentry,
			.inode = file->f_inode,
			.offset = ret > 0 ? was.offset : 0,
			.length = ret > 0 ? ret : ~0ull,
			.result = ret,
			.flags = ret > 0 ? 0 : FARWRITE_F_TO_EOF,
			.op = FARWRITE_OP_WRITE,
			.hook = HOOK_DIO,
		};

		return tell(&e);
	}
	return tell_identity(&was, ret);
}

/*
 * A page of a shared mapping becomes writable: at the entry the page table has it so, the filesystem has it dirty, and the
 * mapping is still locked. The store comes after this; so does any write-protection for writeback.
 */
SEC("?fentry/fault_dirty_shared_page")
int BPF_PROG(fault_dirty_shared_page, struct vm_fault *vmf)
{
	struct file *file = vmf->vma->vm_file;
	struct page *page = vmf->page;
	struct content e = { .op = FARWRITE_OP_MMAP, .hook = HOOK_FAULT };
	__u64 first = vmf->pgoff, pages = 1, head, flags;

	if (!file)
		return 0;
	e.d = file->f_path.dentry;
	e.inode = file->f_inode;
	/* A large folio is written back, and so write-protected, as one: all of it is writable now. */
	head = BPF_CORE_READ(page, compound_head);
	/* Where the flags are no number any more, any page may be one of many. */
	flags = ~0ull;
	if (bpf_core_field_exists(page->flags))
		flags = BPF_CORE_READ(page, flags);
	if ((head & 1) || (flags & (1ull << bpf_core_enum_value(enum pageflags, PG_head)))) {
		pages = HUGE_PAGES;
		if (bpf_core_field_exists(struct folio, _folio_nr_pages)) {
			struct folio *folio = (void *)page;
			__u32 nr;

			if (head & 1)
				folio = (void *)(head - 1);
			nr = BPF_CORE_READ(folio, _folio_nr_pages);
			if (nr && nr <= HUGE_PAGES && !(nr & (nr - 1)))
				pages = nr;
		}
		first &= ~(pages - 1);
	}
	e.offset = first << PAGE_SHIFT;
	e.length = pages << PAGE_SHIFT;
	if (e.inode->i_sb->s_magic == TMPFS_MAGIC)
		e.flags = FARWRITE_F_SHARED;
	return tell(&e);
}

/* tmpfs has no writeback that would protect a page again: a mapping may be stored to, unseen, until it is gone. */
SEC("?fexit/shmem_mmap")
int BPF_PROG(shmem_mmap, struct file *file, struct vm_area_struct *vma, int ret)
{
	struct content e = {
		.d = file->f_path.dentry,
		.inode = file->f_inode,
		.op = FARWRITE_OP_MMAP,
		.hook = HOOK_MMAP,
		.length = ~0ull,
		.flags = FARWRITE_F_TO_EOF | FARWRITE_F_SHARED,
	};
	__u64 key = (__u64)file, dev;
	__u32 one = 1;

	if (ret || (vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) != (VM_SHARED | VM_MAYWRITE))
		return 0;
	if (!watched(e.inode, &dev))
		return 0;
	bpf_map_update_elem(&mapped, &key, &one, BPF_ANY);
	return tell(&e);
}

/* The last descriptor and the last mapping of an opening are gone. */
SEC("?fentry/locks_remove_file")
int BPF_PROG(locks_remove_file, struct file *file)
{
	struct content e = {
		.d = file->f_path.dentry,
		.inode = file->f_inode,
		.op = FARWRITE_OP_WRITE,
		.hook = HOOK_CLOSE,
		.length = ~0ull,
		.flags = FARWRITE_F_TO_EOF,
	};
	__u64 key = (__u64)file;

	if (e.inode->i_sb->s_magic != TMPFS_MAGIC || !bpf_map_lookup_elem(&mapped, &key))
		return 0;
	bpf_map_delete_elem(&mapped, &key);
	return tell(&e);
}

SEC("?fexit/vfs_fallocate")
int BPF_PROG(vfs_fallocate, struct file *file, int mode, long long offset, long long length, int ret)
{
	struct content e = {
		.d = file->f_path.dentry,
		.inode = file->f_inode,
		.offset = offset,
		.length = length,
		.result = ret,
		.op = FARWRITE_OP_WRITE,
		.hook = HOOK_FALLOCATE,
	};

	/* Of the errors, these come up with the work half done. */
	if (ret && ret != -EINTR && ret != -EIO && ret != -ENOMEM && ret != -ENOSPC && ret != -EDQUOT)
		return 0;
	if (mode & (FALLOC_FL_COLLAPSE | FALLOC_FL_INSERT)) {
		e.length = ~0ull;
		e.flags = FARWRITE_F_TO_EOF;
	} else if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
		e.flags = FARWRITE_F_HOLE;
	}
	return tell(&e);
}

static __always_inline int copied(struct file *file, __u64 offset, long ret, __u16 hook)
{
	struct content e = {
		.d = file->f_path.dentry,
		.inode = file->f_inode,
		.offset = offset,
		.length = ret,
		.result = ret,
		.op = FARWRITE_OP_WRITE,
		.hook = hook,
	};

	return ret > 0 ? tell(&e) : 0;
}

SEC("?fexit/vfs_clone_file_range")
int BPF_PROG(vfs_clone_file_range, struct file *in, long long pos_in, struct file *out, long long pos_out,
	     long long length, unsigned int flags, long ret)
{
	return copied(out, pos_out, ret, HOOK_CLONE);
}

SEC("?fexit/vfs_copy_file_range")
int BPF_PROG(vfs_copy_file_range, struct file *in, long long pos_in, struct file *out, long long pos_out,
	     unsigned long length, unsigned int flags, long ret)
{
	return copied(out, pos_out, ret, HOOK_COPY);
}

/* ---- attributes ----------------------------------------------------------------------------------------------- */

static __always_inline int attribute(struct dentry *d, __u32 flags, int ret, __u16 hook)
{
	struct content e = {
		.d = d,
		.inode = d->d_inode,
		.flags = flags,
		.op = FARWRITE_OP_ATTRIB,
		.hook = hook,
	};

	return ret ? 0 : tell(&e);
}

SEC("?fexit/notify_change")
int BPF_PROG(notify_change, void *idmap, struct dentry *d, struct iattr *attr, void *delegated, int ret)
{
	unsigned int valid = attr->ia_valid;

	if (ret)
		return 0;
	if (valid & ATTR_SIZE) {
		struct content e = {
			.d = d,
			.inode = d->d_inode,
			.offset = attr->ia_size,
			.length = ~0ull,	/* the size before is not known here */
			.op = FARWRITE_OP_TRUNCATE,
			.hook = HOOK_SETATTR,
		};

		tell(&e);
		if (!(valid & ~ATTR_WITH_SIZE))
			return 0;
	} else if (!(valid & ~ATTR_ATIME_ONLY)) {
		return 0;
	}
	return attribute(d, 0, 0, HOOK_SETATTR);
}

SEC("?fexit/__vfs_setxattr_noperm")
int BPF_PROG(vfs_setxattr, void *idmap, struct dentry *d, void *name, void *value, unsigned long size, int flags, int ret)
{
	return attribute(d, FARWRITE_F_XATTR, ret, HOOK_XATTR);
}

SEC("?fexit/__vfs_removexattr_locked")
int BPF_PROG(vfs_removexattr, void *idmap, struct dentry *d, void *name, void *delegated, int ret)
{
	return attribute(d, FARWRITE_F_XATTR, ret, HOOK_XATTR);
}

SEC("?fexit/vfs_set_acl")
int BPF_PROG(vfs_set_acl, void *idmap, struct dentry *d, void *name, void *acl, int ret)
{
	return attribute(d, FARWRITE_F_ACL, ret, HOOK_ACL);
}

SEC("?fexit/vfs_remove_acl")
int BPF_PROG(vfs_remove_acl, void *idmap, struct dentry *d, void *name, int ret)
{
	return attribute(d, FARWRITE_F_ACL, ret, HOOK_ACL);
}

SEC("?fexit/vfs_fileattr_set")
int BPF_PROG(vfs_fileattr_set, void *idmap, struct dentry *d, void *attr, int ret)
{
	return attribute(d, 0, ret, HOOK_FILEATTR);
}

/* ---- names ---------------------------------------------------------------------------------------------------- */

/* The name of `d` appeared or disappeared. `inode` may be NULL: the name has none any more. */
static __noinline int tell_name(struct dentry *d, struct inode *inode, __u32 what, __u32 flags)
{
	__u16 op = what & 0xff, hook = what >> 8;
	struct inode *parent = d->d_parent->d_inode;
	struct farwrite_hook_counter *n;
	struct farwrite_device *device;
	struct scratch *s;
	__s32 found;
	__u64 dev;

	device = watched(parent, &dev);
	if (!device)
		return 0;
	n = counter_of(hook);
	if (n)
		n->seen++;
	s = take_scratch(device, dev, hook);
	if (!s)
		return 0;
	fill(s, inode, op, hook);
	s->r.flags |= flags;
	s->r.parent = parent->i_ino;
	found = walk(s, d);
	if (found >= 0) {
		s->r.root = found;
		s->r.path_len = s->at;
		if (s->cut)
			s->r.flags |= FARWRITE_F_PATH_CUT;
		put(s);
	} else if (is_unknown(found)) {
		lose(device->roots, hook);
	}
	give_scratch(s);
	return 0;
}

#define WHAT(op, hook)	((hook) << 8 | (op))

/* Every filesystem calls one of these two for a new name: open, mkdir, mknod, symlink, link, bind. */
static __always_inline int instantiated(struct dentry *d, struct inode *inode)
{
	/* O_TMPFILE: linkat will come by with the name. */
	if (!inode || inode->i_nlink == 0)
		return 0;
	return tell_name(d, inode, WHAT(FARWRITE_OP_CREATE, HOOK_CREATE),
			 inode->i_state & I_LINKABLE ? FARWRITE_F_TMPFILE : 0);
}

SEC("?fexit/d_instantiate")
int BPF_PROG(d_instantiate, struct dentry *d, struct inode *inode)
{
	return instantiated(d, inode);
}

SEC("?fexit/d_instantiate_new")
int BPF_PROG(d_instantiate_new, struct dentry *d, struct inode *inode)
{
	return instantiated(d, inode);
}

SEC("?fexit/vfs_unlink")
int BPF_PROG(vfs_unlink, void *idmap, struct inode *dir, struct dentry *d, void *delegated, int ret)
{
	return ret ? 0 : tell_name(d, d->d_inode, WHAT(FARWRITE_OP_DELETE, HOOK_UNLINK), 0);
}

SEC("?fexit/vfs_rmdir")
int BPF_PROG(vfs_rmdir, void *idmap, struct inode *dir, struct dentry *d, int ret)
{
	return ret ? 0 : tell_name(d, d->d_inode, WHAT(FARWRITE_OP_DELETE, HOOK_RMDIR), FARWRITE_F_DIR);
}

/* walk_step for a dentry that is known by its address only (a number to the verifier). */
struct walk_raw {
	__u64 d;
	__u64 leaf;
	struct scratch *s;
	__u32 name_len;
};

static long walk_raw_step(__u32 i, struct walk_raw *w)
{
	struct dentry *d = (void *)w->d;
	struct scratch *s = w->s;
	__u32 moves = BPF_CORE_READ(d, d_seq.seqcount.sequence);
	struct dentry *parent = BPF_CORE_READ(d, d_parent);
	__u64 ino = BPF_CORE_READ(d, d_inode, i_ino);
	__u32 at, len;

	s->trace = traced(s->trace, w->d, moves);
	s->moving |= moves & 1;
	s->steps = i + 1;
	if (s->bits & FARWRITE_INO_BIT(ino)) {
		struct farwrite_place place = { .dev = s->dev, .ino = ino };
		struct farwrite_place_is *is = bpf_map_lookup_elem(&places, &place);

		if (is && arrived(s, is, BPF_CORE_READ(d, d_inode, i_generation)))
			return 1;
	}
	if (parent == d) {
		s->found = BPF_CORE_READ(d, d_sb, s_root) == d ? WALK_OUTSIDE : WALK_NOWHERE;
		return 1;
	}
	if (ino == BTRFS_FIRST_INO && BPF_CORE_READ(d, d_sb, s_magic) == BTRFS_SUPER_MAGIC) {
		s->found = WALK_OUTSIDE;
		return 1;
	}
	len = BPF_CORE_READ(d, d_name.len) & NAME_MAX;
	at = s->at;
	if (at + len + 1 > s->begin + FARWRITE_PATH_MAX)
		s->cut = 1;
	if (!s->cut) {
		if (at != s->begin) {
			s->path[at & (PATH_ROOM - 1)] = '/';
			at++;
		}
		if (len)
			bpf_probe_read_kernel(&s->path[at & (PATH_ROOM - 1)], len, BPF_CORE_READ(d, d_name.name));
		s->at = at + len;
	}
	w->d = (__u64)parent;
	return 0;
}

static long walk_raw_again(__u32 i, struct walk_raw *w)
{
	struct dentry *d = (void *)w->d;

	w->s->again = traced(w->s->again, w->d, BPF_CORE_READ(d, d_seq.seqcount.sequence));
	w->d = (__u64)BPF_CORE_READ(d, d_parent);
	return 0;
}

static long walk_raw_try(__u32 i, struct walk_raw *w)
{
	struct scratch *s = w->s;

	begin_walk(s, w->name_len);
	w->d = w->leaf;
	bpf_loop(FARWRITE_DEPTH_MAX, walk_raw_step, w, 0);
	barrier_of(s);
	w->d = w->leaf;
	bpf_loop(s->steps, walk_raw_again, w, 0);
	if (is_settled(s))
		return 1;
	s->found = WALK_MOVING;
	return 0;
}

/* The path, from the beginning of s->path, of what was called p->name in the directory that p->object is. */
static __noinline __s32 walk_before(struct scratch *s, struct pending *p)
{
	__u32 len = p->name_len & NAME_MAX;
	struct walk_raw w = { .leaf = p->object.address, .s = s, .name_len = len };

	s->begin = 0;
	if (len)
		bpf_probe_read_kernel(s->path, len, p->name);
	bpf_loop(TRIES, walk_raw_try, &w, 0);
	return s->found;
}

SEC("?fentry/vfs_rename")
int BPF_PROG(vfs_rename_entry, struct renamedata *rd)
{
	struct dentry *d = rd->old_dentry;
	struct farwrite_device *device;
	struct pending p = {};
	__u64 key = (__u64)rd;

	device = watched(d->d_inode, &p.object.dev);
	if (!device)
		return 0;
	p.object.address = (__u64)d->d_parent;
	p.object.ino = d->d_parent->d_inode->i_ino;
	p.over = rd->new_dentry->d_inode != NULL;
	p.name_len = d->d_name.len & NAME_MAX;
	if (p.name_len)
		bpf_probe_read_kernel(p.name, p.name_len & NAME_MAX, d->d_name.name);
	if (bpf_map_update_elem(&calls, &key, &p, BPF_ANY))
		lose(device->roots, HOOK_RENAME);
	return 0;
}

/* A name below root `root` at the beginning of s->path came or went. */
static __always_inline void put_one_side(struct scratch *s, __u16 op, __s32 root, __u32 length, __u64 parent)
{
	s->r.op = op;
	s->r.root = root;
	s->r.parent = parent;
	s->r.flags |= FARWRITE_F_MOVED;
	s->r.path_len = length;
	s->r.to_path_len = 0;
	s->r.to_parent = 0;
	put(s);
}

/*
 * Into a root, out of one, or from one into another: for each it is an arrival or a departure. An exchange leaves something
 * else at both names.
 */
static __noinline int tell_sides(struct scratch *s, struct dentry *d, struct dentry *other, struct pending *p, __u32 flags)
{
	bool exchange = flags & RENAME_EXCHANGE;
	__s32 from, to;

	from = walk_before(s, p);
	if (is_unknown(from))
		lose(s->mask, HOOK_RENAME);
	if (from >= 0) {
		s->r.flags &= ~FARWRITE_F_PATH_CUT;
		if (s->cut)
			s->r.flags |= FARWRITE_F_PATH_CUT;
		put_one_side(s, FARWRITE_OP_DELETE, from, s->at, p->object.ino);
		if (exchange || (flags & RENAME_WHITEOUT)) {
			about(&s->r, exchange ? other->d_inode : NULL);
			put_one_side(s, FARWRITE_OP_CREATE, from, s->at, p->object.ino);
			about(&s->r, d->d_inode);
		}
	}
	s->at = 0;
	to = walk(s, d);
	if (is_unknown(to))
		lose(s->mask, HOOK_RENAME);
	if (to >= 0) {
		s->r.flags &= ~FARWRITE_F_PATH_CUT;
		if (s->cut)
			s->r.flags |= FARWRITE_F_PATH_CUT;
		/* An empty path: the root itself was moved. */
		put_one_side(s, s->at == 0 ? FARWRITE_OP_DELETE : FARWRITE_OP_CREATE, to, s->at,
			     d->d_parent->d_inode->i_ino);
	}
	return 0;
}

/* `other` is what had the new name: in an exchange it has the old one now. */
static __noinline int tell_rename(struct dentry *d, struct dentry *other, struct pending *p, __u32 flags)
{
	struct farwrite_hook_counter *n = counter_of(HOOK_RENAME);
	struct inode *inode = d->d_inode;
	struct farwrite_device *device;
	__u32 length, cut;
	struct scratch *s;
	__s32 from, to;
	__u64 dev;

	device = watched(inode, &dev);
	if (!device)
		return 0;
	if (n)
		n->seen++;
	s = take_scratch(device, dev, HOOK_RENAME);
	if (!s)
		return 0;
	fill(s, inode, flags & RENAME_EXCHANGE ? FARWRITE_OP_EXCHANGE : FARWRITE_OP_RENAME, HOOK_RENAME);
	from = walk_before(s, p);
	length = s->at;
	cut = s->cut;
	to = walk(s, d);
	if (is_unknown(from) || is_unknown(to)) {
		lose(device->roots, HOOK_RENAME);
	} else if (from >= 0 && from == to && s->at > length) {
		s->r.root = from;
		s->r.parent = p->object.ino;
		s->r.to_parent = d->d_parent->d_inode->i_ino;
		s->r.path_len = length;
		s->r.to_path_len = s->at - length;
		if (p->over)
			s->r.flags |= FARWRITE_F_OVER;
		if (cut || s->cut)
			s->r.flags |= FARWRITE_F_PATH_CUT;
		put(s);
		if (flags & RENAME_WHITEOUT) {
			about(&s->r, NULL);
			put_one_side(s, FARWRITE_OP_CREATE, from, length, p->object.ino);
		}
	} else if (from >= 0 || to >= 0) {
		tell_sides(s, d, other, p, flags);
	} else if (flags & RENAME_EXCHANGE) {
		/* Both names are outside, but what had the other one may be a root: as above, an empty path. */
		s->at = 0;
		to = walk(s, other);
		if (to >= 0 && s->at == 0) {
			about(&s->r, other->d_inode);
			put_one_side(s, FARWRITE_OP_DELETE, to, 0, other->d_parent->d_inode->i_ino);
		}
	}
	give_scratch(s);
	return 0;
}

SEC("?fexit/vfs_rename")
int BPF_PROG(vfs_rename_exit, struct renamedata *rd, int ret)
{
	struct dentry *d = rd->old_dentry;
	struct farwrite_device *device;
	__u64 key = (__u64)rd, dev;
	struct pending *p = bpf_map_lookup_elem(&calls, &key);

	if (!p) {
		device = ret ? NULL : watched(d->d_inode, &dev);
		return device ? lose(device->roots, HOOK_RENAME) : 0;
	}
	if (!ret)
		tell_rename(d, rd->new_dentry, p, rd->flags);
	bpf_map_delete_elem(&calls, &key);
	return 0;
}

/* ---- unmount -------------------------------------------------------------------------------------------------- */

static long umount_step(__u32 i, __u32 *dev)
{
	struct farwrite_root *root = bpf_map_lookup_elem(&roots, &i);
	struct farwrite_device device = {};
	struct scratch *s;

	if (!root || root->state != FARWRITE_ROOT_RECORDED || root->sb_dev != *dev)
		return 0;
	root->state = FARWRITE_ROOT_GONE;
	bpf_map_delete_elem(&devices, &root->dev);
	device.roots = 1ull << (i & (FARWRITE_ROOTS_MAX - 1));
	s = take_scratch(&device, root->dev, HOOK_UMOUNT);
	if (!s)
		return 0;
	fill(s, NULL, FARWRITE_OP_GONE, HOOK_UMOUNT);
	s->r.root = i;
	put(s);
	give_scratch(s);
	return 0;
}

/* A daemon that comes later must not take a filesystem that is mounted then for the one that was recorded. */
SEC("?fentry/generic_shutdown_super")
int BPF_PROG(generic_shutdown_super, struct super_block *sb)
{
	__u32 dev = sb->s_dev;

	bpf_loop(FARWRITE_ROOTS_MAX, umount_step, &dev, 0);
	return 0;
}
