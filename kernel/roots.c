// SPDX-License-Identifier: GPL-2.0-only
/*
 * The watched roots: directories below which changes make records.
 *
 * A root pins its directory's inode, as a mark of fsnotify does, so that the pointer tells it for certain; it pins neither mount
 * nor dentry. When its filesystem is unmounted, the hook of generic_shutdown_super lets go of it first. That is why there are
 * roots only while the hooks are in place. Readers (hooks, in any context) take no lock.
 */
#include "farwrite.h"

#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

struct farwrite_root farwrite_roots[FARWRITE_ROOTS_MAX] __read_mostly;
unsigned int farwrite_roots_high __read_mostly;
bool farwrite_roots_nested __read_mostly;

/* Writers: the control lock for watch and unwatch, and this against an unmount. */
static DEFINE_SPINLOCK(roots_lock);

/* Does `dentry` lie below another root, or another root below it? Errs towards yes: that costs a longer walk at most. */
static bool nested(struct dentry *dentry, const struct super_block *sb)
{
	unsigned int i;

	for (i = 0; i < farwrite_roots_high; i++)
		if (farwrite_roots[i].sb == sb && farwrite_roots[i].inode != d_inode(dentry))
			return true;
	return false;
}

static int free_number(void)
{
	u64 tail = farwrite_ring_tail();
	unsigned int i;

	for (i = 0; i < FARWRITE_ROOTS_MAX; i++)
		if (!farwrite_roots[i].inode && farwrite_roots[i].free_at <= tail)
			return i;
	return -ENOSPC;
}

static int known(const struct inode *inode)
{
	unsigned int i;

	for (i = 0; i < farwrite_roots_high; i++)
		if (farwrite_roots[i].sb && farwrite_roots[i].inode == inode)
			return i;
	return -ENOENT;
}

int farwrite_roots_watch(struct farwrite_watch *watch, struct file *directory)
{
	struct dentry *dentry = directory->f_path.dentry;
	struct inode *inode = file_inode(directory);
	struct super_block *sb = inode->i_sb;
	int number, hook;

	if (!S_ISDIR(inode->i_mode))
		return -ENOTDIR;
	watch->fresh = 0;
	watch->dev = sb->s_dev;
	watch->ino = inode->i_ino;
	number = known(inode);
	if (number >= 0) {
		watch->root = number;
		return 0;
	}
	number = free_number();
	if (number < 0)
		return number;
	hook = farwrite_write_hook(sb);
	if (hook >= 0)
		hook = farwrite_replace_add(hook);
	if (hook < 0)
		return hook == -ENOENT ? -EOPNOTSUPP : hook;
	if (!igrab(inode))
		return -ENOENT;
	if (nested(dentry, sb))
		WRITE_ONCE(farwrite_roots_nested, true);

	/* Nobody may still be looking at the one that had the number before. */
	synchronize_rcu();
	spin_lock(&roots_lock);
	farwrite_roots[number].inode = inode;
	smp_store_release(&farwrite_roots[number].sb, sb);
	if (number >= farwrite_roots_high)
		smp_store_release(&farwrite_roots_high, number + 1);
	spin_unlock(&roots_lock);
	watch->root = number;
	watch->fresh = 1;
	return 0;
}

/* Takes the root out; the inode is the caller's to put. */
static struct inode *take(unsigned int number, const struct super_block *only)
{
	struct farwrite_root *root = &farwrite_roots[number];
	struct inode *inode = NULL;

	spin_lock(&roots_lock);
	if (root->sb && (!only || root->sb == only)) {
		inode = root->inode;
		WRITE_ONCE(root->sb, NULL);
		root->inode = NULL;
		root->free_at = farwrite_ring_head();
	}
	spin_unlock(&roots_lock);
	return inode;
}

int farwrite_roots_unwatch(unsigned int root)
{
	struct inode *inode = root < FARWRITE_ROOTS_MAX ? take(root, NULL) : NULL;

	if (!inode)
		return -ENODEV;
	synchronize_rcu();
	iput(inode);
	return 0;
}

void farwrite_roots_unmounted(struct super_block *sb)
{
	struct inode *inode;
	unsigned int i;

	for (i = 0; i < READ_ONCE(farwrite_roots_high); i++) {
		inode = take(i, sb);
		if (!inode)
			continue;
		farwrite_ring_gone(i, sb->s_dev);
		synchronize_rcu();
		iput(inode);
	}
}

void farwrite_roots_forget(void)
{
	unsigned int i;

	for (i = 0; i < FARWRITE_ROOTS_MAX; i++)
		farwrite_roots_unwatch(i);
	WRITE_ONCE(farwrite_roots_high, 0);
	WRITE_ONCE(farwrite_roots_nested, false);
}

unsigned int farwrite_roots_count(void)
{
	unsigned int i, n = 0;

	for (i = 0; i < farwrite_roots_high; i++)
		n += READ_ONCE(farwrite_roots[i].sb) != NULL;
	return n;
}
