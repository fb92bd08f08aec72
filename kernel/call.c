// SPDX-License-Identifier: GPL-2.0-only
/*
 * The system call under way: what stands in the place of every replaced system call, and how the hooks below it find out that
 * they are part of one. It is on the wrapper's stack; a table from the task to it takes no lock, since nobody but the task
 * itself looks for it.
 */
#include "farwrite.h"

#include <linux/file.h>
#include <linux/hash.h>
#include <linux/sched.h>

#define SLOTS_BITS	10
/* A task that finds no free slot among these has its writes recorded one by one. */
#define SLOTS_TRIED	8

static struct {
	struct task_struct *task;
	struct farwrite_call *call;
} slots[(1u << SLOTS_BITS) + SLOTS_TRIED];

static __always_inline unsigned int first_slot(void)
{
	return hash_ptr(current, SLOTS_BITS);
}

void farwrite_call_open(struct farwrite_call *call, u16 number, u8 flags)
{
	unsigned int i, first = first_slot();

	call->slot = NULL;
	call->number = number;
	call->compat = flags & FARWRITE_HOOK_COMPAT;
	call->many = flags & FARWRITE_HOOK_MANY;
	call->file = NULL;
	for (i = first; i < first + SLOTS_TRIED; i++) {
		if (READ_ONCE(slots[i].task) || cmpxchg(&slots[i].task, NULL, current))
			continue;
		slots[i].call = call;
		call->slot = &slots[i].task;
		return;
	}
}

struct farwrite_call *farwrite_call_find(void)
{
	unsigned int i, first = first_slot();

	/* An interrupt is no part of what it interrupts. */
	if (!in_task())
		return NULL;
	for (i = first; i < first + SLOTS_TRIED; i++)
		if (READ_ONCE(slots[i].task) == current)
			return slots[i].call;
	return NULL;
}

void farwrite_call_close(struct farwrite_call *call, s64 result)
{
	struct file *file = call->file;

	if (call->slot)
		smp_store_release(call->slot, NULL);
	if (!file)
		return;
	farwrite_write_message(call, call->hook, file, call->start, call->end, call->flags, result);
	fput(file);
}

/* In the place of every replaced system call. */
unsigned long notrace farwrite_call_wrapper(const struct pt_regs *regs, unsigned long index)
{
	const struct farwrite_hook *hook = &farwrite_hooks[index];
	struct farwrite_call call;
	unsigned long result;

	farwrite_call_open(&call, regs->orig_ax, hook->flags);
	result = farwrite_original((unsigned long)regs, 0, 0, 0, 0, 0, hook->ip + MCOUNT_INSN_SIZE);
	farwrite_call_close(&call, result);
	farwrite_leave();
	return result;
}
