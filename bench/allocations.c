// SPDX-License-Identifier: Apache-2.0 OR MIT
// Preloaded into a process: counts its requests for memory. SIGUSR2 writes the number to the file $ALLOCATIONS_TO.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_ulong count;
static const char *to;

void *malloc(size_t n) { count++; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { count++; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { count++; return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { count++; return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { count++; return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { count++; *p = __libc_memalign(a, n); return *p ? 0 : 12; }

// Async-signal-safe: digits by hand, open, write, close.
static void tell(int signal)
{
	char text[24], *at = text + sizeof(text);
	unsigned long n = count;
	int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	(void)signal;
	do *--at = '0' + n % 10; while (n /= 10);
	if (fd >= 0) {
		if (write(fd, at, text + sizeof(text) - at) < 0) {}
		close(fd);
	}
}

__attribute__((constructor)) static void begin(void)
{
	to = getenv("ALLOCATIONS_TO");
	if (to)
		signal(SIGUSR2, tell);
}
