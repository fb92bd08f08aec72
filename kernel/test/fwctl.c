// SPDX-License-Identifier: GPL-2.0-only
/*
 * Talks to the module the way that a daemon does, from shell scripts: the tests in vm/tests use it. Standard C library and
 * ../../uapi/farwrite.h only; linked statically.
 *
 *   fwctl on DIR...      attaches, switches on, watches; prints "root N fresh F" for each; ends, so recording goes on alone
 *   fwctl off            puts the original system calls back
 *   fwctl read [keep]    prints what the ring holds, one record a line, and releases it (or keeps it)
 *   fwctl forget         releases what the ring holds without reading it
 *   fwctl info           prints the module's state
 *   fwctl counters       prints "name seen recorded dropped" for each hook that has seen something
 *   fwctl wait           waits until there is something to read
 *   fwctl hold DIR       attaches and stays attached until standard input ends
 *   fwctl bad DIR        asks for what must be refused, and checks that it is
 *   fwctl fuzz SECONDS SEED  sends requests by chance
 *   fwctl layout         prints size and offset of every field that user space shares
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../uapi/farwrite.h"

#define PAGE 4096u

static void die(const char *what)
{
	fprintf(stderr, "fwctl: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int device(void)
{
	int fd = open(FARWRITE_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("open " FARWRITE_DEVICE);
	return fd;
}

static int attached(void)
{
	int fd = device();

	if (ioctl(fd, FARWRITE_IOC_ATTACH))
		die("attach");
	return fd;
}

static struct farwrite_info info_of(int fd)
{
	struct farwrite_info info;

	if (ioctl(fd, FARWRITE_IOC_INFO, &info))
		die("info");
	return info;
}

static int watch(int fd, const char *path, struct farwrite_watch *watch)
{
	int result;

	*watch = (struct farwrite_watch) { .dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	if (watch->dirfd < 0)
		die(path);
	result = ioctl(fd, FARWRITE_IOC_WATCH, watch);
	close(watch->dirfd);
	return result;
}

static void on(char **paths)
{
	struct farwrite_watch root;
	int fd = attached();

	if (ioctl(fd, FARWRITE_IOC_SWITCH, 1))
		die("switch on");
	for (; *paths; paths++) {
		if (watch(fd, *paths, &root))
			die(*paths);
		printf("root %u fresh %u\n", root.root, root.fresh);
	}
}

static const char *const OPS[] = { "PAD", "CREATE", "DELETE", "RENAME", "EXCHANGE", "WRITE", "MMAP", "TRUNCATE", "ATTRIB", "LOST",
				   "GONE" };
static const char *const FLAGS[] = { "CUT", "LEAF", "IDENTITY", "TO_EOF", "DIR", "OVER", "SHARED", "XATTR", "ACL", "HOLE",
				     "COMPAT", "TMPFILE", "MOVED" };

static void print(const struct farwrite_record *record)
{
	const char *path = (const char *)(record + 1);
	unsigned int i;

	printf("%s root=%d", record->op < 11 ? OPS[record->op] : "?", record->root == FARWRITE_ROOT_NONE ? -1 : record->root);
	printf(" path=%.*s", record->path_len, path);
	if (record->op == FARWRITE_OP_RENAME || record->op == FARWRITE_OP_EXCHANGE)
		printf(" to=%.*s", record->to_path_len, path + record->path_len);
	printf(" at=%" PRIu64 "+%" PRId64 " result=%" PRId64, (uint64_t)record->offset, (int64_t)record->length,
	       (int64_t)record->result);
	printf(" call=%d flags=", record->call == FARWRITE_CALL_NONE ? -1 : record->call);
	for (i = 0; i < 13; i++)
		if (record->flags & (1u << i))
			printf("%s,", FLAGS[i]);
	printf(" ino=%" PRIu64 " parent=%" PRIu64 " hook=%d pid=%u\n", (uint64_t)record->ino, (uint64_t)record->parent,
	       (int16_t)record->hook, record->pid);
}

/* Checks what every record must be, and prints it. Returns its size. */
static uint32_t check(const struct farwrite_record *record, uint64_t left)
{
	static const char zeros[8];
	uint32_t used;

	if (record->size < 8 || record->size % 8 || record->size > left || record->version != FARWRITE_ABI) {
		fprintf(stderr, "fwctl: not a record: size %u, version %u, %" PRIu64 " bytes left\n", record->size, record->version,
			(uint64_t)left);
		exit(1);
	}
	if (record->op == FARWRITE_OP_PAD)
		return record->size;
	used = sizeof(*record) + record->path_len + record->to_path_len;
	if (used > record->size || record->size - used >= 8 || memcmp((const char *)record + used, zeros, record->size - used)) {
		fprintf(stderr, "fwctl: a record of %u bytes uses %u\n", record->size, used);
		exit(1);
	}
	print(record);
	return record->size;
}

static void read_all(bool keep)
{
	int fd = attached();
	struct farwrite_info info = info_of(fd);
	const struct farwrite_ring *ring = mmap(NULL, PAGE + info.ring_bytes, PROT_READ, MAP_SHARED, fd, 0);
	const char *data = (const char *)ring + PAGE;
	uint64_t at, head;

	if (ring == MAP_FAILED)
		die("mmap");
	head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
	for (at = ring->tail; at < head;) {
		uint64_t start = at & (info.ring_bytes - 1), end = info.ring_bytes - start;

		at += check((const struct farwrite_record *)(data + start), head - at < end ? head - at : end);
	}
	if (!keep && ioctl(fd, FARWRITE_IOC_RELEASE, &head))
		die("release");
}

static void info(void)
{
	struct farwrite_info info = info_of(device());

	printf("abi=%u on=%u epoch=%" PRIu64 " ring_bytes=%" PRIu64 " head=%" PRIu64 " tail=%" PRIu64 " dropped=%" PRIu64
	       " next_seq=%" PRIu64 " replaced=%u hooked=%u roots=%u consumer=%u counters=%u\n",
	       info.abi, info.on, (uint64_t)info.epoch, (uint64_t)info.ring_bytes, (uint64_t)info.head, (uint64_t)info.tail,
	       (uint64_t)info.dropped, (uint64_t)info.next_seq, info.replaced, info.hooked, info.roots, info.consumer, info.counters);
}

static void counters(void)
{
	struct farwrite_counter counter = { .index = 0 };
	int fd = device();

	for (; !ioctl(fd, FARWRITE_IOC_COUNTER, &counter); counter.index++)
		if (counter.seen)
			printf("%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", counter.name, (uint64_t)counter.seen,
			       (uint64_t)counter.recorded, (uint64_t)counter.dropped);
	if (errno != ENODEV)
		die("counter");
}

static void wait_readable(void)
{
	struct pollfd poller = { .fd = attached(), .events = POLLIN };

	if (poll(&poller, 1, 20000) != 1 || !(poller.revents & POLLIN)) {
		fprintf(stderr, "fwctl: nothing came\n");
		exit(1);
	}
}

/* ---- what must be refused ---------------------------------------------------------------------------------------------- */

static void refused(const char *what, long result, int expected)
{
	if (result != -1 || errno != expected) {
		fprintf(stderr, "fwctl: %s: %ld, %s; expected %s\n", what, result, strerror(errno), strerror(expected));
		exit(1);
	}
}

static void bad(const char *directory)
{
	int fd = attached(), other = device(), file = open("/proc/self/exe", O_RDONLY);
	struct farwrite_watch root = { .dirfd = -1 };
	struct farwrite_info info = info_of(fd);
	uint64_t position = info.head + 8;
	size_t all = PAGE + info.ring_bytes;
	void *wild = (void *)0xffff888000000000ul, *unmapped = (void *)8;

	refused("a request of another magic", ioctl(fd, _IO('x', 1)), ENOTTY);
	refused("a number beyond the last", ioctl(fd, _IO(FARWRITE_IOC_MAGIC, 99)), ENOTTY);
	refused("a size that is not its own", ioctl(fd, _IOR(FARWRITE_IOC_MAGIC, 0, char)), ENOTTY);
	refused("info to a kernel address", ioctl(fd, FARWRITE_IOC_INFO, wild), EFAULT);
	refused("info to nowhere", ioctl(fd, FARWRITE_IOC_INFO, unmapped), EFAULT);
	refused("counter from nowhere", ioctl(fd, FARWRITE_IOC_COUNTER, unmapped), EFAULT);
	refused("watch from a kernel address", ioctl(fd, FARWRITE_IOC_WATCH, wild), EFAULT);
	refused("release from nowhere", ioctl(fd, FARWRITE_IOC_RELEASE, unmapped), EFAULT);
	refused("release of a part of a record", ioctl(fd, FARWRITE_IOC_RELEASE, &(uint64_t){ info.tail + 3 }), EINVAL);
	refused("release beyond the head", ioctl(fd, FARWRITE_IOC_RELEASE, &position), EINVAL);
	refused("seen beyond the head", ioctl(fd, FARWRITE_IOC_SEEN, &position), EINVAL);
	refused("a switch that is neither on nor off", ioctl(fd, FARWRITE_IOC_SWITCH, 2), EINVAL);
	refused("a second consumer", ioctl(other, FARWRITE_IOC_ATTACH), EBUSY);
	refused("a switch by another", ioctl(other, FARWRITE_IOC_SWITCH, 0), EPERM);
	refused("a release by another", ioctl(other, FARWRITE_IOC_RELEASE, &info.tail), EPERM);
	refused("a watch by another", ioctl(other, FARWRITE_IOC_WATCH, &root), EPERM);
	refused("an unwatch by another", ioctl(other, FARWRITE_IOC_UNWATCH, 0), EPERM);
	refused("to watch while off", ioctl(fd, FARWRITE_IOC_WATCH, &root), ENOTCONN);
	if (ioctl(fd, FARWRITE_IOC_SWITCH, 1))
		die("switch on");
	refused("to watch no descriptor", ioctl(fd, FARWRITE_IOC_WATCH, &root), EBADF);
	root.dirfd = file;
	refused("to watch a file", ioctl(fd, FARWRITE_IOC_WATCH, &root), ENOTDIR);
	refused("to watch proc", watch(fd, "/proc", &root), EOPNOTSUPP);
	refused("to unwatch what is not watched", ioctl(fd, FARWRITE_IOC_UNWATCH, 63), ENODEV);
	refused("to unwatch a number beyond all", ioctl(fd, FARWRITE_IOC_UNWATCH, 1000000), ENODEV);
	if (watch(fd, directory, &root) || !root.fresh || watch(fd, directory, &root) || root.fresh)
		die("to watch the same twice");
	if (ioctl(fd, FARWRITE_IOC_UNWATCH, root.root))
		die("unwatch");
	refused("to unwatch it twice", ioctl(fd, FARWRITE_IOC_UNWATCH, root.root), ENODEV);
	refused("to map it writable", (long)mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), EPERM);
	refused("to map more than there is", (long)mmap(NULL, all + PAGE, PROT_READ, MAP_SHARED, fd, 0), EINVAL);
	refused("to map from the middle", (long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE), EINVAL);
	{
		void *map = mmap(NULL, all, PROT_READ, MAP_SHARED, fd, 0);

		if (map == MAP_FAILED)
			die("mmap");
		refused("to make the mapping writable", mprotect(map, all, PROT_READ | PROT_WRITE), EACCES);
		refused("to make it executable", mprotect(map, all, PROT_READ | PROT_EXEC), EACCES);
	}
	refused("to read(2)", read(fd, &info, sizeof(info)), EINVAL);
	refused("to write(2)", write(fd, &info, sizeof(info)), EINVAL);
	if (ioctl(fd, FARWRITE_IOC_SWITCH, 0))
		die("switch off");
	if (setuid(65534))
		die("setuid");
	refused("to open it unprivileged", open(FARWRITE_DEVICE, O_RDWR), EACCES);
	puts("all refused");
}

/* ---- chance -------------------------------------------------------------------------------------------------------------- */

static uint64_t state;
static uint64_t chance(uint64_t below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (state >> 33) % below;
}

static void fuzz(unsigned int seconds, uint64_t seed)
{
	static const unsigned long PLACES[] = { 0, 1, 7, 8, 4095, 4096, 0x7ffffffff000, 0x7fffffffffff, 0x800000000000,
						0xffff888000000000, 0xffffffff81000000, ~0ul };
	time_t end = time(NULL) + seconds;
	char buffer[512];
	uint64_t calls = 0;
	int fds[3];

	state = seed;
	for (unsigned int i = 0; i < 3; i++)
		fds[i] = device();
	ioctl(fds[0], FARWRITE_IOC_ATTACH);
	while (time(NULL) < end) {
		for (unsigned int i = 0; i < 1000; i++, calls++) {
			unsigned int number = chance(10), size = chance(2) ? 0 : chance(160);
			unsigned long request = chance(8) ? 0 : chance(1ul << 32), argument;
			static const unsigned long KNOWN[] = { FARWRITE_IOC_INFO, FARWRITE_IOC_COUNTER, FARWRITE_IOC_ATTACH,
				FARWRITE_IOC_WATCH, FARWRITE_IOC_UNWATCH, FARWRITE_IOC_RELEASE, FARWRITE_IOC_SEEN };

			for (unsigned int k = 0; k < sizeof(buffer); k++)
				buffer[k] = chance(3) ? 0 : chance(256);
			if (!chance(4))
				*(int *)buffer = open(chance(2) ? "/mnt/ext4" : "/proc", O_RDONLY | O_CLOEXEC);
			if (!request)
				request = chance(4) ? KNOWN[chance(7)] : _IOC(chance(4), FARWRITE_IOC_MAGIC, number, size);
			/* On and off take a tenth of a second each. */
			if (!chance(2000))
				request = FARWRITE_IOC_SWITCH;
			argument = chance(3) ? (unsigned long)buffer : chance(2) ? PLACES[chance(12)] : chance(70);
			ioctl(fds[chance(3)], request, argument);
			for (int fd = fds[2] + 1; fd < 64; fd++)
				close(fd);
		}
	}
	printf("fuzzed: %" PRIu64 " requests, seed %" PRIu64 "\n", calls, seed);
}

/* ---- layout -------------------------------------------------------------------------------------------------------------- */

#define SIZE(type)		printf("%s %zu\n", #type, sizeof(struct type))
#define FIELD(type, name)	printf("%s.%s %zu\n", #type, #name, offsetof(struct type, name))
static void layout(void)
{
	SIZE(farwrite_record);
	FIELD(farwrite_record, size);
	FIELD(farwrite_record, version);
	FIELD(farwrite_record, op);
	FIELD(farwrite_record, seq);
	FIELD(farwrite_record, time);
	FIELD(farwrite_record, ino);
	FIELD(farwrite_record, parent);
	FIELD(farwrite_record, to_parent);
	FIELD(farwrite_record, offset);
	FIELD(farwrite_record, length);
	FIELD(farwrite_record, result);
	FIELD(farwrite_record, dev);
	FIELD(farwrite_record, generation);
	FIELD(farwrite_record, flags);
	FIELD(farwrite_record, pid);
	FIELD(farwrite_record, tid);
	FIELD(farwrite_record, root);
	FIELD(farwrite_record, call);
	FIELD(farwrite_record, hook);
	FIELD(farwrite_record, path_len);
	FIELD(farwrite_record, to_path_len);
	FIELD(farwrite_record, reserved);
	SIZE(farwrite_ring);
	FIELD(farwrite_ring, head);
	FIELD(farwrite_ring, tail);
	FIELD(farwrite_ring, dropped);
	FIELD(farwrite_ring, recorded);
	FIELD(farwrite_ring, lost);
	FIELD(farwrite_ring, lost_roots);
	SIZE(farwrite_info);
	FIELD(farwrite_info, abi);
	FIELD(farwrite_info, on);
	FIELD(farwrite_info, instance);
	FIELD(farwrite_info, epoch);
	FIELD(farwrite_info, ring_bytes);
	FIELD(farwrite_info, head);
	FIELD(farwrite_info, tail);
	FIELD(farwrite_info, dropped);
	FIELD(farwrite_info, next_seq);
	FIELD(farwrite_info, replaced);
	FIELD(farwrite_info, hooked);
	FIELD(farwrite_info, roots);
	FIELD(farwrite_info, consumer);
	FIELD(farwrite_info, counters);
	FIELD(farwrite_info, reserved);
	SIZE(farwrite_watch);
	FIELD(farwrite_watch, dirfd);
	FIELD(farwrite_watch, root);
	FIELD(farwrite_watch, fresh);
	FIELD(farwrite_watch, dev);
	FIELD(farwrite_watch, reserved);
	FIELD(farwrite_watch, ino);
	SIZE(farwrite_counter);
	FIELD(farwrite_counter, index);
	FIELD(farwrite_counter, replaces);
	FIELD(farwrite_counter, seen);
	FIELD(farwrite_counter, recorded);
	FIELD(farwrite_counter, dropped);
	FIELD(farwrite_counter, name);
#define NUMBER(name) printf("%s %lu\n", #name, (unsigned long)name)
	NUMBER(FARWRITE_IOC_INFO);
	NUMBER(FARWRITE_IOC_COUNTER);
	NUMBER(FARWRITE_IOC_ATTACH);
	NUMBER(FARWRITE_IOC_WATCH);
	NUMBER(FARWRITE_IOC_UNWATCH);
	NUMBER(FARWRITE_IOC_SWITCH);
	NUMBER(FARWRITE_IOC_RELEASE);
	NUMBER(FARWRITE_IOC_SEEN);
	NUMBER(FARWRITE_ABI);
	NUMBER(FARWRITE_ROOTS_MAX);
	NUMBER(FARWRITE_OP_LOST);
	NUMBER(FARWRITE_OP_GONE);
}

int main(int count, char **arguments)
{
	const char *command = count > 1 ? arguments[1] : "";

	if (!strcmp(command, "on"))
		on(arguments + 2);
	else if (!strcmp(command, "off")) {
		if (ioctl(attached(), FARWRITE_IOC_SWITCH, 0))
			die("switch off");
	} else if (!strcmp(command, "read"))
		read_all(count > 2);
	else if (!strcmp(command, "forget")) {
		int fd = attached();
		uint64_t head = info_of(fd).head;

		if (ioctl(fd, FARWRITE_IOC_RELEASE, &head))
			die("release");
	} else if (!strcmp(command, "info"))
		info();
	else if (!strcmp(command, "counters"))
		counters();
	else if (!strcmp(command, "wait"))
		wait_readable();
	else if (!strcmp(command, "hold")) {
		attached();
		puts("held");
		fflush(stdout);
		while (getchar() != EOF)
			;
	} else if (!strcmp(command, "bad") && count > 2)
		bad(arguments[2]);
	else if (!strcmp(command, "fuzz") && count > 3)
		fuzz(atoi(arguments[2]), strtoull(arguments[3], NULL, 0));
	else if (!strcmp(command, "layout"))
		layout();
	else {
		fprintf(stderr, "fwctl: see the head of fwctl.c\n");
		return 2;
	}
	return 0;
}
