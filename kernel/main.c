// SPDX-License-Identifier: GPL-2.0-only
/*
 * farwrite.ko: the loadable kernel module of Farwrite. Tells a daemon which files below watched directories were changed, and
 * which bytes of them. Changes nothing, holds nobody up. This file: the device /dev/farwrite (../uapi/farwrite.h), its requests,
 * loading and unloading.
 */
#include "farwrite.h"

#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/log2.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/nospec.h>
#include <linux/random.h>
#include <linux/uaccess.h>

#define RING_BYTES_MIN	(64UL << 10)
#define RING_BYTES_MAX	(1UL << 30)

static unsigned long ring_bytes = 16UL << 20;
module_param(ring_bytes, ulong, 0444);
MODULE_PARM_DESC(ring_bytes, "bytes of the ring that holds records until they are released: a power of two, 64 KiB to 1 GiB");

static u8 instance[16];

/* Everything that a request changes, but for the ring. */
static DEFINE_MUTEX(control);
static struct file *consumer;
static u32 consumer_pid;

static bool is_consumer(const struct file *file)
{
	return consumer == file;
}

static int request_info(void __user *to)
{
	struct farwrite_info info = {
		.abi = FARWRITE_ABI,
		.on = farwrite_replace_is_on(),
		.epoch = farwrite_replace_epoch(),
		.roots = farwrite_roots_count(),
		.consumer = consumer_pid,
		.counters = farwrite_hook_count,
	};

	memcpy(info.instance, instance, sizeof(instance));
	farwrite_ring_info(&info);
	farwrite_replace_count(&info.replaced, &info.hooked);
	return copy_to_user(to, &info, sizeof(info)) ? -EFAULT : 0;
}

static int request_counter(void __user *to)
{
	struct farwrite_counter counter = {};
	const struct farwrite_hook *hook;
	int cpu;

	if (copy_from_user(&counter.index, to, sizeof(counter.index)))
		return -EFAULT;
	if (counter.index >= farwrite_hook_count)
		return -ENODEV;
	hook = &farwrite_hooks[array_index_nospec(counter.index, farwrite_hook_count)];
	for_each_possible_cpu(cpu)
		counter.seen += per_cpu(farwrite_seen[counter.index], cpu);
	counter.replaces = hook->replaces;
	counter.recorded = READ_ONCE(hook->recorded);
	counter.dropped = READ_ONCE(hook->dropped);
	strscpy(counter.name, hook->name, sizeof(counter.name));
	return copy_to_user(to, &counter, sizeof(counter)) ? -EFAULT : 0;
}

static int request_attach(struct file *file)
{
	if (consumer)
		return is_consumer(file) ? 0 : -EBUSY;
	consumer = file;
	consumer_pid = task_tgid_nr(current);
	farwrite_ring_attach();
	return 0;
}

static int request_watch(void __user *to)
{
	struct farwrite_watch watch;
	struct file *directory;
	int error;

	if (copy_from_user(&watch, to, sizeof(watch)))
		return -EFAULT;
	if (watch.reserved)
		return -EINVAL;
	if (!farwrite_replace_is_on())
		return -ENOTCONN;
	directory = fget_raw(watch.dirfd);
	if (!directory)
		return -EBADF;
	error = farwrite_roots_watch(&watch, directory);
	fput(directory);
	if (error)
		return error;
	return copy_to_user(to, &watch, sizeof(watch)) ? -EFAULT : 0;
}

static int request_switch(unsigned long argument)
{
	if (argument > 1)
		return -EINVAL;
	if (argument)
		return farwrite_replace_on();
	farwrite_roots_forget();
	farwrite_replace_off();
	return 0;
}

static int request_position(void __user *from, int (*to)(u64 position))
{
	u64 position;

	if (copy_from_user(&position, from, sizeof(position)))
		return -EFAULT;
	return to(position);
}

static long request(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *pointer = (void __user *)argument;

	switch (command) {
	case FARWRITE_IOC_INFO:
		return request_info(pointer);
	case FARWRITE_IOC_COUNTER:
		return request_counter(pointer);
	case FARWRITE_IOC_ATTACH:
		return request_attach(file);
	case FARWRITE_IOC_WATCH:
		return is_consumer(file) ? request_watch(pointer) : -EPERM;
	case FARWRITE_IOC_UNWATCH:
		if (!is_consumer(file))
			return -EPERM;
		return argument < FARWRITE_ROOTS_MAX ? farwrite_roots_unwatch(argument) : -ENODEV;
	case FARWRITE_IOC_SWITCH:
		return is_consumer(file) ? request_switch(argument) : -EPERM;
	case FARWRITE_IOC_RELEASE:
		return is_consumer(file) ? request_position(pointer, farwrite_ring_release) : -EPERM;
	case FARWRITE_IOC_SEEN:
		return is_consumer(file) ? request_position(pointer, farwrite_ring_seen) : -EPERM;
	default:
		return -ENOTTY;
	}
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	long result = mutex_lock_killable(&control);

	if (result)
		return result;
	result = request(file, command, argument);
	mutex_unlock(&control);
	return result;
}

static int device_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

/* Recording goes on: it is for the next consumer. */
static int device_release(struct inode *inode, struct file *file)
{
	mutex_lock(&control);
	if (is_consumer(file)) {
		consumer = NULL;
		consumer_pid = 0;
	}
	mutex_unlock(&control);
	return 0;
}

static int device_mmap(struct file *file, struct vm_area_struct *vma)
{
	return farwrite_ring_mmap(vma);
}

static __poll_t device_poll(struct file *file, struct poll_table_struct *table)
{
	return farwrite_ring_poll(file, table);
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = device_mmap,
	.poll = device_poll,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "farwrite",
	.fops = &device_operations,
	.mode = 0600,
};

static int module_event(struct notifier_block *block, unsigned long event, void *module)
{
	if (event == MODULE_STATE_GOING && module != THIS_MODULE) {
		mutex_lock(&control);
		farwrite_replace_module_gone(module);
		mutex_unlock(&control);
	}
	return NOTIFY_DONE;
}

static struct notifier_block module_notifier = { .notifier_call = module_event };

static int __init farwrite_init(void)
{
	int error;

	if (!is_power_of_2(ring_bytes) || ring_bytes < RING_BYTES_MIN || ring_bytes > RING_BYTES_MAX) {
		pr_err("ring_bytes=%lu is not a power of two from %lu to %lu\n", ring_bytes, RING_BYTES_MIN, RING_BYTES_MAX);
		return -EINVAL;
	}
	get_random_bytes(instance, sizeof(instance));
	error = farwrite_ring_init(ring_bytes);
	if (error)
		return error;
	error = farwrite_replace_init();
	if (error)
		goto ring;
	error = register_module_notifier(&module_notifier);
	if (error)
		goto replace;
	error = misc_register(&device);
	if (error)
		goto notifier;
	pr_info("loaded, switched off\n");
	return 0;

notifier:
	unregister_module_notifier(&module_notifier);
replace:
	farwrite_replace_exit();
ring:
	farwrite_ring_exit();
	return error;
}

/* It is off, no file is open and no call under way: each of these holds a reference. */
static void __exit farwrite_exit(void)
{
	misc_deregister(&device);
	unregister_module_notifier(&module_notifier);
	farwrite_replace_exit();
	farwrite_ring_exit();
}

module_init(farwrite_init);
module_exit(farwrite_exit);

MODULE_DESCRIPTION("Farwrite: tells which files were changed, and where");
MODULE_AUTHOR("The Farwrite authors");
MODULE_LICENSE("GPL");
