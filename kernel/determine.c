// SPDX-License-Identifier: GPL-2.0-only
/*
 * The call-determining unit: is a call that came by one of the predetermined ones, and about a watched super block? If not, it
 * goes straight on to the original, and nothing of ours is on its way. Runs in ftrace's entry: calls nothing, takes no lock.
 *
 * Whether the file is below a watched root is seen later, once it is known (message.c).
 */
#include "farwrite.h"

#include <linux/fcntl.h>
#include <linux/fdtable.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched.h>

/* ---- files mapped shared where no writeback tells of stores (tmpfs) ------------------------------------------------ */

/* What they hold when the last mapping is gone is reported then. If more are mapped at once, every writer's end is. */
#define MAPPED_MAX	256
static struct file *mapped[MAPPED_MAX];
static bool mapped_overflow;

bool farwrite_mapped(struct file *file)
{
	unsigned int i, first = hash_ptr(file, 8) & ~7u;

	for (i = first; i < first + 8; i++)
		if (READ_ONCE(mapped[i]) == file)
			return true;
	return READ_ONCE(mapped_overflow);
}

bool farwrite_mapped_add(struct file *file)
{
	unsigned int i, first = hash_ptr(file, 8) & ~7u;

	for (i = first; i < first + 8; i++)
		if (READ_ONCE(mapped[i]) == file || !cmpxchg(&mapped[i], NULL, file))
			return true;
	WRITE_ONCE(mapped_overflow, true);
	return false;
}

void farwrite_mapped_remove(struct file *file)
{
	unsigned int i, first = hash_ptr(file, 8) & ~7u;

	for (i = first; i < first + 8; i++)
		if (READ_ONCE(mapped[i]) == file)
			WRITE_ONCE(mapped[i], NULL);
}

/* ---- system calls -------------------------------------------------------------------------------------------------- */

/* An argument as user space gave it. */
static __always_inline unsigned long user_argument(const struct farwrite_hook *hook, const struct pt_regs *regs)
{
	if (hook->flags & FARWRITE_HOOK_COMPAT) {
		switch (hook->arg) {
		case 0: return (u32)regs->bx;
		case 1: return (u32)regs->cx;
		default: return (u32)regs->dx;
		}
	}
	switch (hook->arg) {
	case 0: return regs->di;
	case 1: return regs->si;
	default: return regs->dx;
	}
}

/* The file may be closed, and its memory given to another one, while we look: then the answer is about one of the two. */
static __always_inline bool fd_watched(unsigned int fd)
{
	bool watched = false;
	struct inode *inode;
	struct file *file;

	/* As good as rcu_read_lock(), and no call. */
	preempt_disable_notrace();
	file = files_lookup_fd_raw(current->files, fd);
	inode = file ? READ_ONCE(file->f_inode) : NULL;
	/* Of pipes and the like a write may wait for ever; fchmod and its kin also work on directories. */
	if (inode && (S_ISREG(inode->i_mode) || S_ISDIR(inode->i_mode)))
		watched = farwrite_watched(inode->i_sb);
	preempt_enable_notrace();
	return watched;
}

static __always_inline bool any_root(void)
{
	return READ_ONCE(farwrite_roots_high) != 0;
}

/* ---- functions below ------------------------------------------------------------------------------------------------ */

static __always_inline unsigned long argument(const struct farwrite_hook *hook, const struct pt_regs *regs)
{
	switch (hook->arg) {
	case 0: return regs->di;
	case 1: return regs->si;
	case 2: return regs->dx;
	case 3: return regs->cx;
	default: return regs->r8;
	}
}

static __always_inline bool file_watched(const struct file *file)
{
	return farwrite_watched(file->f_inode->i_sb);
}

static bool map_determined(const struct pt_regs *regs)
{
	const struct file *file = (const struct file *)regs->di;
	unsigned long type = regs->dx & MAP_TYPE;

	return file && (file->f_mode & FMODE_WRITE) && (type == MAP_SHARED || type == MAP_SHARED_VALIDATE) &&
	       file->f_inode->i_sb->s_magic == TMPFS_MAGIC && file_watched(file);
}

static bool last_put_determined(struct file *file)
{
	return (file->f_mode & FMODE_WRITE) && file->f_inode && file->f_inode->i_sb->s_magic == TMPFS_MAGIC &&
	       file_watched(file) && farwrite_mapped(file);
}

static bool fault_determined(const struct vm_fault *fault)
{
	const struct file *file = fault->vma->vm_file;

	return file && file_watched(file);
}

bool notrace farwrite_determine(const struct farwrite_hook *hook, const struct pt_regs *regs)
{
	/* The two that every write passes. */
	if (hook->where == FARWRITE_BY_FD)
		return fd_watched(user_argument(hook, (const struct pt_regs *)regs->di));
	if (hook->where == FARWRITE_BY_IOCB)
		return file_watched(((const struct kiocb *)regs->di)->ki_filp);
	switch ((enum farwrite_where)hook->where) {
	case FARWRITE_BY_FD:
	case FARWRITE_BY_IOCB:
		break;
	case FARWRITE_BY_OPEN:
		return (user_argument(hook, (const struct pt_regs *)regs->di) & (O_CREAT | O_TRUNC)) && any_root();
	case FARWRITE_BY_PATH:
	case FARWRITE_BY_OPENAT2:
		return any_root();
	case FARWRITE_BY_DENTRY:
		return farwrite_watched(((const struct dentry *)argument(hook, regs))->d_sb);
	case FARWRITE_BY_FILE:
		return file_watched((const struct file *)argument(hook, regs));
	case FARWRITE_BY_DIO: {
		const struct kiocb *iocb = *(const struct kiocb **)regs->di;

		return (iocb->ki_flags & IOCB_WRITE) && file_watched(iocb->ki_filp);
	}
	case FARWRITE_BY_FAULT:
		return fault_determined((const struct vm_fault *)regs->di);
	case FARWRITE_BY_RENAME:
		return farwrite_watched(((const struct renamedata *)regs->di)->old_dentry->d_sb);
	case FARWRITE_BY_SUPER:
		return farwrite_watched((const struct super_block *)regs->di);
	case FARWRITE_BY_CREATED: {
		const struct file *file = (const struct file *)regs->di;

		return (file->f_mode & FMODE_CREATED) && farwrite_watched(file->f_path.dentry->d_sb);
	}
	case FARWRITE_BY_MAP:
		return map_determined(regs);
	case FARWRITE_BY_LAST_PUT:
		return last_put_determined((struct file *)regs->di);
	}
	return false;
}
