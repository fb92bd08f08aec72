// SPDX-License-Identifier: GPL-2.0-only
/*
 * The bounded ring in which records wait for the daemon, mapped read-only into it. Keeps recording while no daemon is there, and
 * forgets nothing before it is released. Full: what has no room is counted, and a record of the loss goes in first thing when
 * there is room. Written in any context, also interrupts: one lock, interrupts off, no allocation.
 */
#include "farwrite.h"

#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/spinlock.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>

static struct farwrite_ring *shared;	/* what user space reads; never read back by us */
static u8 *data;
static u64 bytes;

static DEFINE_RAW_SPINLOCK(lock);
static u64 head, tail, seq, dropped, recorded;
static u64 lost_roots, lost_count;	/* not yet told by a record */
static u64 seen;			/* poll: the consumer has read so far */
static u64 reserved_at;			/* the reservation under way: behind the padding */
static u32 reserved_size;

static DECLARE_WAIT_QUEUE_HEAD(waiters);
static int waiting;

int farwrite_ring_init(unsigned long ring_bytes)
{
	/* What is mapped must be page by page and zero. */
	void *memory = vmalloc_user(PAGE_SIZE + ring_bytes);

	if (!memory)
		return -ENOMEM;
	shared = memory;
	data = memory + PAGE_SIZE;
	bytes = ring_bytes;
	return 0;
}

void farwrite_ring_exit(void)
{
	vfree(shared);
}

/* Sets `reserved_*` for a record that lies in one piece; false if there is no room. */
static bool room(u32 size)
{
	u64 left = bytes - (head & (bytes - 1));
	u64 pad = left < size ? left : 0;

	if (head + pad + size - tail > bytes)
		return false;
	reserved_at = head + pad;
	reserved_size = size;
	return true;
}

static struct farwrite_record *record_at(u64 position)
{
	return (struct farwrite_record *)(data + (position & (bytes - 1)));
}

static void publish(void)
{
	if (reserved_at != head) {
		struct farwrite_record *pad = record_at(head);

		pad->size = reserved_at - head;
		pad->version = FARWRITE_ABI;
		pad->op = FARWRITE_OP_PAD;
	}
	record_at(reserved_at)->seq = seq++;
	head = reserved_at + reserved_size;
	WRITE_ONCE(shared->recorded, ++recorded);
	smp_store_release(&shared->head, head);
}

/* A record without path. */
static bool put_bare(u16 op, u16 root, u32 dev, u64 offset, u64 length)
{
	struct farwrite_record *record;

	if (!room(sizeof(*record)))
		return false;
	record = record_at(reserved_at);
	*record = (struct farwrite_record) {
		.size = sizeof(*record),
		.version = FARWRITE_ABI,
		.op = op,
		.root = root,
		.dev = dev,
		.offset = offset,
		.length = length,
		.time = ktime_get_real_fast_ns(),
		.call = FARWRITE_CALL_NONE,
		.hook = 0xffff,
	};
	publish();
	return true;
}

/* Only once the largest record fits behind it: else a ring that is nearly full would fill up with losses. */
static bool tell_loss(void)
{
	if (head + 2 * FARWRITE_RECORD_MAX - tail > bytes)
		return false;
	if (!put_bare(FARWRITE_OP_LOST, FARWRITE_ROOT_NONE, 0, lost_roots, lost_count))
		return false;
	lost_roots = lost_count = 0;
	WRITE_ONCE(shared->lost, 0);
	WRITE_ONCE(shared->lost_roots, 0);
	return true;
}

static void lose(u64 roots, struct farwrite_hook *hook)
{
	lost_roots |= roots;
	lost_count++;
	seq++;
	WRITE_ONCE(shared->lost_roots, lost_roots);
	smp_store_release(&shared->lost, lost_count);
	if (hook)
		hook->dropped++;
	WRITE_ONCE(shared->dropped, ++dropped);
}

static void wake(void)
{
	/* Pairs with the poller, who says that he waits before he looks at head. */
	smp_mb();
	if (READ_ONCE(waiting) && xchg(&waiting, 0))
		wake_up_interruptible_poll(&waiters, EPOLLIN);
}

struct farwrite_record *farwrite_ring_reserve(u32 size, u64 roots, struct farwrite_hook *hook, unsigned long *irq)
{
	raw_spin_lock_irqsave(&lock, *irq);
	if (likely((!lost_count || tell_loss()) && room(size)))
		return record_at(reserved_at);
	lose(roots, hook);
	raw_spin_unlock_irqrestore(&lock, *irq);
	wake();
	return NULL;
}

void farwrite_ring_commit(struct farwrite_hook *hook, unsigned long irq)
{
	hook->recorded++;
	publish();
	raw_spin_unlock_irqrestore(&lock, irq);
	wake();
}

void farwrite_ring_cancel(unsigned long irq)
{
	raw_spin_unlock_irqrestore(&lock, irq);
}

void farwrite_ring_lose(u64 roots, struct farwrite_hook *hook)
{
	unsigned long irq;

	raw_spin_lock_irqsave(&lock, irq);
	lose(roots, hook);
	raw_spin_unlock_irqrestore(&lock, irq);
	wake();
}

/* If there is no room, the loss of a record of this root says enough: the daemon then looks where the root is. */
void farwrite_ring_gone(u16 root, u32 dev)
{
	unsigned long irq;

	raw_spin_lock_irqsave(&lock, irq);
	if ((lost_count && !tell_loss()) || !put_bare(FARWRITE_OP_GONE, root, dev, 0, 0))
		lose(BIT_ULL(root), NULL);
	raw_spin_unlock_irqrestore(&lock, irq);
	wake();
}

int farwrite_ring_release(u64 position)
{
	unsigned long irq;
	int error = 0;

	raw_spin_lock_irqsave(&lock, irq);
	if (position < tail || position > head || position % 8) {
		error = -EINVAL;
	} else {
		tail = position;
		seen = max(seen, position);
		WRITE_ONCE(shared->tail, tail);
		if (lost_count)
			tell_loss();
	}
	raw_spin_unlock_irqrestore(&lock, irq);
	wake();
	return error;
}

int farwrite_ring_seen(u64 position)
{
	unsigned long irq;
	int error = 0;

	raw_spin_lock_irqsave(&lock, irq);
	if (position < tail || position > head || position % 8)
		error = -EINVAL;
	else
		seen = position;
	raw_spin_unlock_irqrestore(&lock, irq);
	return error;
}

void farwrite_ring_attach(void)
{
	unsigned long irq;

	raw_spin_lock_irqsave(&lock, irq);
	seen = tail;
	raw_spin_unlock_irqrestore(&lock, irq);
}

void farwrite_ring_info(struct farwrite_info *info)
{
	unsigned long irq;

	raw_spin_lock_irqsave(&lock, irq);
	info->ring_bytes = bytes;
	info->head = head;
	info->tail = tail;
	info->dropped = dropped;
	info->next_seq = seq;
	raw_spin_unlock_irqrestore(&lock, irq);
}

u64 farwrite_ring_head(void)
{
	return READ_ONCE(head);
}

u64 farwrite_ring_tail(void)
{
	return READ_ONCE(tail);
}

int farwrite_ring_mmap(struct vm_area_struct *vma)
{
	unsigned long size = vma->vm_end - vma->vm_start;

	if (vma->vm_pgoff || size > PAGE_SIZE + bytes)
		return -EINVAL;
	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
#ifdef FARWRITE_HAVE_VM_FLAGS_CLEAR
	vm_flags_mod(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_MAYEXEC);
#else
	vma->vm_flags &= ~(VM_MAYWRITE | VM_MAYEXEC);
	vma->vm_flags |= VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP;
#endif
	return remap_vmalloc_range(vma, shared, 0);
}

__poll_t farwrite_ring_poll(struct file *file, struct poll_table_struct *table)
{
	poll_wait(file, &waiters, table);
	WRITE_ONCE(waiting, 1);
	smp_mb();
	return READ_ONCE(head) > READ_ONCE(seen) ? EPOLLIN | EPOLLRDNORM : 0;
}
