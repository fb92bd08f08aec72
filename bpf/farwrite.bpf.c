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
#include "message.h"

char LICENSE[] SEC("license") = "GPL";

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
