/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded into an agent: the process dies at a call that its engine makes
 * on the files of a mirror, before or after what the call does. So the engine
 * is the one that is delivered; a build of its own would not be.
 *
 * die_after(n, path): at the n-th such point from now on. Its name, as in
 * mirror/CRASHES.rst, is then found in the file at path.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long left;
static char report[4096];

void die_after(long count, const char *path)
{
	snprintf(report, sizeof report, "%s", path);
	atomic_store(&left, count);
}

static void point(const char *when, int fd, const char *verb)
{
	char link[64], path[4096], line[5000];
	ssize_t length;
	int out;

	if (atomic_load(&left) <= 0)
		return;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (length < 0)
		return;
	path[length] = 0;
	if (!strstr(path, "/mirrors/") || atomic_fetch_sub(&left, 1) != 1)
		return;
	length = snprintf(line, sizeof line, "%s %s.%s", when,
			  strrchr(path, '/') + 1, verb);
	out = open(report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (out < 0 || write(out, line, length) != length)
		_exit(70);
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

#define AROUND(type, name, fd, verb, parameters, ...)                    \
	type name parameters                                              \
	{                                                                 \
		static type(*next) parameters;                            \
		type result;                                              \
		if (!next)                                                \
			*(void **)&next = dlsym(RTLD_NEXT, #name);        \
		point("before", fd, verb);                                \
		result = next(__VA_ARGS__);                               \
		point("after", fd, verb);                                 \
		return result;                                            \
	}

AROUND(ssize_t, pwrite64, fd, "write",
       (int fd, const void *bytes, size_t count, off64_t offset),
       fd, bytes, count, offset)
AROUND(int, fdatasync, fd, "sync", (int fd), fd)
AROUND(int, ftruncate64, fd, "resize", (int fd, off64_t length), fd, length)
AROUND(int, fallocate64, fd, mode & 2 ? "punch" : "extend",
       (int fd, int mode, off64_t offset, off64_t length),
       fd, mode, offset, length)
AROUND(int, sync_file_range, fd, "arrived",
       (int fd, off64_t offset, off64_t length, unsigned int flags),
       fd, offset, length, flags)
