/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The file modification message: one record of uapi/farwrite.h, put together and put into the ring. What has no room is counted as
 * a loss of its root.
 */
#ifndef FARWRITE_EBPF_MESSAGE_H
#define FARWRITE_EBPF_MESSAGE_H

#include "walk.h"

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

#endif
