// SPDX-License-Identifier: GPL-2.0-only
/*
 * The hooks: which system calls are predetermined, which functions of the VFS below are hooked so that what passes by the system
 * calls (io_uring, mappings, splice, writers in the kernel) is seen too, and what each tells of itself.
 *
 * A wrapper stands in the place of a function that takes up to six arguments in registers; which types they have differs between
 * kernels, so they are passed on as they came. It calls the original, once, and then says what has happened: never before.
 */
#include "farwrite.h"

#include <linux/backing-dev.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/posix_acl_xattr.h>
#include <linux/uio.h>

#define ARGUMENTS	unsigned long a, unsigned long b, unsigned long c, unsigned long d, unsigned long e, unsigned long f
#define PASSED		a, b, c, d, e, f
/* `ip` is read once and first, see replace.c. */
#define ORIGINAL(hook)	farwrite_original(PASSED, farwrite_hooks[hook].ip + MCOUNT_INSN_SIZE)

/* Errors with which a call has certainly changed nothing. */
static bool changed_nothing(long error)
{
	switch (error) {
	case -EPERM: case -EACCES: case -EBADF: case -EINVAL: case -EFBIG: case -EROFS: case -EXDEV: case -EOPNOTSUPP: case -EISDIR:
	case -ETXTBSY: case -EAGAIN: case -ESPIPE: case -ENODEV: case -EOVERFLOW: case -ENOSYS: case -EEXIST: case -ENOENT:
		return true;
	default:
		return false;
	}
}

/* ---- content --------------------------------------------------------------------------------------------------------- */

static __always_inline unsigned long write_iter(unsigned int hook, ARGUMENTS)
{
	unsigned long past = farwrite_hooks[hook].ip + MCOUNT_INSN_SIZE;
	struct kiocb *iocb = (struct kiocb *)a;
	struct file *file = iocb->ki_filp;
	size_t count = iov_iter_count((struct iov_iter *)b);
	bool direct = iocb->ki_flags & IOCB_DIRECT;
	loff_t pos = iocb->ki_flags & IOCB_APPEND ? i_size_read(file_inode(file)) : iocb->ki_pos;
	struct farwrite_call *call, own;
	bool alone = false;
	long result;

	/* A direct write also comes by at its completion: one record of both. */
	if (unlikely(direct)) {
		call = farwrite_call_find();
		if (call) {
			call->many = true;
		} else {
			alone = true;
			farwrite_call_open(&own, FARWRITE_CALL_NONE, FARWRITE_HOOK_MANY);
		}
	}
	result = farwrite_original(PASSED, past);
	/* Queued: told of at the completion, and the request may be gone already. */
	if (likely(result > 0))
		farwrite_wrote(hook, file, iocb->ki_pos - result, iocb->ki_pos, 0, result);
	else if (result < 0 && result != -EIOCBQUEUED && iocb->ki_pos > pos)
		farwrite_wrote(hook, file, pos, iocb->ki_pos, 0, result);	/* written, but not synced */
	else if (result < 0 && result != -EIOCBQUEUED && direct && !changed_nothing(result))
		farwrite_wrote(hook, file, pos, pos + count, 0, result);
	if (unlikely(alone))
		farwrite_call_close(&own, result);
	farwrite_leave();
	return result;
}

#define WRITE_ITER(name, hook) \
static unsigned long notrace name(ARGUMENTS) { return write_iter(hook, PASSED); }
WRITE_ITER(ext4_write, FARWRITE_HOOK_EXT4)
WRITE_ITER(xfs_write, FARWRITE_HOOK_XFS)
WRITE_ITER(btrfs_write, FARWRITE_HOOK_BTRFS)
WRITE_ITER(f2fs_write, FARWRITE_HOOK_F2FS)
WRITE_ITER(shmem_write, FARWRITE_HOOK_SHMEM)
WRITE_ITER(generic_write, FARWRITE_HOOK_GENERIC)

/* The end of a direct write, in whatever context: only now are the bytes where a reader finds them. */
static unsigned long notrace dio_done(ARGUMENTS)
{
	struct kiocb *iocb = *(struct kiocb **)a;
	loff_t pos = iocb->ki_pos;
	long result = ORIGINAL(FARWRITE_HOOK_DIO_DONE);

	if (iocb->ki_pos > pos)
		farwrite_wrote(FARWRITE_HOOK_DIO_DONE, iocb->ki_filp, pos, iocb->ki_pos, 0, result);
	else if (result < 0 && !changed_nothing(result))
		farwrite_wrote(FARWRITE_HOOK_DIO_DONE, iocb->ki_filp, pos, ~0ULL, FARWRITE_F_TO_EOF, result);
	farwrite_leave();
	return result;
}

/* Does no writeback make its pages read-only again? (tmpfs) */
static bool without_writeback(const struct file *file)
{
	return !(file_inode(file)->i_sb->s_bdi->capabilities & BDI_CAP_WRITEBACK);
}

/*
 * A page of a shared mapping has become writable and is about to be marked dirty. Told of once it is: from then on writeback makes
 * it read-only again. The whole folio: one store may make all of it writable.
 */
static unsigned long notrace fault(ARGUMENTS)
{
	struct vm_fault *vmf = (struct vm_fault *)a;
	struct folio *folio = page_folio(vmf->page);
	struct file *file = get_file(vmf->vma->vm_file);
	u64 pos = folio_pos(folio), length = folio_size(folio);
	struct farwrite_event event;
	unsigned long result;

	result = ORIGINAL(FARWRITE_HOOK_FAULT);
	farwrite_event_of(&event, FARWRITE_HOOK_FAULT, FARWRITE_OP_MMAP, file_inode(file));
	event.flags |= without_writeback(file) ? FARWRITE_F_SHARED : 0;
	event.offset = pos;
	event.length = length;
	event.name.at = file->f_path.dentry;
	farwrite_message(&event);
	fput(file);
	farwrite_leave();
	return result;
}

static void whole_file(unsigned int hook, u16 op, struct file *file, u32 flags)
{
	struct farwrite_event event;

	farwrite_event_of(&event, hook, op, file_inode(file));
	event.flags |= flags | FARWRITE_F_TO_EOF;
	event.length = ~0ULL;
	event.name.at = file->f_path.dentry;
	farwrite_message(&event);
}

/* A shared mapping on tmpfs: pages become writable without any fault that tells of it, and stay so. */
static unsigned long notrace map(ARGUMENTS)
{
	struct file *file = (struct file *)a;
	unsigned long result;

	result = ORIGINAL(FARWRITE_HOOK_MAP);
	if (!(int)result) {
		farwrite_mapped_add(file);
		whole_file(FARWRITE_HOOK_MAP, FARWRITE_OP_MMAP, file, FARWRITE_F_SHARED);
	}
	farwrite_leave();
	return result;
}

/* The last descriptor and the last mapping are gone: this is what such a file holds. */
static unsigned long notrace last_put(ARGUMENTS)
{
	struct file *file = (struct file *)a;
	unsigned long past = farwrite_hooks[FARWRITE_HOOK_LAST_PUT].ip + MCOUNT_INSN_SIZE, result;

	farwrite_mapped_remove(file);
	whole_file(FARWRITE_HOOK_LAST_PUT, FARWRITE_OP_WRITE, file, 0);
	result = farwrite_original(PASSED, past);
	farwrite_leave();
	return result;
}

static unsigned long notrace fallocate(ARGUMENTS)
{
	struct file *file = (struct file *)a;
	unsigned long mode = b;
	u64 offset = c, length = d;
	unsigned long result = ORIGINAL(FARWRITE_HOOK_FALLOCATE);
	long error = (int)result;

	if (!error || !changed_nothing(error)) {
		if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
			farwrite_wrote(FARWRITE_HOOK_FALLOCATE, file, offset, ~0ULL, FARWRITE_F_TO_EOF, error);
		else
			farwrite_wrote(FARWRITE_HOOK_FALLOCATE, file, offset, offset + length,
				       mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? FARWRITE_F_HOLE : 0, error);
	}
	farwrite_leave();
	return result;
}

/* copy_file_range and reflink: both files, both positions, length, flags. What they call below comes by, too: one record. */
static __always_inline unsigned long copied(unsigned int hook, ARGUMENTS)
{
	unsigned long past = farwrite_hooks[hook].ip + MCOUNT_INSN_SIZE;
	struct file *file = (struct file *)c;
	struct farwrite_call own;
	u64 pos = d, length = e;
	bool alone = !farwrite_call_find();
	long result;

	if (alone)
		farwrite_call_open(&own, FARWRITE_CALL_NONE, FARWRITE_HOOK_MANY);
	result = farwrite_original(PASSED, past);
	if (result > 0)
		farwrite_wrote(hook, file, pos, pos + result, 0, result);
	else if (result < 0 && !changed_nothing(result))
		farwrite_wrote(hook, file, pos, length ? pos + length : ~0ULL, length ? 0 : FARWRITE_F_TO_EOF, result);
	if (alone)
		farwrite_call_close(&own, result);
	farwrite_leave();
	return result;
}

static unsigned long notrace copy_range(ARGUMENTS)
{
	return copied(FARWRITE_HOOK_COPY, PASSED);
}

static unsigned long notrace clone_range(ARGUMENTS)
{
	return copied(FARWRITE_HOOK_CLONE, PASSED);
}

/* ---- attributes ------------------------------------------------------------------------------------------------------ */

static void attributes(unsigned int hook, struct dentry *dentry, u32 flags, long result)
{
	struct farwrite_event event;

	if (!d_inode(dentry) || (result && changed_nothing(result)))
		return;
	farwrite_event_of(&event, hook, FARWRITE_OP_ATTRIB, d_inode(dentry));
	event.flags |= flags;
	event.result = result;
	event.name.at = dentry;
	farwrite_message(&event);
}

/* Also the one way to another size. */
static unsigned long notrace attr(ARGUMENTS)
{
	struct dentry *dentry = (struct dentry *)b;
	const struct iattr *new = (const struct iattr *)c;
	unsigned int valid = new->ia_valid;
	loff_t size = new->ia_size, before = i_size_read(d_inode(dentry));
	unsigned long result = ORIGINAL(FARWRITE_HOOK_ATTR);
	struct farwrite_event event;
	long error = (int)result;

	if (!(valid & ATTR_SIZE)) {
		attributes(FARWRITE_HOOK_ATTR, dentry, 0, error);
	} else if (!error || !changed_nothing(error)) {
		farwrite_event_of(&event, FARWRITE_HOOK_ATTR, FARWRITE_OP_TRUNCATE, d_inode(dentry));
		event.offset = size;
		event.length = before;
		event.result = error;
		event.name.at = dentry;
		farwrite_message(&event);
	}
	farwrite_leave();
	return result;
}

static bool is_acl(const char *name)
{
	return !strcmp(name, XATTR_NAME_POSIX_ACL_ACCESS) || !strcmp(name, XATTR_NAME_POSIX_ACL_DEFAULT);
}

/* Older kernels set ACLs this way, newer ones by functions of their own, of which compilers make one or more. */
static u32 xattr_flag(const char *name)
{
	return is_acl(name) ? FARWRITE_F_ACL : FARWRITE_F_XATTR;
}

static unsigned long notrace set_xattr(ARGUMENTS)
{
	u32 flag = xattr_flag((const char *)c);
	unsigned long result = ORIGINAL(FARWRITE_HOOK_SETXATTR);

	attributes(FARWRITE_HOOK_SETXATTR, (struct dentry *)b, flag, (int)result);
	farwrite_leave();
	return result;
}

static unsigned long notrace remove_xattr(ARGUMENTS)
{
	u32 flag = xattr_flag((const char *)c);
	unsigned long result = ORIGINAL(FARWRITE_HOOK_REMOVEXATTR);

	attributes(FARWRITE_HOOK_REMOVEXATTR, (struct dentry *)b, flag, (int)result);
	farwrite_leave();
	return result;
}

#define SETS_ACL(name, hook)						\
static unsigned long notrace name(ARGUMENTS)				\
{									\
	unsigned long result = ORIGINAL(hook);				\
									\
	attributes(hook, (struct dentry *)b, FARWRITE_F_ACL, (int)result); \
	farwrite_leave();						\
	return result;							\
}
SETS_ACL(set_acl, FARWRITE_HOOK_ACL)
SETS_ACL(set_acl_from_user, FARWRITE_HOOK_SET_ACL)
SETS_ACL(remove_acl, FARWRITE_HOOK_REMOVE_ACL)

static unsigned long notrace set_fileattr(ARGUMENTS)
{
	unsigned long result = ORIGINAL(FARWRITE_HOOK_FILEATTR);

	attributes(FARWRITE_HOOK_FILEATTR, (struct dentry *)b, 0, (int)result);
	farwrite_leave();
	return result;
}

/* ---- names ----------------------------------------------------------------------------------------------------------- */

static void appeared(unsigned int hook, struct dentry *dentry, u32 flags)
{
	struct farwrite_event event;

	if (!d_inode(dentry))
		return;
	farwrite_event_of(&event, hook, FARWRITE_OP_CREATE, d_inode(dentry));
	event.flags |= flags;
	/* A new name is about no other. */
	event.many = false;
	event.name.at = dentry;
	farwrite_message(&event);
}

/* open(2) has created the file before this: nothing else tells of it. */
static unsigned long notrace opened(ARGUMENTS)
{
	unsigned long past = farwrite_hooks[FARWRITE_HOOK_OPENED].ip + MCOUNT_INSN_SIZE, result;

	appeared(FARWRITE_HOOK_OPENED, ((struct file *)a)->f_path.dentry, 0);
	result = farwrite_original(PASSED, past);
	farwrite_leave();
	return result;
}

#define APPEARS(name, hook, at)						\
static unsigned long notrace name(ARGUMENTS)				\
{									\
	unsigned long result = ORIGINAL(hook);				\
									\
	if (!(int)result)						\
		appeared(hook, (struct dentry *)at, 0);			\
	farwrite_leave();						\
	return result;							\
}
APPEARS(create, FARWRITE_HOOK_CREATE, c)
#ifdef FARWRITE_HAVE_MKDIR_INT
APPEARS(make_dir, FARWRITE_HOOK_MKDIR, c)
#else
/* Gives the dentry of the new directory. */
static unsigned long notrace make_dir(ARGUMENTS)
{
	unsigned long result = ORIGINAL(FARWRITE_HOOK_MKDIR);

	if (!IS_ERR_OR_NULL((void *)result))
		appeared(FARWRITE_HOOK_MKDIR, (struct dentry *)result, 0);
	farwrite_leave();
	return result;
}
#endif
APPEARS(make_node, FARWRITE_HOOK_MKNOD, c)
APPEARS(symlink, FARWRITE_HOOK_SYMLINK, c)

static unsigned long notrace link(ARGUMENTS)
{
	const struct inode *inode = d_inode((struct dentry *)a);
	bool nameless = inode && !inode->i_nlink;
	unsigned long result = ORIGINAL(FARWRITE_HOOK_LINK);

	if (!(int)result)
		appeared(FARWRITE_HOOK_LINK, (struct dentry *)d, nameless ? FARWRITE_F_TMPFILE : 0);
	farwrite_leave();
	return result;
}

static __always_inline unsigned long disappears(unsigned int hook, ARGUMENTS)
{
	unsigned long past = farwrite_hooks[hook].ip + MCOUNT_INSN_SIZE, result;
	struct dentry *dentry = (struct dentry *)c;
	struct farwrite_event event;

	/* Taken now: the inode may be gone afterwards. */
	farwrite_event_of(&event, hook, FARWRITE_OP_DELETE, d_inode(dentry));
	event.many = event.gone = false;
	event.name.at = dentry;
	result = farwrite_original(PASSED, past);
	if (!(int)result && event.sb)
		farwrite_message(&event);
	farwrite_leave();
	return result;
}

static unsigned long notrace unlink(ARGUMENTS)
{
	return disappears(FARWRITE_HOOK_UNLINK, PASSED);
}

static unsigned long notrace remove_dir(ARGUMENTS)
{
	return disappears(FARWRITE_HOOK_RMDIR, PASSED);
}

static unsigned long notrace rename(ARGUMENTS)
{
	unsigned long past = farwrite_hooks[FARWRITE_HOOK_RENAME].ip + MCOUNT_INSN_SIZE, result;
	const struct renamedata *data = (const struct renamedata *)a;
	bool exchange = data->flags & RENAME_EXCHANGE;
	struct name_snapshot from, to;
	struct farwrite_event event, other;

	/* The dentries change their names; both directories stay locked, so they and their dentries stay. */
	farwrite_event_of(&event, FARWRITE_HOOK_RENAME, exchange ? FARWRITE_OP_EXCHANGE : FARWRITE_OP_RENAME,
			  d_inode(data->old_dentry));
	farwrite_event_of(&other, FARWRITE_HOOK_RENAME, event.op, d_inode(data->new_dentry));
	if (!exchange && other.sb)
		event.flags |= FARWRITE_F_OVER;
	take_dentry_name_snapshot(&from, data->old_dentry);
	take_dentry_name_snapshot(&to, data->new_dentry);
	event.name = (struct farwrite_name) { .at = data->old_dentry->d_parent, .leaf = &from.name };
	event.to = (struct farwrite_name) { .at = data->new_dentry->d_parent, .leaf = &to.name };
	result = farwrite_original(PASSED, past);
	if (!(int)result && event.sb)
		farwrite_message_rename(&event, exchange && other.sb, &other);
	release_dentry_name_snapshot(&to);
	release_dentry_name_snapshot(&from);
	farwrite_leave();
	return result;
}

/* The last mount is gone, and now the super block goes: nothing of ours may hold it. */
static unsigned long notrace unmounted(ARGUMENTS)
{
	unsigned long past = farwrite_hooks[FARWRITE_HOOK_UMOUNT].ip + MCOUNT_INSN_SIZE, result;

	farwrite_roots_unmounted((struct super_block *)a);
	result = farwrite_original(PASSED, past);
	farwrite_leave();
	return result;
}

/* ---- the table ------------------------------------------------------------------------------------------------------- */

#define HOOK(index, function, replacement, how, argument, bits) \
	[index] = { .name = function, .wrapper = replacement, .where = how, .arg = argument, .flags = bits }
#define CALL(function, how, argument, bits) \
	{ .name = function, .wrapper = farwrite_call_wrapper, .where = how, .arg = argument, .flags = bits, .replaces = true }
#define NATIVE(call, how, argument)	CALL("__x64_sys_" call, how, argument, 0)
/* A 32-bit entry has one of three forms of name. Those that this kernel lacks are left out. */
#define COMPAT(name, how, argument)	CALL(name, how, argument, FARWRITE_HOOK_COMPAT)
#define BOTH(call, how, argument)	NATIVE(call, how, argument), COMPAT("__ia32_sys_" call, how, argument)
/* Those that may write in several steps: one record of all. */
#define MANY(name, argument, bits)	CALL(name, FARWRITE_BY_FD, argument, FARWRITE_HOOK_MANY | (bits))

struct farwrite_hook farwrite_hooks[] = {
	HOOK(FARWRITE_HOOK_EXT4, "ext4_file_write_iter", ext4_write, FARWRITE_BY_IOCB, 0, FARWRITE_HOOK_LAZY),
	HOOK(FARWRITE_HOOK_XFS, "xfs_file_write_iter", xfs_write, FARWRITE_BY_IOCB, 0, FARWRITE_HOOK_LAZY),
	HOOK(FARWRITE_HOOK_BTRFS, "btrfs_file_write_iter", btrfs_write, FARWRITE_BY_IOCB, 0, FARWRITE_HOOK_LAZY),
	HOOK(FARWRITE_HOOK_F2FS, "f2fs_file_write_iter", f2fs_write, FARWRITE_BY_IOCB, 0, FARWRITE_HOOK_LAZY),
	HOOK(FARWRITE_HOOK_SHMEM, "shmem_file_write_iter", shmem_write, FARWRITE_BY_IOCB, 0, FARWRITE_HOOK_LAZY),
	HOOK(FARWRITE_HOOK_GENERIC, "generic_file_write_iter", generic_write, FARWRITE_BY_IOCB, 0, FARWRITE_HOOK_LAZY),
	HOOK(FARWRITE_HOOK_DIO_DONE, "iomap_dio_complete", dio_done, FARWRITE_BY_DIO, 0, 0),
	HOOK(FARWRITE_HOOK_FAULT, "fault_dirty_shared_page", fault, FARWRITE_BY_FAULT, 0, 0),
	HOOK(FARWRITE_HOOK_MAP, "security_mmap_file", map, FARWRITE_BY_MAP, 0, 0),
	HOOK(FARWRITE_HOOK_LAST_PUT, "__fput", last_put, FARWRITE_BY_LAST_PUT, 0, 0),
	HOOK(FARWRITE_HOOK_FALLOCATE, "vfs_fallocate", fallocate, FARWRITE_BY_FILE, 0, 0),
	HOOK(FARWRITE_HOOK_COPY, "vfs_copy_file_range", copy_range, FARWRITE_BY_FILE, 2, 0),
	HOOK(FARWRITE_HOOK_CLONE, "vfs_clone_file_range", clone_range, FARWRITE_BY_FILE, 2, 0),
	HOOK(FARWRITE_HOOK_ATTR, "notify_change", attr, FARWRITE_BY_DENTRY, 1, 0),
	HOOK(FARWRITE_HOOK_SETXATTR, "__vfs_setxattr_noperm", set_xattr, FARWRITE_BY_DENTRY, 1, 0),
	HOOK(FARWRITE_HOOK_REMOVEXATTR, "__vfs_removexattr_locked", remove_xattr, FARWRITE_BY_DENTRY, 1, 0),
	HOOK(FARWRITE_HOOK_ACL, "set_posix_acl", set_acl, FARWRITE_BY_DENTRY, 1, 0),
	HOOK(FARWRITE_HOOK_SET_ACL, "vfs_set_acl", set_acl_from_user, FARWRITE_BY_DENTRY, 1, FARWRITE_HOOK_OPTIONAL),
	HOOK(FARWRITE_HOOK_REMOVE_ACL, "vfs_remove_acl", remove_acl, FARWRITE_BY_DENTRY, 1, FARWRITE_HOOK_OPTIONAL),
	HOOK(FARWRITE_HOOK_FILEATTR, "vfs_fileattr_set", set_fileattr, FARWRITE_BY_DENTRY, 1, 0),
	HOOK(FARWRITE_HOOK_OPENED, "do_dentry_open", opened, FARWRITE_BY_CREATED, 0, 0),
	HOOK(FARWRITE_HOOK_CREATE, "vfs_create", create, FARWRITE_BY_DENTRY, 2, 0),
	HOOK(FARWRITE_HOOK_MKDIR, "vfs_mkdir", make_dir, FARWRITE_BY_DENTRY, 2, 0),
	HOOK(FARWRITE_HOOK_MKNOD, "vfs_mknod", make_node, FARWRITE_BY_DENTRY, 2, 0),
	HOOK(FARWRITE_HOOK_SYMLINK, "vfs_symlink", symlink, FARWRITE_BY_DENTRY, 2, 0),
	HOOK(FARWRITE_HOOK_LINK, "vfs_link", link, FARWRITE_BY_DENTRY, 3, 0),
	HOOK(FARWRITE_HOOK_UNLINK, "vfs_unlink", unlink, FARWRITE_BY_DENTRY, 2, 0),
	HOOK(FARWRITE_HOOK_RMDIR, "vfs_rmdir", remove_dir, FARWRITE_BY_DENTRY, 2, 0),
	HOOK(FARWRITE_HOOK_RENAME, "vfs_rename", rename, FARWRITE_BY_RENAME, 0, 0),
	HOOK(FARWRITE_HOOK_UMOUNT, "generic_shutdown_super", unmounted, FARWRITE_BY_SUPER, 0, 0),

	/* The predetermined calls. Those that may wait for ever for another (splice, and open of a fifo without O_CREAT) are not. */
	BOTH("write", FARWRITE_BY_FD, 0),
	NATIVE("pwrite64", FARWRITE_BY_FD, 0), COMPAT("__ia32_sys_ia32_pwrite64", FARWRITE_BY_FD, 0),
	BOTH("writev", FARWRITE_BY_FD, 0),
	NATIVE("pwritev", FARWRITE_BY_FD, 0), COMPAT("__ia32_compat_sys_pwritev", FARWRITE_BY_FD, 0),
	NATIVE("pwritev2", FARWRITE_BY_FD, 0), COMPAT("__ia32_compat_sys_pwritev2", FARWRITE_BY_FD, 0),
	COMPAT("__ia32_compat_sys_pwritev64", FARWRITE_BY_FD, 0), COMPAT("__ia32_compat_sys_pwritev64v2", FARWRITE_BY_FD, 0),
	MANY("__x64_sys_sendfile64", 0, 0), MANY("__ia32_compat_sys_sendfile", 0, FARWRITE_HOOK_COMPAT),
	MANY("__ia32_compat_sys_sendfile64", 0, FARWRITE_HOOK_COMPAT), MANY("__ia32_sys_sendfile64", 0, FARWRITE_HOOK_COMPAT),
	MANY("__x64_sys_copy_file_range", 2, 0), MANY("__ia32_sys_copy_file_range", 2, FARWRITE_HOOK_COMPAT),
	NATIVE("truncate", FARWRITE_BY_PATH, 0), COMPAT("__ia32_compat_sys_truncate", FARWRITE_BY_PATH, 0),
	COMPAT("__ia32_sys_ia32_truncate64", FARWRITE_BY_PATH, 0),
	NATIVE("ftruncate", FARWRITE_BY_FD, 0), COMPAT("__ia32_compat_sys_ftruncate", FARWRITE_BY_FD, 0),
	COMPAT("__ia32_sys_ia32_ftruncate64", FARWRITE_BY_FD, 0),
	NATIVE("fallocate", FARWRITE_BY_FD, 0), COMPAT("__ia32_sys_ia32_fallocate", FARWRITE_BY_FD, 0),
	NATIVE("open", FARWRITE_BY_OPEN, 1), COMPAT("__ia32_compat_sys_open", FARWRITE_BY_OPEN, 1),
	NATIVE("openat", FARWRITE_BY_OPEN, 2), COMPAT("__ia32_compat_sys_openat", FARWRITE_BY_OPEN, 2),
	BOTH("openat2", FARWRITE_BY_OPENAT2, 0),
	BOTH("creat", FARWRITE_BY_PATH, 0),
	BOTH("rename", FARWRITE_BY_PATH, 0), BOTH("renameat", FARWRITE_BY_PATH, 0), BOTH("renameat2", FARWRITE_BY_PATH, 0),
	BOTH("link", FARWRITE_BY_PATH, 0), BOTH("linkat", FARWRITE_BY_PATH, 0),
	BOTH("symlink", FARWRITE_BY_PATH, 0), BOTH("symlinkat", FARWRITE_BY_PATH, 0),
	BOTH("unlink", FARWRITE_BY_PATH, 0), BOTH("unlinkat", FARWRITE_BY_PATH, 0), BOTH("rmdir", FARWRITE_BY_PATH, 0),
	BOTH("mkdir", FARWRITE_BY_PATH, 0), BOTH("mkdirat", FARWRITE_BY_PATH, 0),
	BOTH("mknod", FARWRITE_BY_PATH, 0), BOTH("mknodat", FARWRITE_BY_PATH, 0),
	BOTH("chmod", FARWRITE_BY_PATH, 0), BOTH("fchmod", FARWRITE_BY_FD, 0), BOTH("fchmodat", FARWRITE_BY_PATH, 0),
	BOTH("fchmodat2", FARWRITE_BY_PATH, 0),
	BOTH("chown", FARWRITE_BY_PATH, 0), BOTH("lchown", FARWRITE_BY_PATH, 0), BOTH("fchown", FARWRITE_BY_FD, 0),
	BOTH("fchownat", FARWRITE_BY_PATH, 0), COMPAT("__ia32_sys_chown16", FARWRITE_BY_PATH, 0),
	COMPAT("__ia32_sys_lchown16", FARWRITE_BY_PATH, 0), COMPAT("__ia32_sys_fchown16", FARWRITE_BY_FD, 0),
	NATIVE("utime", FARWRITE_BY_PATH, 0), COMPAT("__ia32_sys_utime32", FARWRITE_BY_PATH, 0),
	NATIVE("utimes", FARWRITE_BY_PATH, 0), COMPAT("__ia32_sys_utimes_time32", FARWRITE_BY_PATH, 0),
	NATIVE("futimesat", FARWRITE_BY_PATH, 0), COMPAT("__ia32_sys_futimesat_time32", FARWRITE_BY_PATH, 0),
	BOTH("utimensat", FARWRITE_BY_PATH, 0), COMPAT("__ia32_sys_utimensat_time32", FARWRITE_BY_PATH, 0),
	BOTH("setxattr", FARWRITE_BY_PATH, 0), BOTH("lsetxattr", FARWRITE_BY_PATH, 0), BOTH("fsetxattr", FARWRITE_BY_FD, 0),
	BOTH("setxattrat", FARWRITE_BY_PATH, 0),
	BOTH("removexattr", FARWRITE_BY_PATH, 0), BOTH("lremovexattr", FARWRITE_BY_PATH, 0),
	BOTH("fremovexattr", FARWRITE_BY_FD, 0), BOTH("removexattrat", FARWRITE_BY_PATH, 0),
};
const unsigned int farwrite_hook_count = ARRAY_SIZE(farwrite_hooks);

/* ---- which write_iter a filesystem has ------------------------------------------------------------------------------- */

/* Inodes looked at to see whether its regular files really have it. */
#define SAMPLE	1000

static const struct {
	const char *type;
	unsigned int hook;
} filesystems[] = {
	{ "ext4", FARWRITE_HOOK_EXT4 },
	{ "ext3", FARWRITE_HOOK_EXT4 },
	{ "ext2", FARWRITE_HOOK_EXT4 },
	{ "xfs", FARWRITE_HOOK_XFS },
	{ "btrfs", FARWRITE_HOOK_BTRFS },
	{ "f2fs", FARWRITE_HOOK_F2FS },
#ifdef FARWRITE_HAVE_SHMEM_WRITE
	{ "tmpfs", FARWRITE_HOOK_SHMEM },
#else
	{ "tmpfs", FARWRITE_HOOK_GENERIC },
#endif
};

int farwrite_write_hook(struct super_block *sb)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(filesystems); i++)
		if (!strcmp(sb->s_type->name, filesystems[i].type))
			return filesystems[i].hook;
	return -EOPNOTSUPP;
}
