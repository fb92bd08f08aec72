// SPDX-License-Identifier: GPL-2.0-only
/*
 * The message-processing unit: makes the file modification message of what a hook has seen, if it is below a watched root.
 *
 * Where a file is, is found by walking its dentry's parents under RCU, validated by the rename lock's sequence; never by taking
 * that lock: some callers are in interrupts. A walk that cannot be validated gives a message by identity, not none.
 */
#include "farwrite.h"

#include <linux/file.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/seqlock.h>
#include <linux/timekeeping.h>

/* Walks tried again because something was renamed meanwhile. */
#define TRIES_TASK	1000
#define TRIES_IRQ	4
/* Any root will do. */
#define ANY_ROOT	(-1)

/* What a walk has found. */
struct place {
	int root;		/* or below none */
	u32 len;		/* of the path from there */
	u64 parent;		/* inode number of the directory that has the name */
	u64 dev;
	bool cut;
	bool loose;		/* ended at a dentry that is connected to no tree */
};

static __always_inline int root_of(const struct inode *inode, int want)
{
	unsigned int i, high = READ_ONCE(farwrite_roots_high);

	if (want != ANY_ROOT)
		return READ_ONCE(farwrite_roots[want].inode) == inode && READ_ONCE(farwrite_roots[want].sb) ? want : -ENOENT;
	for (i = 0; i < high; i++)
		/* The order of reads: who finds the super block finds its inode, see roots.c. */
		if (READ_ONCE(farwrite_roots[i].inode) == inode && READ_ONCE(farwrite_roots[i].sb))
			return i;
	return -ENOENT;
}

/* Adds a name to the length, unless it would no more fit. */
static __always_inline void lengthen(struct place *place, u32 name)
{
	u32 len = place->len + name + (place->len != 0);

	if (unlikely(len > FARWRITE_PATH_MAX || place->cut))
		place->cut = true;
	else
		place->len = len;
}

/* Under RCU. Finds the root that `name` is below, the length of the path from there, and the directory's inode. */
static void locate(const struct farwrite_name *name, int want, struct place *place)
{
	const struct dentry *dentry = name->at, *parent;
	const struct inode *inode;
	unsigned int depth;

	*place = (struct place) { .root = -ENOENT };
	if (name->leaf) {
		lengthen(place, name->leaf->len);
		inode = READ_ONCE(dentry->d_inode);
		place->parent = inode ? inode->i_ino : 0;
	}
	for (depth = 0; depth < FARWRITE_DEPTH_MAX; depth++) {
		inode = READ_ONCE(dentry->d_inode);
		place->root = inode ? root_of(inode, want) : -ENOENT;
		if (place->root >= 0)
			return;
		parent = READ_ONCE(dentry->d_parent);
		if (parent == dentry) {
			place->loose = dentry != dentry->d_sb->s_root;
			return;
		}
		lengthen(place, READ_ONCE(dentry->d_name.len));
		if (!depth && !name->leaf) {
			inode = READ_ONCE(parent->d_inode);
			place->parent = inode ? inode->i_ino : 0;
		}
		dentry = parent;
	}
	/* Deeper than we look: it may be below a root. */
	place->loose = true;
}

/* Puts a name and a separator in front of `*at`; false if that is not where the walk before was. */
static __always_inline bool put_name(char *start, char **at, char *end, const char *text, u32 len, unsigned int seq)
{
	/* Checked before the copy: text and length then belong together, and RCU keeps both readable. */
	if (read_seqretry(&rename_lock, seq) || *at - start < len + (*at != end))
		return false;
	if (*at != end)
		*--*at = '/';
	*at -= len;
	memcpy(*at, text, len);
	return true;
}

/* Under RCU. Writes the path that `locate` has measured; false if it is another one by now. */
static bool put_path(char *start, const struct farwrite_name *name, const struct place *place, unsigned int seq)
{
	const struct inode *root = READ_ONCE(farwrite_roots[place->root].inode);
	char *end = start + place->len, *at = end;
	const struct dentry *dentry = name->at;

	if (name->leaf && !put_name(start, &at, end, name->leaf->name, name->leaf->len, seq))
		return false;
	while (at != start) {
		if (READ_ONCE(dentry->d_inode) == root || IS_ROOT(dentry))
			return false;
		if (!put_name(start, &at, end, READ_ONCE(dentry->d_name.name), READ_ONCE(dentry->d_name.len), seq))
			return false;
		dentry = READ_ONCE(dentry->d_parent);
	}
	return !read_seqretry(&rename_lock, seq);
}

static u32 record_size(u32 path_len, u32 to_path_len)
{
	return ALIGN(sizeof(struct farwrite_record) + path_len + to_path_len, 8);
}

static void fill(struct farwrite_record *record, const struct farwrite_event *event, u32 size)
{
	const struct task_struct *task = in_task() ? current : NULL;

	/* The padding behind the paths; they come over it where there is none. */
	*(u64 *)((u8 *)record + size - 8) = 0;
	record->size = size;
	record->version = FARWRITE_ABI;
	record->op = event->op;
	record->time = ktime_get_real_fast_ns();
	record->ino = event->ino;
	record->parent = 0;
	record->to_parent = 0;
	record->offset = event->offset;
	record->length = event->length;
	record->result = event->result;
	record->dev = event->sb->s_dev;
	record->generation = event->generation;
	record->flags = event->flags | (event->call && event->call->compat ? FARWRITE_F_COMPAT : 0);
	record->pid = task && !(task->flags & PF_KTHREAD) ? task->tgid : 0;
	record->tid = task ? task->pid : 0;
	record->root = FARWRITE_ROOT_NONE;
	record->call = event->call ? event->call->number : FARWRITE_CALL_NONE;
	record->hook = event->hook;
	record->path_len = 0;
	record->to_path_len = 0;
	memset(record->reserved, 0, sizeof(record->reserved));
}

/* All roots on the super block. */
static u64 roots_on(const struct super_block *sb)
{
	u64 mask = 0;
	unsigned int i;

	for (i = 0; i < READ_ONCE(farwrite_roots_high); i++)
		if (READ_ONCE(farwrite_roots[i].sb) == sb)
			mask |= BIT_ULL(i);
	return mask;
}

/* By device and inode number alone. */
static void put_identity(const struct farwrite_event *event)
{
	struct farwrite_hook *hook = &farwrite_hooks[event->hook];
	u32 size = record_size(0, 0);
	struct farwrite_record *record;
	unsigned long irq;

	record = farwrite_ring_reserve(size, roots_on(event->sb), hook, &irq);
	if (!record)
		return;
	fill(record, event, size);
	record->flags |= FARWRITE_F_IDENTITY;
	farwrite_ring_commit(hook, irq);
}

/* Makes the record; false if something was renamed meanwhile. `to` may be NULL. */
static bool put(const struct farwrite_event *event, const struct farwrite_name *name, const struct place *place,
		const struct farwrite_name *to_name, const struct place *to, unsigned int seq)
{
	u32 size = record_size(place->len, to ? to->len : 0);
	struct farwrite_hook *hook = &farwrite_hooks[event->hook];
	struct farwrite_record *record;
	unsigned long irq;
	char *text;

	record = farwrite_ring_reserve(size, BIT_ULL(place->root), hook, &irq);
	if (!record)
		return true;
	fill(record, event, size);
	record->root = place->root;
	record->parent = place->parent;
	record->path_len = place->len;
	if (place->cut || (to && to->cut))
		record->flags |= FARWRITE_F_PATH_CUT;
	text = (char *)(record + 1);
	if (!put_path(text, name, place, seq))
		goto changed;
	if (to) {
		record->to_parent = to->parent;
		record->to_path_len = to->len;
		if (!put_path(text + place->len, to_name, to, seq))
			goto changed;
	}
	farwrite_ring_commit(hook, irq);
	return true;
changed:
	farwrite_ring_cancel(irq);
	return false;
}

/* The sequence to validate a walk with; false if a rename is going on, which an interrupt must not wait for. */
static __always_inline bool begin(unsigned int *seq)
{
	*seq = raw_read_seqcount(&rename_lock.seqcount);
	return !(*seq & 1);
}

static unsigned int tries(void)
{
	return in_task() ? TRIES_TASK : TRIES_IRQ;
}

enum found { FOUND, NOT_BELOW, LOOSE, CHANGED };

static enum found try_one(const struct farwrite_event *event, int want)
{
	struct place place;
	unsigned int seq;

	if (!begin(&seq))
		return CHANGED;
	locate(&event->name, want, &place);
	if (place.root < 0) {
		if (read_seqretry(&rename_lock, seq))
			return CHANGED;
		return place.loose ? LOOSE : NOT_BELOW;
	}
	return put(event, &event->name, &place, NULL, NULL, seq) ? FOUND : CHANGED;
}

static enum found one(const struct farwrite_event *event, int want)
{
	unsigned int left = tries();
	enum found found;

	/* As good as rcu_read_lock(), and no call. */
	preempt_disable_notrace();
	do {
		found = try_one(event, want);
		if (found != CHANGED)
			break;
		cpu_relax();
	} while (--left);
	preempt_enable_notrace();
	return found;
}

/* Where roots lie below roots, each that has it below gets a record. */
static enum found each(const struct farwrite_event *event)
{
	unsigned int i, high = READ_ONCE(farwrite_roots_high);
	enum found all = NOT_BELOW;

	for (i = 0; i < high; i++) {
		enum found found;

		if (READ_ONCE(farwrite_roots[i].sb) != event->sb)
			continue;
		found = one(event, i);
		if (all != FOUND && found != NOT_BELOW)
			all = found;
	}
	return all;
}

void farwrite_message(struct farwrite_event *event)
{
	enum found found;

	if (event->gone)
		return;
	/* The name of an open file whose name was removed leads nowhere; it may have another. */
	if (unlikely(!event->name.leaf && d_unhashed(event->name.at) && !IS_ROOT(event->name.at) && event->op != FARWRITE_OP_DELETE)) {
		put_identity(event);
		return;
	}
	found = likely(!READ_ONCE(farwrite_roots_nested)) ? one(event, ANY_ROOT) : each(event);
	if (found == FOUND)
		return;
	if (found == CHANGED || found == LOOSE || event->many)
		put_identity(event);
}

static __always_inline void event_of(struct farwrite_event *event, unsigned int hook, u16 op, struct inode *inode,
				     struct farwrite_call *call)
{
	*event = (struct farwrite_event) {
		.hook = hook,
		.op = op,
		.call = call,
	};
	if (!inode)
		return;
	event->sb = inode->i_sb;
	event->ino = inode->i_ino;
	event->generation = inode->i_generation;
	if (S_ISDIR(inode->i_mode)) {
		event->flags = FARWRITE_F_DIR;
	} else {
		event->many = inode->i_nlink > 1;
		event->gone = !inode->i_nlink;
	}
}

void farwrite_event_of(struct farwrite_event *event, unsigned int hook, u16 op, struct inode *inode)
{
	event_of(event, hook, op, inode, farwrite_call_find());
}

void farwrite_write_message(struct farwrite_call *call, unsigned int hook, struct file *file, u64 start, u64 end, u32 flags,
			    s64 result)
{
	struct farwrite_event event;

	event_of(&event, hook, FARWRITE_OP_WRITE, file_inode(file), call);
	event.flags |= flags;
	event.offset = start;
	event.length = flags & FARWRITE_F_TO_EOF ? ~0ULL : end - start;
	event.result = result;
	event.name.at = file->f_path.dentry;
	farwrite_message(&event);
}

void farwrite_wrote(unsigned int hook, struct file *file, u64 start, u64 end, u32 flags, s64 result)
{
	struct farwrite_call *call = farwrite_call_find();

	if (!call || !call->many) {
		farwrite_write_message(call, hook, file, start, end, flags, result);
		return;
	}
	if (call->file && file_inode(call->file) != file_inode(file)) {
		farwrite_write_message(call, call->hook, call->file, call->start, call->end, call->flags, 0);
		fput(call->file);
		call->file = NULL;
	}
	if (!call->file) {
		/* The descriptor may be closed, and the filesystem unmounted, before the call returns to its wrapper. */
		call->file = get_file(file);
		call->hook = hook;
		call->start = start;
		call->end = end;
		call->flags = flags;
		return;
	}
	call->start = min(call->start, start);
	call->end = max(call->end, end);
	/* A hole only if all of it is one. */
	call->flags = ((call->flags | flags) & ~FARWRITE_F_HOLE) | (call->flags & flags & FARWRITE_F_HOLE);
}

/* ---- renames ------------------------------------------------------------------------------------------------------- */

static bool try_rename(const struct farwrite_event *event, int root, bool *from_inside, bool *to_inside)
{
	struct place from, to;
	unsigned int seq;

	if (!begin(&seq))
		return false;
	locate(&event->name, root, &from);
	locate(&event->to, root, &to);
	*from_inside = from.root >= 0;
	*to_inside = to.root >= 0;
	if (*from_inside && *to_inside)
		return put(event, &event->name, &from, &event->to, &to, seq);
	return !read_seqretry(&rename_lock, seq);
}

/* One side is outside: what was there is gone, or what came is new. */
static void across(const struct farwrite_event *event, const struct farwrite_name *name, u16 op, int root)
{
	struct farwrite_event part = *event;

	part.op = op;
	part.flags = (part.flags & ~(FARWRITE_F_OVER)) | FARWRITE_F_MOVED;
	part.name = *name;
	if (one(&part, root) == CHANGED)
		farwrite_ring_lose(BIT_ULL(root), &farwrite_hooks[event->hook]);
}

void farwrite_message_rename(struct farwrite_event *event, bool exchange, const struct farwrite_event *other)
{
	unsigned int i, left;
	bool from, to, done;

	for (i = 0; i < READ_ONCE(farwrite_roots_high); i++) {
		if (READ_ONCE(farwrite_roots[i].sb) != event->sb)
			continue;
		rcu_read_lock();
		for (left = TRIES_TASK, done = false; left && !done; left--)
			done = try_rename(event, i, &from, &to);
		rcu_read_unlock();
		if (!done) {
			farwrite_ring_lose(BIT_ULL(i), &farwrite_hooks[event->hook]);
		} else if (from && !to) {
			across(event, &event->name, FARWRITE_OP_DELETE, i);
			if (exchange)
				across(other, &event->name, FARWRITE_OP_CREATE, i);
		} else if (to && !from) {
			if (exchange)
				across(other, &event->to, FARWRITE_OP_DELETE, i);
			across(event, &event->to, FARWRITE_OP_CREATE, i);
		}
	}
}
