/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The few fields of the kernel's structures that the eBPF programs read, and the values of flags that they look at. Where the
 * fields really are is filled in when the programs are loaded, from the running kernel's own type information (CO-RE): what
 * matters here are names and types, not offsets. Nothing of the kernel that is not read belongs here.
 */
#ifndef FARWRITE_KERNEL_H
#define FARWRITE_KERNEL_H

/* Keeps uapi/farwrite.h from the C library's headers: its types are here. */
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;

/* enum bpf_map_type, and flags (linux/bpf.h): part of the kernel's interface, they do not change. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,

	BPF_ANY = 0,
	BPF_F_MMAPABLE = 1 << 10,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	__u32 len;
	const unsigned char *name;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
	struct dentry *s_root;
};

struct inode {
	__u16 i_mode;
	unsigned long i_state;
	unsigned long i_ino;
	unsigned int i_nlink;
	__u32 i_generation;
	struct super_block *i_sb;
};

struct seqcount {
	__u32 sequence;
};

struct dentry {
	/* counts the changes of its name, parent and inode, by two each; odd while one goes on */
	struct {
		struct seqcount seqcount;
	} d_seq;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
	/* where d_name.name points for a short name; 32 bytes or more */
	unsigned char d_iname[32];
	/* NULL while the dentry is in no hash chain */
	struct {
		void *pprev;
	} d_hash;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
};

struct kiocb {
	struct file *ki_filp;
	long long ki_pos;
	void *ki_complete;
	int ki_flags;
};

struct vm_area_struct {
	unsigned long vm_flags;
	struct file *vm_file;
};

struct page {
	unsigned long flags;
	unsigned long compound_head;
};

struct folio {
	unsigned int _folio_nr_pages;
};

struct vm_fault {
	struct vm_area_struct *vma;
	unsigned long pgoff;
	struct page *page;
};

struct iattr {
	unsigned int ia_valid;
	long long ia_size;
};

struct renamedata {
	struct dentry *old_dentry;
	struct dentry *new_dentry;
	unsigned int flags;
};

struct iomap_dio {
	struct kiocb *iocb;
	unsigned int flags;
};

struct task_struct {
	unsigned int flags;
};

struct btrfs_root {
	__u32 anon_dev;
};

struct btrfs_inode {
	struct btrfs_root *root;
	struct inode vfs_inode;
};

enum pageflags {
	PG_head = 6,
};

#pragma clang attribute pop

/* Values of the kernel's interfaces, and of its own flags, that the programs look at. */
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

#endif
