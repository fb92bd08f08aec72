// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does one operation on files, by one certain way into the kernel: what the tests in vm/tests look for in the ring. Linked
 * statically.
 *
 *   act WAY FILE [NUMBER NUMBER | FILE2]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *way, *file, *second = "";
static long offset, length;

static long ok(long result)
{
	if (result < 0) {
		fprintf(stderr, "act %s %s: %s\n", way, file, strerror(errno));
		exit(1);
	}
	return result;
}

static int opened(int flags)
{
	return ok(open(file, flags, 0644));
}

/* `length` bytes that differ from what the last call wrote. */
static char *bytes(void)
{
	char *memory = aligned_alloc(4096, (length + 8191) & ~4095l);

	memset(memory, 'a' + getpid() % 26, length);
	return memory;
}

/* One write through a ring of one's own; `async` leaves it to a worker. */
static void uring(int flags, int async)
{
	struct io_uring_params params = {};
	int ring = ok(syscall(SYS_io_uring_setup, 4, &params)), fd = opened(O_WRONLY | flags);
	char *queue = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *done = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	struct io_uring_cqe *result = (void *)(done + params.cq_off.cqes);

	entries[0] = (struct io_uring_sqe) { .opcode = IORING_OP_WRITE, .fd = fd, .off = offset, .addr = (uint64_t)bytes(),
					     .len = length, .flags = async ? IOSQE_ASYNC : 0 };
	((unsigned *)(queue + params.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	ok(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
	if (result->res != length) {
		fprintf(stderr, "act %s: io_uring wrote %d\n", way, result->res);
		exit(1);
	}
}

static void aio(int flags)
{
	aio_context_t context = 0;
	struct iocb request = { .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = opened(O_WRONLY | flags),
				.aio_buf = (uint64_t)bytes(), .aio_nbytes = length, .aio_offset = offset };
	struct iocb *requests[] = { &request };
	struct io_event event;

	ok(syscall(SYS_io_setup, 4, &context));
	ok(syscall(SYS_io_submit, context, 1, requests));
	ok(syscall(SYS_io_getevents, context, 1, 1, &event, NULL));
	if (event.res != length)
		exit(1);
}

/* `times` stores, each followed by writeback. */
static void map(int times)
{
	int fd = opened(O_RDWR);
	char *memory = mmap(NULL, offset + length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		ok(-1);
	for (int i = 0; i < times; i++) {
		for (long at = offset; at < offset + length; at += 4096)
			((volatile char *)memory)[at]++;
		if (i + 1 < times)
			ok(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
	}
	munmap(memory, offset + length);
}

static void splice_in(void)
{
	int pipes[2], fd = opened(O_WRONLY);
	loff_t at = offset;

	ok(pipe(pipes));
	ok(write(pipes[1], bytes(), length));
	ok(splice(pipes[0], NULL, fd, &at, length, 0));
}

static long int80(long number, long a, long b, long c, long d, long e)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory", "r8", "r9",
			 "r10", "r11");
	if (result < 0) {
		errno = -result;
		return -1;
	}
	return result;
}

/* The memory of a 32-bit call has to lie low. */
static char *low(const char *text)
{
	char *memory = mmap((void *)0x10000000, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (text)
		strcpy(memory, text);
	else
		memset(memory, 'z', 65536);
	return memory;
}

static void acl(void)
{
	/* version 2; user::rw-, user:1234:r--, group::r--, mask::r--, other::--- */
	static const uint32_t VALUE[] = { 2, 0x60001, -1u, 0x40002, 1234, 0x40004, -1u, 0x40010, -1u, 0x00020, -1u };

	ok(setxattr(file, "system.posix_acl_access", VALUE, sizeof(VALUE), 0));
}

static void load(long rounds)
{
	char name[4096], other[4096];

	for (long i = 0; i < rounds; i++) {
		int fd;

		snprintf(name, sizeof(name), "%s-%d-%ld", file, getpid(), i % 7);
		snprintf(other, sizeof(other), "%s-%d-%ld-new", file, getpid(), i % 7);
		fd = ok(open(name, O_RDWR | O_CREAT, 0644));
		ok(pwrite(fd, name, 100, (i % 50) * 4096));
		ok(ftruncate(fd, (i % 11) * 5000));
		ok(fchmod(fd, 0600));
		close(fd);
		ok(rename(name, other));
		ok(chmod(other, 0644));
		ok(unlink(other));
	}
}

/* A file whose path from here is longer than any record holds. */
static void deep(void)
{
	char name[251];

	memset(name, 'x', 250);
	name[250] = 0;
	ok(chdir(file));
	for (int i = 0; i < 20; i++) {
		ok(mkdir(name, 0755));
		ok(chdir(name));
	}
	file = "last";
	ok(pwrite(opened(O_WRONLY | O_CREAT), "ab", 2, 1));
}

static const struct {
	const char *name;
	int mode;
} MODES[] = {
	{ "allocate", 0 },
	{ "allocate-keep", FALLOC_FL_KEEP_SIZE },
	{ "punch", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE },
	{ "zero", FALLOC_FL_ZERO_RANGE },
	{ "collapse", FALLOC_FL_COLLAPSE_RANGE },
	{ "insert", FALLOC_FL_INSERT_RANGE },
};

int main(int count, char **arguments)
{
	if (count < 3)
		return 2;
	way = arguments[1];
	file = arguments[2];
	if (count > 3) {
		second = arguments[3];
		offset = atol(arguments[3]);
	}
	if (count > 4)
		length = atol(arguments[4]);
#define WAY(name) else if (!strcmp(way, name))
	if (!strcmp(way, "pwrite"))
		ok(pwrite(opened(O_WRONLY | O_CREAT), bytes(), length, offset));
	WAY("write") {
		int fd = opened(O_WRONLY);
		ok(lseek(fd, offset, SEEK_SET));
		ok(write(fd, bytes(), length));
	}
	WAY("append") ok(write(opened(O_WRONLY | O_APPEND), bytes(), length));
	WAY("many") {
		int fd = opened(O_WRONLY);
		char *memory;
		long rounds = length;
		length = 4096;
		memory = bytes();
		for (long i = 0; i < rounds; i++)
			ok(pwrite(fd, memory, 4096, offset));
	}
	WAY("cost") {
		/* Nanoseconds of each of `length` writes of 4 KiB; with vm/run --icount, instructions. */
		int fd = opened(O_WRONLY | O_CREAT);
		struct timespec begin, end;
		long rounds = length;
		char *memory;
		length = 4096;
		memory = bytes();
		for (long i = 0; i < rounds + 100; i++) {
			if (i == 100)
				clock_gettime(CLOCK_MONOTONIC, &begin);
			ok(pwrite(fd, memory, 4096, offset));
		}
		clock_gettime(CLOCK_MONOTONIC, &end);
		printf("%ld\n", ((end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec) / rounds);
	}
	WAY("writev") {
		int fd = opened(O_WRONLY);
		struct iovec parts[] = { { bytes(), length / 2 }, { bytes(), length - length / 2 } };
		ok(lseek(fd, offset, SEEK_SET));
		ok(writev(fd, parts, 2));
	}
	WAY("pwritev2") {
		struct iovec part = { bytes(), length };
		ok(pwritev2(opened(O_WRONLY), &part, 1, offset, RWF_DSYNC));
	}
	WAY("pwritev2-append") {
		struct iovec part = { bytes(), length };
		ok(pwritev2(opened(O_WRONLY), &part, 1, 0, RWF_APPEND));
	}
	WAY("direct") ok(pwrite(opened(O_WRONLY | O_DIRECT), bytes(), length, offset));
	WAY("aio") aio(0);
	WAY("aio-direct") aio(O_DIRECT);
	WAY("uring") uring(0, 0);
	WAY("uring-worker") uring(0, 1);
	WAY("uring-direct") uring(O_DIRECT, 0);
	WAY("splice") splice_in();
	WAY("sendfile") ok(sendfile(opened(O_WRONLY), open("/proc/self/exe", O_RDONLY), NULL, length));
	WAY("copy") {
		loff_t to = offset;
		ok(copy_file_range(open(arguments[5], O_RDONLY), NULL, opened(O_WRONLY), &to, length, 0));
	}
	WAY("reflink") {
		struct file_clone_range range = { .src_fd = open(arguments[5], O_RDONLY), .src_length = length, .dest_offset = offset };
		ok(ioctl(opened(O_WRONLY), FICLONERANGE, &range));
	}
	WAY("mmap") map(1);
	WAY("mmap-again") map(2);
	WAY("mmap-read-first") {
		int fd = opened(O_RDWR);
		volatile char *memory = mmap(NULL, offset + length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		(void)memory[offset];
		memory[offset]++;
	}
	WAY("truncate") ok(truncate(file, offset));
	WAY("ftruncate") ok(ftruncate(opened(O_WRONLY), offset));
	WAY("open-trunc") opened(O_WRONLY | O_TRUNC);
	WAY("creat") ok(creat(file, 0600));
	WAY("openat2") {
		uint64_t how[3] = { O_CREAT | O_WRONLY, 0600, 0 };
		ok(syscall(SYS_openat2, AT_FDCWD, file, how, sizeof(how)));
	}
	WAY("tmpfile") {
		char link[64];
		int fd = opened(O_TMPFILE | O_RDWR);
		ok(write(fd, "nameless", 8));
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		ok(linkat(AT_FDCWD, link, AT_FDCWD, second, AT_SYMLINK_FOLLOW));
		ok(pwrite(fd, "linked", 6, 100));
	}
	WAY("unlinked") {
		int fd = opened(O_RDWR | O_CREAT);
		ok(unlink(file));
		ok(pwrite(fd, "gone", 4, 0));
	}
	WAY("rename") ok(rename(file, second));
	WAY("exchange") ok(syscall(SYS_renameat2, AT_FDCWD, file, AT_FDCWD, second, 2));
	WAY("link") ok(link(file, second));
	WAY("symlink") ok(symlink(second, file));
	WAY("unlink") ok(unlink(file));
	WAY("mkdir") ok(mkdir(file, 0755));
	WAY("rmdir") ok(rmdir(file));
	WAY("mkfifo") ok(mkfifo(file, 0644));
	WAY("chmod") ok(chmod(file, 0640));
	WAY("fchmod") ok(fchmod(opened(O_RDONLY), 0600));
	WAY("chown") ok(chown(file, 1, 2));
	WAY("utimes") {
		struct timespec times[] = { { 1, 2 }, { 3, 4 } };
		ok(utimensat(AT_FDCWD, file, times, 0));
	}
	WAY("setxattr") ok(setxattr(file, "user.test", "value", 5, 0));
	WAY("removexattr") ok(removexattr(file, "user.test"));
	WAY("acl") acl();
	WAY("chattr") {
		int fd = opened(O_RDONLY), flags;
		ok(ioctl(fd, FS_IOC_GETFLAGS, &flags));
		flags |= FS_NOATIME_FL;
		ok(ioctl(fd, FS_IOC_SETFLAGS, &flags));
	}
	WAY("int80-write") {
		int fd = opened(O_WRONLY);
		ok(lseek(fd, offset, SEEK_SET));
		ok(int80(4, fd, (long)low(NULL), length, 0, 0));
	}
	WAY("int80-pwrite") ok(int80(181, opened(O_WRONLY), (long)low(NULL), length, offset, 0));
	WAY("int80-ftruncate") ok(int80(93, opened(O_WRONLY), offset, 0, 0, 0));
	WAY("int80-mkdir") ok(int80(39, (long)low(file), 0755, 0, 0, 0));
	WAY("int80-open") ok(int80(5, (long)low(file), O_CREAT | O_WRONLY, 0644, 0, 0));
	WAY("load") load(offset);
	WAY("deep") deep();
	else {
		for (unsigned int i = 0; i < sizeof(MODES) / sizeof(*MODES); i++)
			if (!strcmp(way, MODES[i].name)) {
				ok(fallocate(opened(O_WRONLY), MODES[i].mode, offset, length));
				return 0;
			}
		fprintf(stderr, "act: unknown way %s\n", way);
		return 2;
	}
	return 0;
}
