/* What a system can do to a program, on demand: preloaded into a merge by the crash tests.
 *
 * faults_arm() says which calls count (by kind, and by a part of the file's path), at which of them the fault happens,
 * and what it is. Nothing happens before, and calls of other files are never touched. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1, WRITE = 2, SYNC = 4, RENAME = 8, REMOVE = 16, OPEN = 32, MAKE = 64, RESERVE = 128 };
enum { NOTHING, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM, ONE_BYTE, INTERRUPT, PAUSE };

static int kinds, action, number, jumping;
static long at;
static char part[4096];
static atomic_long count, ticks;

void faults_arm(int kinds_, const char *part_, long at_, int action_, int number_) {
    strncpy(part, part_, sizeof part - 1);
    at = at_, action = action_, number = number_, count = 0;
    kinds = kinds_;
}

long faults_count(void) { return count; }

void faults_jump(void) { jumping = 1; }

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* The number of this call, if it counts; else 0. */
static long counted(int kind, int fd, const char *path) {
    char link[64], found[4096];
    if (!(kinds & kind)) return 0;
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, found, sizeof found - 1);
        if (n < 0) return 0;
        found[n] = 0, path = found;
    }
    return strstr(path, part) ? atomic_fetch_add(&count, 1) + 1 : 0;
}

/* What is to happen before the call: -1 to fail, 1 to move one byte only, 0 to go on. */
static int before(long n) {
    if (!n) return 0;
    if (action == KILL_BEFORE && n == at) kill(getpid(), SIGKILL);
    if (action == PAUSE && n == at) kill(getpid(), SIGSTOP);
    if ((action == FAIL_ONCE && n == at) || (action == FAIL_FROM && n >= at)) return errno = number, -1;
    if (action == INTERRUPT && n % 2) return errno = EINTR, -1;
    return action == ONE_BYTE;
}

static void after(long n) {
    if (n && action == KILL_AFTER && n == at) kill(getpid(), SIGKILL);
}

#define WRAPPED(type, failed, kind, fd, path, call) \
    long n = counted(kind, fd, path); \
    if (before(n) < 0) return failed; \
    type result = call; \
    after(n); \
    return result

#define MOVED(kind, full, one) \
    long n = counted(kind, fd, 0); \
    int what = before(n); \
    if (what < 0) return -1; \
    ssize_t result = what ? one : full; \
    after(n); \
    return result

ssize_t read(int fd, void *b, size_t size) {
    REAL(read);
    MOVED(READ, real(fd, b, size), real(fd, b, size ? 1 : 0));
}

ssize_t pread(int fd, void *b, size_t size, off_t o) {
    REAL(pread);
    MOVED(READ, real(fd, b, size, o), real(fd, b, size ? 1 : 0, o));
}

ssize_t pread64(int fd, void *b, size_t size, off64_t o) {
    REAL(pread64);
    MOVED(READ, real(fd, b, size, o), real(fd, b, size ? 1 : 0, o));
}

static ssize_t one_of(int fd, const struct iovec *v, int nv, off64_t o) {
    return nv && v->iov_len ? pread64(fd, v->iov_base, 1, o) : 0;
}

ssize_t preadv(int fd, const struct iovec *v, int nv, off_t o) {
    REAL(preadv);
    MOVED(READ, real(fd, v, nv, o), one_of(fd, v, nv, o));
}

ssize_t preadv64(int fd, const struct iovec *v, int nv, off64_t o) {
    REAL(preadv64);
    MOVED(READ, real(fd, v, nv, o), one_of(fd, v, nv, o));
}

ssize_t preadv64v2(int fd, const struct iovec *v, int nv, off64_t o, int f) {
    REAL(preadv64v2);
    MOVED(READ, real(fd, v, nv, o, f), one_of(fd, v, nv, o));
}

ssize_t write(int fd, const void *b, size_t size) {
    REAL(write);
    MOVED(WRITE, real(fd, b, size), real(fd, b, size ? 1 : 0));
}

ssize_t pwrite(int fd, const void *b, size_t size, off_t o) {
    REAL(pwrite);
    MOVED(WRITE, real(fd, b, size, o), real(fd, b, size ? 1 : 0, o));
}

ssize_t pwrite64(int fd, const void *b, size_t size, off64_t o) {
    REAL(pwrite64);
    MOVED(WRITE, real(fd, b, size, o), real(fd, b, size ? 1 : 0, o));
}

int fsync(int fd) { REAL(fsync); WRAPPED(int, -1, SYNC, fd, 0, real(fd)); }

int rename(const char *a, const char *b) { REAL(rename); WRAPPED(int, -1, RENAME, -1, a, real(a, b)); }

int unlink(const char *a) { REAL(unlink); WRAPPED(int, -1, REMOVE, -1, a, real(a)); }

int unlinkat(int fd, const char *a, int flag) { REAL(unlinkat); WRAPPED(int, -1, REMOVE, fd, 0, real(fd, a, flag)); }

int rmdir(const char *a) { REAL(rmdir); WRAPPED(int, -1, REMOVE, -1, a, real(a)); }

int mkdir(const char *a, mode_t mode) { REAL(mkdir); WRAPPED(int, -1, MAKE, -1, a, real(a, mode)); }

int ftruncate(int fd, off_t size) { REAL(ftruncate); WRAPPED(int, -1, RESERVE, fd, 0, real(fd, size)); }

int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); WRAPPED(int, -1, RESERVE, fd, 0, real(fd, size)); }

/* These return the error instead of setting errno. */
int posix_fallocate(int fd, off_t o, off_t size) {
    REAL(posix_fallocate);
    WRAPPED(int, number, RESERVE, fd, 0, real(fd, o, size));
}

int posix_fallocate64(int fd, off64_t o, off64_t size) {
    REAL(posix_fallocate64);
    WRAPPED(int, number, RESERVE, fd, 0, real(fd, o, size));
}

int open64(const char *a, int flags, ...) {
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    WRAPPED(int, -1, OPEN, -1, a, real(a, flags, mode));
}

int open(const char *a, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open64(a, flags, mode);
}

/* A clock that jumps to and fro by years. */
int clock_gettime(clockid_t clock, struct timespec *t) {
    REAL(clock_gettime);
    int failed = real(clock, t);
    if (jumping && clock == CLOCK_REALTIME && !failed) t->tv_sec += (ticks++ % 7 - 3) * 40000000L;
    return failed;
}
