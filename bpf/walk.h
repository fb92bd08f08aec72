/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From a dentry up to the root that it is below, and the path on the way. A walk takes no lock: a directory that is moved
 * meanwhile shows in the dentries' counts, and the walk is done again.
 */
#ifndef FARWRITE_EBPF_WALK_H
#define FARWRITE_EBPF_WALK_H

#include "state.h"

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

#endif
