// SPDX-License-Identifier: GPL-2.0-only
/*
 * The replacement unit: puts our functions in the place of the predetermined system calls, and of functions of the VFS below
 * them, and puts the originals back.
 *
 * The entry of each is patched by ftrace (IPMODIFY, as live patching does it), so that one can see it from outside in
 * /sys/kernel/tracing/enabled_functions, and so that two who want the same function are told (EBUSY). No table of the kernel
 * and no text is written by us.
 */
#include "farwrite.h"

#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/hash.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

/* Entry addresses -> index, open addressing; nothing is taken out, but what is there may lead nowhere any more. */
#define PLACES_BITS	10
#define PLACES		(1u << PLACES_BITS)
/* How long "off" waits for calls under way before it leaves them to the worker. */
#define DRAIN_MS	2000
#define DRAIN_STEP_MS	2
/* How often, and at what intervals, a function is tried to which others attach something. */
#define ATTACH_TRIES	50
#define ATTACH_STEP_MS	10
#define NOWHERE		U32_MAX

static struct {
	unsigned long ip;
	u32 index;
} places[PLACES];

DEFINE_PER_CPU(long, farwrite_in_flight);
DEFINE_PER_CPU(u64[FARWRITE_HOOKS_MAX], farwrite_seen);

static bool on;
static bool stuck;		/* ftrace has shut itself down: what is patched stays so, and the module with it */
static bool draining;		/* off, but calls are under way: the module's reference is the worker's to put */
static u64 epoch;

static __always_inline struct farwrite_hook *place(unsigned long ip)
{
	u32 slot = hash_64(ip, PLACES_BITS), index;

	for (;; slot = (slot + 1) % PLACES) {
		unsigned long at = smp_load_acquire(&places[slot].ip);

		if (likely(at == ip)) {
			index = READ_ONCE(places[slot].index);
			return likely(index != NOWHERE) ? &farwrite_hooks[index] : NULL;
		}
		if (!at)
			return NULL;
	}
}

static int place_add(unsigned long ip, u32 index)
{
	u32 slot = hash_64(ip, PLACES_BITS), tries;

	for (tries = 0; tries < PLACES / 2; tries++, slot = (slot + 1) % PLACES) {
		if (places[slot].ip == ip) {
			WRITE_ONCE(places[slot].index, index);
			return 0;
		}
		if (!places[slot].ip) {
			places[slot].index = index;
			smp_store_release(&places[slot].ip, ip);
			return 0;
		}
	}
	return -ENOSPC;
}

/*
 * Where every hooked function comes by. Calls nothing that is hooked, so it needs no guard against recursion
 * (FTRACE_OPS_FL_RECURSION asks for one). A call that is to go through ours is counted here already, so that there is no moment
 * in which it is neither.
 */
static void notrace entry(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
#ifdef FARWRITE_HAVE_ARCH_FTRACE_REGS
	struct pt_regs *regs = &arch_ftrace_regs(fregs)->regs;
#else
	struct pt_regs *regs = &fregs->regs;
#endif
	struct farwrite_hook *hook = place(ip);
	unsigned long index;

	if (unlikely(!hook))
		return;
	index = hook - farwrite_hooks;
	this_cpu_inc(farwrite_seen[index]);
	if (!farwrite_determine(hook, regs))
		return;
	this_cpu_inc(farwrite_in_flight);
	/* A system call's entry has one argument: the second register tells the common wrapper which it is. */
	if (hook->replaces)
		regs->si = index;
	regs->ip = (unsigned long)hook->wrapper;
}

/* Not put out of action by sysctl kernel.ftrace_enabled=0, which is refused (EBUSY) instead. */
#define OPS_FLAGS	(FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT)

static struct ftrace_ops ops = {
	.func = entry,
	.flags = OPS_FLAGS,
};

/*
 * The filesystems' own functions, the first of all hooks, are hooked when the others are at work already, each by an ops of its own. A BPF
 * program that sits on the end of a function (fexit) calls it by itself; that what is to be called is ours now, ftrace tells it only when an
 * ops is registered, not when a function is added to one that is (prepare_direct_functions_for_ipmodify() in kernel/trace/ftrace.c).
 */
#define FILESYSTEMS	FARWRITE_HOOK_DIO_DONE

static struct ftrace_ops of_filesystem[FILESYSTEMS] = {
	[0 ... FILESYSTEMS - 1] = {
		.func = entry,
		.flags = OPS_FLAGS,
	},
};

/*
 * A disabled kprobe is the one exported way to learn a function's address. It comes at the call to __fentry__, behind an ENDBR
 * if there is one.
 */
static unsigned long address(const char *name)
{
	struct kprobe probe = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};
	unsigned long ip;

	if (register_kprobe(&probe))
		return 0;
	ip = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return ip;
}

static int find(unsigned int index)
{
	struct farwrite_hook *hook = &farwrite_hooks[index];
	unsigned long ip = address(hook->name);
	int error = ip ? place_add(ip, index) : -ENOENT;

	if (!error)
		hook->ip = ip;
	return error;
}

/* Registers. EAGAIN: somebody is attaching a BPF program to one of the functions at this moment. */
static int put_in_place(struct ftrace_ops *these)
{
	unsigned int tries;
	int error;

	for (tries = 0; tries < ATTACH_TRIES; tries++) {
		error = register_ftrace_function(these);
		if (error != -EAGAIN)
			break;
		msleep(ATTACH_STEP_MS);
	}
	return error;
}

int farwrite_replace_add(unsigned int index)
{
	struct farwrite_hook *hook = &farwrite_hooks[index];
	/* Looked up each time: the filesystem's module may have been unloaded and loaded anew elsewhere. */
	int error = find(index);

	if (!error && !hook->hooked) {
		error = ftrace_set_filter_ip(&of_filesystem[index], hook->ip, 0, 1);
		if (!error)
			error = put_in_place(&of_filesystem[index]);
	}
	if (!error)
		hook->hooked = true;
	return error;
}

/* The filesystem's function is the original again. Its filter stays, for the next time or the end. */
static void unhook_filesystem(unsigned int index)
{
	if (!farwrite_hooks[index].hooked)
		return;
	farwrite_hooks[index].hooked = false;
	if (unregister_ftrace_function(&of_filesystem[index]))
		stuck = true;
}

/*
 * A filesystem's module goes, and its functions with it: what comes to lie at the same address is not ours. ftrace forgets only the
 * filters of its own users.
 */
void farwrite_replace_module_gone(const struct module *module)
{
	unsigned int i;

	for (i = 0; i < FILESYSTEMS; i++) {
		struct farwrite_hook *hook = &farwrite_hooks[i];

		if (!hook->ip || !within_module(hook->ip, module))
			continue;
		unhook_filesystem(i);
		place_add(hook->ip, NOWHERE);
	}
}

static long in_flight(void)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(farwrite_in_flight, cpu);
	return sum;
}

static void drain_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(drain, drain_work);

/* The last wrapper may still be in its last instructions, or preempted there. */
static void drained(void)
{
	synchronize_rcu_tasks();
	draining = false;
	module_put(THIS_MODULE);
}

static DEFINE_MUTEX(drain_lock);

static void drain_work(struct work_struct *work)
{
	mutex_lock(&drain_lock);
	if (draining && !in_flight())
		drained();
	else if (draining)
		schedule_delayed_work(&drain, HZ / 10);
	mutex_unlock(&drain_lock);
}

int farwrite_replace_on(void)
{
	unsigned long *ips;
	unsigned int i, n = 0;
	int error = -ENOMEM;

	if (on)
		return 0;
	if (stuck)
		return -EIO;
	ips = kcalloc(farwrite_hook_count, sizeof(*ips), GFP_KERNEL);
	if (!ips)
		return error;
	for (i = 0; i < farwrite_hook_count; i++) {
		struct farwrite_hook *hook = &farwrite_hooks[i];

		/* `ip` is never erased: a call that was redirected long ago may still be going to use it. */
		hook->hooked = hook->ip && !(hook->flags & FARWRITE_HOOK_LAZY);
		if (hook->hooked)
			ips[n++] = hook->ip;
	}
	mutex_lock(&drain_lock);
	if (!draining)
		__module_get(THIS_MODULE);
	draining = false;
	mutex_unlock(&drain_lock);

	error = ftrace_set_filter_ips(&ops, ips, n, 0, 1);
	if (!error)
		error = put_in_place(&ops);
	kfree(ips);
	if (error) {
		pr_warn("cannot replace the system calls: %d%s\n", error,
			error == -EBUSY ? " (live patching or another module has one of them)" : "");
		mutex_lock(&drain_lock);
		draining = true;
		schedule_delayed_work(&drain, 0);
		mutex_unlock(&drain_lock);
		return error;
	}
	on = true;
	epoch++;
	return 0;
}

void farwrite_replace_off(void)
{
	unsigned long end;
	unsigned int i;

	if (!on)
		return;
	on = false;
	/* Each waits until no task is in the entry or in ftrace's trampoline. */
	for (i = 0; i < FILESYSTEMS; i++)
		unhook_filesystem(i);
	if (unregister_ftrace_function(&ops))
		stuck = true;
	if (stuck) {
		pr_err("ftrace has shut itself down, see above: the original calls come back with the next boot\n");
		return;
	}
	end = jiffies + msecs_to_jiffies(DRAIN_MS);
	while (in_flight() && time_before(jiffies, end))
		msleep(DRAIN_STEP_MS);
	mutex_lock(&drain_lock);
	draining = true;
	if (in_flight())
		schedule_delayed_work(&drain, HZ / 10);
	else
		drained();
	mutex_unlock(&drain_lock);
}

bool farwrite_replace_is_on(void)
{
	return on;
}

u64 farwrite_replace_epoch(void)
{
	return epoch;
}

void farwrite_replace_count(u32 *replaced, u32 *hooked)
{
	unsigned int i;

	*replaced = *hooked = 0;
	for (i = 0; on && i < farwrite_hook_count; i++)
		if (farwrite_hooks[i].hooked)
			++*(farwrite_hooks[i].replaces ? replaced : hooked);
}

int farwrite_replace_init(void)
{
	unsigned int i, calls = 0;

	if (WARN_ON(farwrite_hook_count > FARWRITE_HOOKS_MAX))
		return -EINVAL;
	for (i = 0; i < farwrite_hook_count; i++) {
		struct farwrite_hook *hook = &farwrite_hooks[i];

		if (WARN_ON(!(hook->flags & FARWRITE_HOOK_LAZY) != (i >= FILESYSTEMS)))
			return -EINVAL;
		if (i < FILESYSTEMS)
			continue;
		if (find(i))
			pr_debug("this kernel has no %s\n", hook->name);
		else
			calls += hook->replaces;
	}
	/* Without these an unmount would go unseen, or writes: then better not at all. */
	for (i = FARWRITE_HOOK_DIO_DONE; i < FARWRITE_CALLS; i++) {
		if (!farwrite_hooks[i].ip && !(farwrite_hooks[i].flags & FARWRITE_HOOK_OPTIONAL)) {
			pr_err("this kernel has no %s to hook\n", farwrite_hooks[i].name);
			return -EOPNOTSUPP;
		}
	}
	return calls ? 0 : -EOPNOTSUPP;
}

/* Only with no reference left: it is off, and nothing is under way. */
void farwrite_replace_exit(void)
{
	unsigned int i;

	cancel_delayed_work_sync(&drain);
	ftrace_free_filter(&ops);
	for (i = 0; i < FILESYSTEMS; i++)
		ftrace_free_filter(&of_filesystem[i]);
}
