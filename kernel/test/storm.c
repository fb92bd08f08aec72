// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes a tree at random, in every way that a program can: for tests that compare the backup with it afterwards. Linked
 * statically.
 *
 *   storm DIR SEED OPERATIONS      writes, appends, stores through mappings, truncations, holes, names, attributes
 *   storm DIR append COUNT BYTES   COUNT appends of BYTES bytes to one file
 *   storm DIR fill BYTES           a file of that many bytes that do not compress
 *   storm DIR poke OFFSET          4096 bytes at that offset of that file
 *   storm DIR hold FILE BYTES      stores BYTES bytes at the beginning of that file through a mapping, says "stored", and
 *                                  keeps it open and mapped until it is killed
 *   storm DIR same FILE OTHER      changes nothing: exits with 1 unless both have the same size and bytes; holes cost nothing
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NAMES 40
#define LARGE (8l << 20)

static uint64_t state;

/* SplitMix64. */
static uint64_t any(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static long below(long n)
{
	return any() % (n > 0 ? n : 1);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static char buffer[1 << 20];

static void fill(long length)
{
	for (long i = 0; i < length; i += 8) {
		uint64_t word = any();

		memcpy(buffer + i, &word, 8);
	}
}

/* One of a few names, in one of a few directories that may not be there. */
static const char *name(void)
{
	static char names[4][64];
	static int turn;
	char *path = names[turn++ % 4];

	if (below(3))
		snprintf(path, 64, "d%ld/n%ld", below(6), below(NAMES));
	else
		snprintf(path, 64, "n%ld", below(NAMES));
	return path;
}

static void store(int fd, long size)
{
	long at = below(size), length = 1 + below(size - at < 20000 ? size - at : 20000);
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		return;
	fill(length);
	/* In pieces, so that the reader comes in between; now and then again to a page that is writable already. */
	for (long done = 0; done < length; done += 3000) {
		long piece = length - done < 3000 ? length - done : 3000;

		memcpy(memory + at + done, buffer + done, piece);
		if (!below(4))
			usleep(below(3000));
		memory[at + done] ^= 1;
	}
	if (!below(3))
		msync(memory, size, MS_ASYNC);
	munmap(memory, size);
}

static void change(int fd)
{
	struct stat st;
	long length = 1 + below(30000);

	if (fstat(fd, &st))
		die("fstat");
	fill(length);
	switch (below(7)) {
	case 0:
	case 1:
		if (pwrite(fd, buffer, length, below(below(8) ? st.st_size + 10000 : LARGE)) < 0)
			die("pwrite");
		break;
	case 2:
		lseek(fd, 0, SEEK_END);
		if (write(fd, buffer, length % 500) < 0)
			die("write");
		break;
	case 3:
		if (ftruncate(fd, below(st.st_size * 2 + 100)))
			die("ftruncate");
		break;
	case 4:
		/* Not on every filesystem. */
		(void)!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, below(st.st_size + 1), length);
		break;
	default:
		if (st.st_size > 0)
			store(fd, st.st_size);
	}
}

static void step(void)
{
	const char *a = name(), *b = name();
	char path[64];
	int fd;

	switch (below(16)) {
	case 0:
		snprintf(path, sizeof(path), "d%ld", below(6));
		mkdir(path, 0755);
		break;
	case 1:
		unlink(a);
		break;
	case 2:
		rename(a, b);
		break;
	case 3:
		renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
		break;
	case 4:
		link(a, b);
		break;
	case 5:
		(void)!symlink("some/where", a);
		break;
	case 6:
		(void)!chmod(a, 0600 + below(0200));
		setxattr(a, "user.x", "value", below(5), 0);
		break;
	case 7:
		snprintf(path, sizeof(path), "d%ld", below(6));
		rename(path, "moved");
		rename("moved", path[1] == '0' ? "d1" : "d0");
		rename("moved", path);
		break;
	case 8:
		fd = open(".", O_TMPFILE | O_RDWR, 0644);
		if (fd >= 0) {
			fill(5000);
			if (write(fd, buffer, below(5000)) < 0)
				die("write");
			snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
			linkat(AT_FDCWD, path, AT_FDCWD, a, AT_SYMLINK_FOLLOW);
			close(fd);
		}
		break;
	case 9:
		/* Save as temporary, rename over. */
		fd = open("temporary", O_CREAT | O_TRUNC | O_RDWR, 0644);
		if (fd >= 0) {
			fill(9000);
			if (write(fd, buffer, below(9000)) < 0)
				die("write");
			close(fd);
			rename("temporary", a);
		}
		break;
	default:
		/* Neither through a link that leads nowhere nor into a fifo. */
		fd = open(a, O_CREAT | O_RDWR | O_NOFOLLOW, 0644);
		if (fd >= 0) {
			change(fd);
			close(fd);
		}
	}
}

/* Where there is data at or after at, or the size. */
static off_t data(int fd, off_t at, off_t size)
{
	off_t found = lseek(fd, at, SEEK_DATA);

	if (found < 0 && errno != ENXIO)
		die("lseek");
	return found < 0 ? size : found;
}

static int same(const char *one, const char *two)
{
	static char other[sizeof(buffer)];
	int a = open(one, O_RDONLY), b = open(two, O_RDONLY);
	struct stat of_a, of_b;

	if (a < 0 || b < 0 || fstat(a, &of_a) || fstat(b, &of_b))
		die("open");
	if (of_a.st_size != of_b.st_size)
		return 0;
	for (off_t at = 0, size = of_a.st_size; at < size;) {
		off_t in_a = data(a, at, size), in_b = data(b, at, size);
		ssize_t length;

		at = in_a < in_b ? in_a : in_b;
		length = pread(a, buffer, sizeof(buffer), at);
		if (length != pread(b, other, sizeof(other), at) || length < 0)
			die("read");
		if (memcmp(buffer, other, length))
			return 0;
		at += length;
	}
	return 1;
}

static void hold(const char *file, long bytes)
{
	int fd = open(file, O_RDWR);
	char *memory = fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		die(file);
	fill(bytes);
	memcpy(memory, buffer, bytes);
	puts("stored");
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc < 4 || chdir(argv[1]))
		die("storm DIR SEED|append|fill|poke NUMBER [BYTES], or storm DIR same FILE OTHER, or storm DIR hold FILE BYTES");
	if (!strcmp(argv[2], "same"))
		return argc < 5 || !same(argv[3], argv[4]);
	if (!strcmp(argv[2], "hold") && argc > 4 && atol(argv[4]) <= (long)sizeof(buffer))
		hold(argv[3], atol(argv[4]));
	if (!strcmp(argv[2], "append")) {
		long bytes = argc > 4 ? atol(argv[4]) : 100;
		int fd = open("log", O_CREAT | O_WRONLY | O_APPEND, 0644);

		for (long i = 0; i < atol(argv[3]); i++) {
			fill(bytes);
			if (write(fd, buffer, bytes) != bytes)
				die("write");
		}
		return 0;
	}
	if (!strcmp(argv[2], "fill") || !strcmp(argv[2], "poke")) {
		int fd = open("large", O_CREAT | O_WRONLY, 0644);
		long number = atol(argv[3]), at = 0;

		state = number;
		if (argv[2][0] == 'p') {
			fill(4096);
			return pwrite(fd, buffer, 4096, number) != 4096;
		}
		for (; at < number; at += sizeof(buffer)) {
			fill(sizeof(buffer));
			if (write(fd, buffer, sizeof(buffer)) != sizeof(buffer))
				die("write");
		}
		return 0;
	}
	state = atol(argv[2]);
	for (long i = 0; i < atol(argv[3]); i++)
		step();
	return 0;
}
