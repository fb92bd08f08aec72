/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share. One noun per file: replace.c, determine.c, call.c, hooks.c, message.c, ring.c, roots.c,
 * main.c. The layouts that user space sees are in ../uapi/farwrite.h, and nowhere else.
 */
#ifndef _FARWRITE_H
#define _FARWRITE_H

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/percpu.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include "../uapi/farwrite.h"

/* ---- hooks: the functions that are replaced or hooked (table in hooks.c) ---------------------------------------- */

/* How a call tells which super block it is about; `arg` says in which argument. */
enum farwrite_where {
	/* replaced system calls: arguments are those of user space */
	FARWRITE_BY_FD,		/* a descriptor: only regular files of watched super blocks go on */
	FARWRITE_BY_PATH,	/* a path: not known before the original has looked it up */
	FARWRITE_BY_OPEN,	/* a path, and flags that create or truncate */
	FARWRITE_BY_OPENAT2,	/* a path, flags in user memory */
	/* hooked functions: arguments are the kernel's */
	FARWRITE_BY_DENTRY,
	FARWRITE_BY_FILE,
	FARWRITE_BY_IOCB,
	FARWRITE_BY_DIO,	/* struct iomap_dio, of which the kiocb is the first member */
	FARWRITE_BY_FAULT,
	FARWRITE_BY_RENAME,
	FARWRITE_BY_SUPER,
	FARWRITE_BY_CREATED,	/* an open file that its open(2) has created */
	FARWRITE_BY_MAP,	/* a file that is mapped shared, on a filesystem without writeback */
	FARWRITE_BY_LAST_PUT,	/* the end of such a file */
};

#define FARWRITE_HOOK_LAZY	(1 << 0)	/* a filesystem's own: hooked when a root on it is watched */
#define FARWRITE_HOOK_COMPAT	(1 << 1)	/* the system call's 32-bit entry */
#define FARWRITE_HOOK_OPTIONAL	(1 << 2)	/* not in all kernels */
#define FARWRITE_HOOK_MANY	(1 << 3)	/* the system call may write in several steps */

struct farwrite_hook {
	const char *name;
	void *wrapper;
	unsigned long ip;	/* of the call to __fentry__; 0: this kernel has no such function */
	u8 where;
	u8 arg;
	u8 flags;
	bool replaces;		/* a system call */
	bool hooked;		/* now; under the control lock */
	u64 recorded;		/* under the ring's lock */
	u64 dropped;		/* likewise */
};

/* The hooked functions; replaced system calls follow from FARWRITE_CALLS on. */
enum farwrite_hook_index {
	FARWRITE_HOOK_EXT4,
	FARWRITE_HOOK_XFS,
	FARWRITE_HOOK_BTRFS,
	FARWRITE_HOOK_F2FS,
	FARWRITE_HOOK_SHMEM,
	FARWRITE_HOOK_GENERIC,
	FARWRITE_HOOK_DIO_DONE,
	FARWRITE_HOOK_FAULT,
	FARWRITE_HOOK_MAP,
	FARWRITE_HOOK_LAST_PUT,
	FARWRITE_HOOK_FALLOCATE,
	FARWRITE_HOOK_COPY,
	FARWRITE_HOOK_CLONE,
	FARWRITE_HOOK_ATTR,
	FARWRITE_HOOK_SETXATTR,
	FARWRITE_HOOK_REMOVEXATTR,
	FARWRITE_HOOK_ACL,
	FARWRITE_HOOK_SET_ACL,
	FARWRITE_HOOK_REMOVE_ACL,
	FARWRITE_HOOK_FILEATTR,
	FARWRITE_HOOK_OPENED,
	FARWRITE_HOOK_CREATE,
	FARWRITE_HOOK_MKDIR,
	FARWRITE_HOOK_MKNOD,
	FARWRITE_HOOK_SYMLINK,
	FARWRITE_HOOK_LINK,
	FARWRITE_HOOK_UNLINK,
	FARWRITE_HOOK_RMDIR,
	FARWRITE_HOOK_RENAME,
	FARWRITE_HOOK_UMOUNT,
	FARWRITE_CALLS,
};

extern struct farwrite_hook farwrite_hooks[];
extern const unsigned int farwrite_hook_count;
#define FARWRITE_HOOKS_MAX	192
DECLARE_PER_CPU(u64[FARWRITE_HOOKS_MAX], farwrite_seen);

/* The index of the write_iter of this super block's files, or -EOPNOTSUPP. */
int farwrite_write_hook(struct super_block *sb);

/* ---- replacement unit (replace.c) -------------------------------------------------------------------------------- */

int farwrite_replace_init(void);
void farwrite_replace_exit(void);
int farwrite_replace_on(void);
void farwrite_replace_off(void);
bool farwrite_replace_is_on(void);
u64 farwrite_replace_epoch(void);
void farwrite_replace_count(u32 *replaced, u32 *hooked);
/* Hooks a lazy one, now if it is on. */
int farwrite_replace_add(unsigned int index);
struct module;
void farwrite_replace_module_gone(const struct module *module);

/* Redirected calls under way on all CPUs; the entry counts up, the wrapper down as its last deed. */
DECLARE_PER_CPU(long, farwrite_in_flight);
static __always_inline void farwrite_leave(void)
{
	this_cpu_dec(farwrite_in_flight);
}

/* Calls the function whose __fentry__ call ends at `past`, as if it had been called at its start. See thunk.S. */
unsigned long farwrite_original(unsigned long a, unsigned long b, unsigned long c, unsigned long d, unsigned long e,
				unsigned long f, unsigned long past);

/* ---- call-determining unit (determine.c) ------------------------------------------------------------------------- */

/* Is this one of the predetermined calls, on a watched tree's super block? */
bool farwrite_determine(const struct farwrite_hook *hook, const struct pt_regs *regs);
bool farwrite_mapped_add(struct file *file);
bool farwrite_mapped(struct file *file);
void farwrite_mapped_remove(struct file *file);

/* ---- the call under way (call.c) --------------------------------------------------------------------------------- */

/* Lives on the stack of the wrapper of a replaced system call. */
struct farwrite_call {
	struct task_struct **slot;
	u16 number;
	bool compat;
	bool many;		/* writes are put together until it returns */
	/* the write that the call has made so far, if `file` */
	u16 hook;
	u32 flags;
	struct file *file;
	u64 start;
	u64 end;
};

void farwrite_call_open(struct farwrite_call *call, u16 number, u8 flags);
void farwrite_call_close(struct farwrite_call *call, s64 result);
struct farwrite_call *farwrite_call_find(void);
unsigned long farwrite_call_wrapper(const struct pt_regs *regs, unsigned long index);

/* ---- message-processing unit (message.c) ------------------------------------------------------------------------- */

/* A name: of the dentry itself, or `leaf` in the directory `at`. */
struct farwrite_name {
	struct dentry *at;
	const struct qstr *leaf;
};

/* What a hook knows; message.c makes the record of it, or none if it is not about a watched tree. */
struct farwrite_event {
	u16 hook;
	u16 op;
	u32 flags;
	u64 offset;
	u64 length;
	s64 result;
	u64 ino;
	u32 generation;
	bool many;		/* may have names elsewhere: more than one link */
	bool gone;		/* has no name left */
	struct super_block *sb;
	struct farwrite_name name;
	struct farwrite_name to;
	struct farwrite_call *call;
};

void farwrite_event_of(struct farwrite_event *event, unsigned int hook, u16 op, struct inode *inode);
void farwrite_message(struct farwrite_event *event);
void farwrite_message_rename(struct farwrite_event *event, bool exchange, const struct farwrite_event *other);
/* `start .. end` of the file was written: into the call under way, or at once. */
void farwrite_wrote(unsigned int hook, struct file *file, u64 start, u64 end, u32 flags, s64 result);
void farwrite_write_message(struct farwrite_call *call, unsigned int hook, struct file *file, u64 start, u64 end, u32 flags,
			    s64 result);

/* ---- ring (ring.c) ----------------------------------------------------------------------------------------------- */

int farwrite_ring_init(unsigned long bytes);
void farwrite_ring_exit(void);
/* Room for a record of `size` bytes: interrupts are off until commit or cancel. NULL: no room, counted as lost. */
struct farwrite_record *farwrite_ring_reserve(u32 size, u64 roots, struct farwrite_hook *hook, unsigned long *irq);
void farwrite_ring_commit(struct farwrite_hook *hook, unsigned long irq);
void farwrite_ring_cancel(unsigned long irq);
/* Records that could not even be made. */
void farwrite_ring_lose(u64 roots, struct farwrite_hook *hook);
/* Fits into what is kept free for such: makes a record without path (OP_GONE). */
void farwrite_ring_gone(u16 root, u32 dev);
int farwrite_ring_release(u64 position);
int farwrite_ring_seen(u64 position);
void farwrite_ring_attach(void);
void farwrite_ring_info(struct farwrite_info *info);
u64 farwrite_ring_head(void);
u64 farwrite_ring_tail(void);
struct vm_area_struct;
struct poll_table_struct;
int farwrite_ring_mmap(struct vm_area_struct *vma);
__poll_t farwrite_ring_poll(struct file *file, struct poll_table_struct *table);

/* ---- roots (roots.c) --------------------------------------------------------------------------------------------- */

/* `sb` is written last and erased first: who finds it finds the rest. The inode is pinned as fsnotify does it: an unmount goes on. */
struct farwrite_root {
	struct super_block *sb;
	struct inode *inode;
	u64 free_at;		/* the ring's head when the number became free: not given again before it is released */
};

extern struct farwrite_root farwrite_roots[FARWRITE_ROOTS_MAX];
extern unsigned int farwrite_roots_high;	/* numbers below this were ever used */
extern bool farwrite_roots_nested;

int farwrite_roots_watch(struct farwrite_watch *watch, struct file *directory);
int farwrite_roots_unwatch(unsigned int root);
void farwrite_roots_unmounted(struct super_block *sb);
void farwrite_roots_forget(void);
unsigned int farwrite_roots_count(void);

static __always_inline bool farwrite_watched(const struct super_block *sb)
{
	unsigned int i, high = READ_ONCE(farwrite_roots_high);

	for (i = 0; i < high; i++)
		if (READ_ONCE(farwrite_roots[i].sb) == sb)
			return true;
	return false;
}

#endif /* _FARWRITE_H */
