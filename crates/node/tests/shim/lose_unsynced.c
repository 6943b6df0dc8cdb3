/* A disk that forgets: an LD_PRELOAD layer that keeps, for every file below LOSE_DIR, what was written since its
 * last fsync, and takes it back when the process "loses power". Test code only; see tests/crash.rs.
 *
 *   LOSE_DIR          only files below it are watched
 *   UNDO_DIR          where replaced and removed files are kept meanwhile; same file system, outside LOSE_DIR
 *   LOSE_AT_WRITE=n   before the n-th change: take back what was not synced, then SIGKILL
 *   KEEP_SEED=s       keep a random part of the unsynced changes instead of none (a device that reorders)
 *   EIO_AT_FSYNC=n    the n-th sync fails with EIO (once), and covers nothing
 *   ENOSPC_AT_WRITE=n from the n-th write on, writes fail with ENOSPC
 *   DEAF_SYNC=1       syncs succeed and cover nothing: the store without its fdatasync
 *   EVENTS=path       one line per event: W file offset length [marks], B file, S file, A text-written-to-fd-1
 *
 * Covers data (pwrite, write, ftruncate) and names (open with O_CREAT, rename, mkdir, unlink): a name is safe when
 * its folder was fsynced. sync_file_range covers nothing, as on a disk with a volatile cache.
 * Not covered: mmap, writev, links, xattrs; the store uses none of them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum kind { DATA, SIZE, CREATE, MKDIR, RENAME, UNLINK };

struct change {
    struct change *prev, *next;
    enum kind kind;
    unsigned long seq;
    ino_t key;            /* the file's inode for data, the folder's for names */
    int fd;               /* our own descriptor, for data */
    off_t off;
    size_t len, old_len;  /* old_len: how much of the range existed */
    off_t old_size, new_size;
    char *old_bytes, *new_bytes;
    char *path, *path2, *kept; /* names */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct change *newest, *oldest;
static unsigned long seq, writes, syncs;
static long lose_at, eio_at, enospc_at;
static unsigned long keep_seed;
static int deaf, events = -1, ready;
static char dir[PATH_MAX], undo_dir[PATH_MAX];
static __thread int inside;

struct known { ino_t ino; dev_t dev; int fd; char name[64]; };
static struct known files[4096];
static int nfiles;

static ssize_t (*r_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*r_write)(int, const void *, size_t);
static int (*r_fsync)(int), (*r_fdatasync)(int), (*r_ftruncate)(int, off_t);
static int (*r_open)(const char *, int, ...), (*r_openat)(int, const char *, int, ...);
static int (*r_rename)(const char *, const char *), (*r_mkdir)(const char *, mode_t), (*r_unlink)(const char *);

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static void setup(void) {
    if (ready) return;
    ready = 1;
    r_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    r_write = dlsym(RTLD_NEXT, "write");
    r_fsync = dlsym(RTLD_NEXT, "fsync");
    r_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    r_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    r_open = dlsym(RTLD_NEXT, "open64");
    r_openat = dlsym(RTLD_NEXT, "openat64");
    r_rename = dlsym(RTLD_NEXT, "rename");
    r_mkdir = dlsym(RTLD_NEXT, "mkdir");
    r_unlink = dlsym(RTLD_NEXT, "unlink");
    if (getenv("LOSE_DIR")) snprintf(dir, sizeof dir, "%s/", getenv("LOSE_DIR"));
    if (getenv("UNDO_DIR")) snprintf(undo_dir, sizeof undo_dir, "%s", getenv("UNDO_DIR"));
    lose_at = number("LOSE_AT_WRITE");
    eio_at = number("EIO_AT_FSYNC");
    enospc_at = number("ENOSPC_AT_WRITE");
    keep_seed = (unsigned long)number("KEEP_SEED");
    deaf = number("DEAF_SYNC") != 0;
    if (getenv("EVENTS")) events = r_open(getenv("EVENTS"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

__attribute__((constructor)) static void start(void) { setup(); }

static void event(const char *format, ...) {
    if (events < 0) return;
    char line[2048];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (len > (int)sizeof line - 1) len = sizeof line - 1;
    if (r_write(events, line, (size_t)len) < 0) abort();
}

static int below(const char *path) { return dir[0] && strncmp(path, dir, strlen(dir)) == 0; }

static const char *base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The watched file behind a descriptor, or NULL. */
static struct known *watched(int fd) {
    struct stat st;
    char link[64], path[PATH_MAX];
    if (!dir[0] || fstat(fd, &st) != 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return NULL;
    path[len] = 0;
    char with_slash[PATH_MAX + 1];
    snprintf(with_slash, sizeof with_slash, "%s/", path);
    if (!below(path) && strcmp(with_slash, dir) != 0) return NULL;
    for (int i = 0; i < nfiles; i++)
        if (files[i].ino == st.st_ino && files[i].dev == st.st_dev) {
            snprintf(files[i].name, sizeof files[i].name, "%.60s", base(path));
            return &files[i];
        }
    if (nfiles == 4096) abort();
    struct known *file = &files[nfiles++];
    file->ino = st.st_ino;
    file->dev = st.st_dev;
    file->fd = S_ISREG(st.st_mode) ? r_open(link, O_RDWR | O_CLOEXEC) : -1;
    snprintf(file->name, sizeof file->name, "%.60s", base(path));
    return file;
}

static ino_t folder_of(const char *path) {
    char parent[PATH_MAX];
    struct stat st;
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash) return 0;
    *slash = 0;
    return stat(parent, &st) == 0 ? st.st_ino : 0;
}

static struct change *push(enum kind kind, ino_t key) {
    struct change *c = calloc(1, sizeof *c);
    if (!c) abort();
    c->kind = kind;
    c->key = key;
    c->seq = ++seq;
    c->prev = newest;
    if (newest) newest->next = c; else oldest = c;
    newest = c;
    return c;
}

static void drop(struct change *c) {
    if (c->prev) c->prev->next = c->next; else oldest = c->next;
    if (c->next) c->next->prev = c->prev; else newest = c->prev;
    if (c->kept) r_unlink(c->kept);
    free(c->old_bytes);
    free(c->new_bytes);
    free(c->path);
    free(c->path2);
    free(c->kept);
    free(c);
}

/* Keeps the file under a path alive under another name. */
static char *keep(const char *path) {
    char kept[PATH_MAX + 32];
    snprintf(kept, sizeof kept, "%s/kept-%lu", undo_dir, ++seq);
    return link(path, kept) == 0 ? strdup(kept) : NULL;
}

static void undo(struct change *c) {
    switch (c->kind) {
    case DATA:
        if (r_pwrite(c->fd, c->old_bytes, c->old_len, c->off) < 0) abort();
        if (r_ftruncate(c->fd, c->old_size) != 0) abort();
        break;
    case SIZE:
        if (r_ftruncate(c->fd, c->old_size) != 0) abort();
        if (c->old_len && r_pwrite(c->fd, c->old_bytes, c->old_len, c->off) < 0) abort();
        break;
    case CREATE: r_unlink(c->path); break;
    case MKDIR: rmdir(c->path); break;
    case RENAME:
        r_rename(c->path2, c->path);
        if (c->kept) r_rename(c->kept, c->path2);
        break;
    case UNLINK:
        if (c->kept) r_rename(c->kept, c->path);
        break;
    }
}

static int lucky(void) {
    keep_seed = keep_seed * 6364136223846793005UL + 1442695040888963407UL;
    return (keep_seed >> 40) & 1;
}

static void lose_power(void) {
    int some = keep_seed != 0;
    for (struct change *c = newest; c; c = c->prev) undo(c);
    /* Data only: what reached the disk although nobody waited for it. Names stay as the folder's last sync left them. */
    for (struct change *c = oldest; some && c; c = c->next)
        if (c->kind == DATA && lucky()) r_pwrite(c->fd, c->new_bytes, c->len, c->off);
    event("K %lu\n", writes);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Called with the lock held, before a watched change. Returns an errno to fail with. */
static int next_write(void) {
    writes++;
    if (lose_at && (long)writes == lose_at) lose_power();
    if (enospc_at && (long)writes >= enospc_at) return ENOSPC;
    return 0;
}

/* Lists the marks @E<digits>@ in what is written, so that a test can follow an entry. */
static void log_write(struct known *file, off_t off, const char *bytes, size_t len) {
    char marks[1500];
    size_t used = 0;
    marks[0] = 0;
    const char *at = bytes, *end = bytes + len;
    while (events >= 0 && (at = memmem(at, (size_t)(end - at), "@E", 2)) && end - at >= 11) {
        if (at[10] == '@' && used + 10 < sizeof marks)
            used += (size_t)snprintf(marks + used, sizeof marks - used, " %.8s", at + 2);
        at += 2;
    }
    event("W %s %ld %zu%s\n", file->name, (long)off, len, marks);
}

static void record_write(struct known *file, const void *bytes, size_t len, off_t off) {
    struct stat st;
    if (file->fd < 0 || fstat(file->fd, &st) != 0) abort();
    struct change *c = push(DATA, file->ino);
    c->fd = file->fd;
    c->off = off;
    c->len = len;
    c->old_size = st.st_size;
    c->old_bytes = malloc(len + 1);
    c->new_bytes = malloc(len + 1);
    if (!c->old_bytes || !c->new_bytes) abort();
    ssize_t got = pread(file->fd, c->old_bytes, len, off);
    c->old_len = got > 0 ? (size_t)got : 0;
    memcpy(c->new_bytes, bytes, len);
    log_write(file, off, bytes, len);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off_t off) {
    setup();
    if (inside) return r_pwrite(fd, bytes, len, off);
    inside = 1;
    pthread_mutex_lock(&lock);
    struct known *file = watched(fd);
    ssize_t result;
    int error = file ? next_write() : 0;
    if (error) {
        result = -1;
        errno = error;
    } else {
        if (file) record_write(file, bytes, len, off);
        result = r_pwrite(fd, bytes, len, off);
    }
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t off) { return pwrite64(fd, bytes, len, off); }

ssize_t write(int fd, const void *bytes, size_t len) {
    setup();
    if (inside) return r_write(fd, bytes, len);
    inside = 1;
    pthread_mutex_lock(&lock);
    struct known *file = watched(fd);
    ssize_t result;
    int error = file ? next_write() : 0;
    if (error) {
        result = -1;
        errno = error;
    } else {
        if (file) record_write(file, bytes, len, lseek(fd, 0, SEEK_CUR));
        /* The event first: what a reader of the pipe has seen is in the list. */
        if (fd == 1 && len && len < 400) event("A %.*s", (int)len, (const char *)bytes);
        result = r_write(fd, bytes, len);
    }
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}

int ftruncate64(int fd, off_t size) {
    setup();
    if (inside) return r_ftruncate(fd, size);
    inside = 1;
    pthread_mutex_lock(&lock);
    struct known *file = watched(fd);
    if (file) {
        next_write();
        struct stat st;
        if (fstat(fd, &st) != 0) abort();
        struct change *c = push(SIZE, file->ino);
        c->fd = file->fd;
        c->old_size = st.st_size;
        if (st.st_size > size) {
            c->off = size;
            c->old_len = (size_t)(st.st_size - size);
            c->old_bytes = malloc(c->old_len);
            if (!c->old_bytes || pread(file->fd, c->old_bytes, c->old_len, size) < 0) abort();
        }
    }
    int result = r_ftruncate(fd, size);
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int sync_fd(int fd) {
    pthread_mutex_lock(&lock);
    struct known *file = watched(fd);
    if (!file) {
        pthread_mutex_unlock(&lock);
        return 0;
    }
    if (eio_at && (long)++syncs == eio_at) {
        event("F %s\n", file->name);
        pthread_mutex_unlock(&lock);
        errno = EIO;
        return -1;
    }
    ino_t key = file->ino;
    unsigned long upto = seq;
    if (!deaf) event("B %s\n", file->name);
    pthread_mutex_unlock(&lock);
    /* Writes of other threads land here, while the disk is at work: this sync does not cover them. */
    usleep(200);
    pthread_mutex_lock(&lock);
    for (struct change *c = oldest, *next; c && !deaf; c = next) {
        next = c->next;
        if (c->key == key && c->seq <= upto) drop(c);
    }
    if (!deaf) event("S %s\n", file->name);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) {
    setup();
    if (inside) return r_fsync(fd);
    inside = 1;
    int result = sync_fd(fd);
    inside = 0;
    return result;
}
int fdatasync(int fd) { return fsync(fd); }
int sync_file_range(int fd, off_t off, off_t len, unsigned flags) {
    (void)fd, (void)off, (void)len, (void)flags;
    return 0;
}

static int open_watched(int at, const char *path, int flags, mode_t mode) {
    struct stat st;
    inside = 1;
    pthread_mutex_lock(&lock);
    int is_new = (flags & O_CREAT) && below(path) && lstat(path, &st) != 0;
    int cuts = (flags & O_TRUNC) && below(path) && !is_new && stat(path, &st) == 0 && st.st_size > 0;
    if (is_new || cuts) next_write();
    char *kept = cuts ? keep(path) : NULL;
    if (cuts) { /* a truncated file is a new one under the old name */
        struct change *c = push(UNLINK, folder_of(path));
        c->path = strdup(path);
        c->kept = kept;
        r_unlink(path);
        is_new = 1;
        flags |= O_CREAT;
    }
    int fd = r_openat(at, path, flags, mode);
    if (fd >= 0 && is_new) {
        struct change *c = push(CREATE, folder_of(path));
        c->path = strdup(path);
        event("C %s\n", base(path));
    }
    pthread_mutex_unlock(&lock);
    inside = 0;
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = va_arg(args, mode_t);
    va_end(args);
    setup();
    return inside ? r_open(path, flags, mode) : open_watched(AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = va_arg(args, mode_t);
    va_end(args);
    setup();
    return inside ? r_open(path, flags, mode) : open_watched(AT_FDCWD, path, flags, mode);
}

int rename(const char *from, const char *to) {
    setup();
    if (inside || !below(to)) return r_rename(from, to);
    inside = 1;
    pthread_mutex_lock(&lock);
    next_write();
    struct change *c = push(RENAME, folder_of(to));
    c->path = strdup(from);
    c->path2 = strdup(to);
    c->kept = keep(to);
    event("R %s %s\n", base(from), base(to));
    int result = r_rename(from, to);
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}

int mkdir(const char *path, mode_t mode) {
    setup();
    if (inside || !below(path)) return r_mkdir(path, mode);
    inside = 1;
    pthread_mutex_lock(&lock);
    next_write();
    int result = r_mkdir(path, mode);
    if (result == 0) push(MKDIR, folder_of(path))->path = strdup(path);
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}

int unlink(const char *path) {
    setup();
    if (inside || !below(path)) return r_unlink(path);
    inside = 1;
    pthread_mutex_lock(&lock);
    next_write();
    struct change *c = push(UNLINK, folder_of(path));
    c->path = strdup(path);
    c->kept = keep(path);
    int result = r_unlink(path);
    pthread_mutex_unlock(&lock);
    inside = 0;
    return result;
}
