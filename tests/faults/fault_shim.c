// SPDX-License-Identifier: Apache-2.0
/// A bad disk in front of a program: LD_PRELOADed, it counts the file operations below one folder and lets some of them
/// go wrong, as the rules in the environment say. Nothing outside that folder is touched.
///
///   FETTLE_FAULT_FOLDER   absolute path; only what lies below it counts
///   FETTLE_FAULT_RULES    rules separated by ';', each of fields key=value separated by ',':
///     operations=write+fsync  which of: open (for writing), read (open for reading), write, fsync, rename, exchange
///     (of
///                             two names), mkdir, remove, close (of a written file), truncate, stat, list; default: all
///                             but read, stat and list
///     name=text               only paths that contain the text, or, if it is followed by '$', end with it; of a rename
///                             its target counts
///     nth=5                   the first operation that the rule acts on, counted from 1 (default 1)
///     times=1                 how many it acts on; 0: all from the nth on (default 1)
///     action=EIO              an errno: the operation fails and is not done
///            late_EIO         … it is done, and fails all the same (a lost answer of a network volume)
///            half             a write takes half of its bytes, at least one
///            delay            it takes ms=… longer
///            kill, term, stop the process sends itself that signal before the operation
///            unseen           the target of a rename appears to stat, open and list only after ms=…, also in a later
///                             process that has the same FETTLE_FAULT_UNSEEN
///   FETTLE_FAULT_LOG      file; one line an operation below the folder: "<operation> <errno> <path>", of a rename
///                         "rename <errno> <target> <- <source>"
///   FETTLE_FAULT_UNSEEN   file in which the unseen names are kept
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MOST_RULES = 8, MOST_UNSEEN = 64, LOG_DESCRIPTOR = 900, LONGEST_LINE = 2 * PATH_MAX + 64 };

enum Operation { OPEN, READ, WRITE, FSYNC, RENAME, EXCHANGE, MKDIR, REMOVE, CLOSE, TRUNCATE, STAT, LIST, OPERATIONS };
static const char* const operation_names[OPERATIONS] = {"open",  "read",   "write", "fsync",    "rename", "exchange",
                                                        "mkdir", "remove", "close", "truncate", "stat",   "list"};

enum Action { NOTHING, FAIL, FAIL_AFTER, HALF, DELAY, SIGNAL, UNSEEN };

struct Rule {
  unsigned operations;  // bits 1 << Operation
  char name[256];
  long nth, times, milliseconds;
  enum Action action;
  int number;  // the errno or the signal
  atomic_long seen;
};

struct Unseen {
  char path[PATH_MAX];
  long until;  // milliseconds of CLOCK_REALTIME
};

static char folder[PATH_MAX];
static struct Rule rules[MOST_RULES];
static int rule_count;
static struct Unseen unseen[MOST_UNSEEN];
static atomic_int unseen_count;
static int log_descriptor = -1;

/// The C library's function of this name.
#define NEXT(function)                                                             \
  ({                                                                               \
    static __typeof__(&function) found;                                            \
    if (found == NULL) found = (__typeof__(&function))dlsym(RTLD_NEXT, #function); \
    found;                                                                         \
  })

static _Noreturn void refuse(const char* what) {
  fprintf(stderr, "fault_shim: cannot understand %s\n", what);
  _exit(99);
}

static int errno_named(const char* name) {
  static const struct {
    const char* name;
    int number;
  } known[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EROFS", EROFS},   {"EINTR", EINTR},
               {"EDQUOT", EDQUOT}, {"ENOENT", ENOENT}, {"ESTALE", ESTALE}, {"EINVAL", EINVAL}};
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    if (strcmp(name, known[i].name) == 0) return known[i].number;
  }
  refuse(name);
}

static void set_action(struct Rule* rule, const char* value) {
  static const struct {
    const char* name;
    enum Action action;
    int number;
  } known[] = {{"half", HALF, 0},         {"delay", DELAY, 0},       {"unseen", UNSEEN, 0},
               {"kill", SIGNAL, SIGKILL}, {"term", SIGNAL, SIGTERM}, {"stop", SIGNAL, SIGSTOP}};
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    if (strcmp(value, known[i].name) != 0) continue;
    rule->action = known[i].action;
    rule->number = known[i].number;
    return;
  }
  const int after = strncmp(value, "late_", 5) == 0;
  rule->action = after ? FAIL_AFTER : FAIL;
  rule->number = errno_named(after ? value + 5 : value);
}

static unsigned operations_named(char* value) {
  unsigned bits = 0;
  for (char *rest = NULL, *name = strtok_r(value, "+", &rest); name != NULL; name = strtok_r(NULL, "+", &rest)) {
    int found = 0;
    while (found < OPERATIONS && strcmp(name, operation_names[found]) != 0) ++found;
    if (found == OPERATIONS) refuse(name);
    bits |= 1u << found;
  }
  return bits;
}

static void read_rule(char* text) {
  if (rule_count == MOST_RULES) refuse("so many rules");
  struct Rule* rule = &rules[rule_count++];
  rule->nth = rule->times = 1;
  rule->operations = ~(1u << STAT | 1u << READ | 1u << LIST);
  for (char *rest = NULL, *field = strtok_r(text, ",", &rest); field != NULL; field = strtok_r(NULL, ",", &rest)) {
    char* value = strchr(field, '=');
    if (value == NULL) refuse(field);
    *value++ = '\0';
    if (strcmp(field, "operations") == 0) {
      rule->operations = operations_named(value);
    } else if (strcmp(field, "name") == 0) {
      snprintf(rule->name, sizeof rule->name, "%s", value);
    } else if (strcmp(field, "nth") == 0) {
      rule->nth = atol(value);
    } else if (strcmp(field, "times") == 0) {
      rule->times = atol(value);
    } else if (strcmp(field, "ms") == 0) {
      rule->milliseconds = atol(value);
    } else if (strcmp(field, "action") == 0) {
      set_action(rule, value);
    } else {
      refuse(field);
    }
  }
}

static long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void hide(const char* path, long until) {
  const int place = atomic_fetch_add(&unseen_count, 1);
  if (place >= MOST_UNSEEN) refuse("so many unseen names");
  snprintf(unseen[place].path, sizeof unseen[place].path, "%s", path);
  unseen[place].until = until;
}

static void read_unseen(const char* file) {
  FILE* stream = file == NULL ? NULL : fopen(file, "r");
  char path[PATH_MAX];
  long until = 0;
  while (stream != NULL && fscanf(stream, "%ld %4095s", &until, path) == 2) hide(path, until);
  if (stream != NULL) fclose(stream);
}

__attribute__((constructor)) static void begin(void) {
  const char* given = getenv("FETTLE_FAULT_FOLDER");
  if (given == NULL || *given == '\0') return;
  snprintf(folder, sizeof folder, "%s", given);
  const char* file = getenv("FETTLE_FAULT_LOG");
  if (file != NULL) {
    const int opened = NEXT(open)(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    log_descriptor = fcntl(opened, F_DUPFD_CLOEXEC, LOG_DESCRIPTOR);  // out of the way of the program's own numbers
    if (log_descriptor < 0) refuse(file);
    NEXT(close)(opened);
  }
  read_unseen(getenv("FETTLE_FAULT_UNSEEN"));
  const char* text = getenv("FETTLE_FAULT_RULES");
  char* copy = text == NULL ? NULL : strdup(text);
  for (char *rest = NULL, *rule = copy == NULL ? NULL : strtok_r(copy, ";", &rest); rule != NULL;
       rule = strtok_r(NULL, ";", &rest)) {
    read_rule(rule);
  }
  free(copy);
}

/// The absolute path of what an operation names, `path` NULL: the open file itself. False: not below the folder.
static int is_below_folder(int directory, const char* path, char* found) {
  if (*folder == '\0') return 0;
  const int error = errno;
  char link[64];
  ssize_t length = 0;
  if (path == NULL || (*path != '/' && directory != AT_FDCWD)) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    length = readlink(link, found, PATH_MAX - 1);
    if (length < 0) length = 0;
  } else if (*path != '/') {
    length = getcwd(found, PATH_MAX) == NULL ? 0 : (ssize_t)strlen(found);
  }
  found[length] = '\0';
  if (path != NULL) snprintf(found + length, (size_t)(PATH_MAX - length), "%s%s", *path == '/' ? "" : "/", path);
  for (size_t end = strlen(found); end > 1 && found[end - 1] == '/';) found[--end] = '\0';
  errno = error;
  const size_t size = strlen(folder);
  return strncmp(found, folder, size) == 0 && (found[size] == '/' || found[size] == '\0');
}

static int is_unseen(const char* path) {
  const int count = atomic_load(&unseen_count);
  for (int i = 0; i < count; ++i) {
    const size_t size = strlen(unseen[i].path);
    const int inside = strncmp(path, unseen[i].path, size) == 0 && (path[size] == '/' || path[size] == '\0');
    if (inside && now() < unseen[i].until) return 1;
  }
  return 0;
}

static int is_meant(const struct Rule* rule, const char* path) {
  const size_t size = strlen(rule->name);
  if (size == 0 || rule->name[size - 1] != '$') return strstr(path, rule->name) != NULL;
  const size_t length = strlen(path);
  return length >= size - 1 && strncmp(path + length - (size - 1), rule->name, size - 1) == 0;
}

static void write_log(enum Operation operation, int error, const char* path) {
  if (log_descriptor < 0) return;
  char line[LONGEST_LINE];
  const int length = snprintf(line, sizeof line, "%s %d %s\n", operation_names[operation], error, path);
  syscall(SYS_write, log_descriptor, line, (size_t)length);
}

static void wait_for(long milliseconds) {
  struct timespec rest = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {
  }
}

/// What is to happen to one operation.
struct Fate {
  int error;        // it fails with this and is not done
  int error_after;  // it is done and then fails
  int half;
  long unseen;  // milliseconds
};

static void apply(const struct Rule* rule, struct Fate* fate) {
  switch (rule->action) {
    case FAIL:
      fate->error = rule->number;
      break;
    case FAIL_AFTER:
      fate->error_after = rule->number;
      break;
    case HALF:
      fate->half = 1;
      break;
    case DELAY:
      wait_for(rule->milliseconds);
      break;
    case SIGNAL:  // SIGSTOP to this very thread: it stops before the operation, then all others
      if (rule->number == SIGSTOP) {
        syscall(SYS_tgkill, getpid(), gettid(), SIGSTOP);
      } else {
        kill(getpid(), rule->number);
      }
      break;
    case UNSEEN:
      fate->unseen = rule->milliseconds;
      break;
    case NOTHING:
      break;
  }
}

static struct Fate meet(enum Operation operation, const char* path) {
  struct Fate fate = {0, 0, 0, 0};
  for (int i = 0; i < rule_count; ++i) {
    struct Rule* rule = &rules[i];
    if ((rule->operations & 1u << operation) == 0 || !is_meant(rule, path)) continue;
    const long count = atomic_fetch_add(&rule->seen, 1) + 1;
    if (count < rule->nth || (rule->times > 0 && count >= rule->nth + rule->times)) continue;
    apply(rule, &fate);
  }
  if (fate.error != 0) write_log(operation, fate.error, path);
  return fate;
}

/// The result of an operation that was done.
static int settle(enum Operation operation, struct Fate fate, const char* path, int result) {
  const int error = errno;
  write_log(operation, fate.error_after != 0 ? fate.error_after : result < 0 ? error : 0, path);
  if (result < 0 || fate.error_after == 0) {
    errno = error;
    return result;
  }
  errno = fate.error_after;
  return -1;
}

#define OR_FAIL(fate)      \
  if ((fate).error != 0) { \
    errno = (fate).error;  \
    return -1;             \
  }

/// open and its like: `call` does it.
#define OPEN_BODY(directory, path, flags, call)                                          \
  char full[PATH_MAX];                                                                   \
  if (!is_below_folder(directory, path, full)) return call;                              \
  const enum Operation operation = ((flags) & (O_ACCMODE | O_CREAT)) != 0 ? OPEN : READ; \
  struct Fate fate = meet(operation, full);                                              \
  if (fate.error == 0 && is_unseen(full)) fate.error = ENOENT;                           \
  OR_FAIL(fate)                                                                          \
  const int result = call;                                                               \
  if (result >= 0 && fate.error_after != 0) NEXT(close)(result);                         \
  return settle(operation, fate, full, result);

int openat(int directory, const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = va_arg(more, mode_t);
  va_end(more);
  OPEN_BODY(directory, path, flags, NEXT(openat)(directory, path, flags, mode))
}

int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = va_arg(more, mode_t);
  va_end(more);
  OPEN_BODY(AT_FDCWD, path, flags, NEXT(open)(path, flags, mode))
}

int open64(const char* path, int flags, ...) __attribute__((alias("open")));
int openat64(int directory, const char* path, int flags, ...) __attribute__((alias("openat")));

/// An operation on the open file `descriptor`.
#define DESCRIPTOR_BODY(operation, descriptor, call)         \
  char full[PATH_MAX];                                       \
  if (!is_below_folder(descriptor, NULL, full)) return call; \
  const struct Fate fate = meet(operation, full);            \
  OR_FAIL(fate)                                              \
  return settle(operation, fate, full, call);

/// An operation on the name `path`.
#define PATH_BODY(operation, directory, path, call)               \
  char full[PATH_MAX];                                            \
  if (!is_below_folder(directory, path, full)) return call;       \
  struct Fate fate = meet(operation, full);                       \
  if (operation != MKDIR && is_unseen(full)) fate.error = ENOENT; \
  OR_FAIL(fate)                                                   \
  return settle(operation, fate, full, call);

/// A write of `size` bytes or parts: `call` does the first `part` of them.
#define WRITE_BODY(descriptor, size, call)                                         \
  char full[PATH_MAX];                                                             \
  const int counts = is_below_folder(descriptor, NULL, full);                      \
  const struct Fate fate = counts ? meet(WRITE, full) : (struct Fate){0, 0, 0, 0}; \
  OR_FAIL(fate)                                                                    \
  const __typeof__(size) part = fate.half && (size) > 1 ? (size) / 2 : (size);     \
  const ssize_t written = call;                                                    \
  if (!counts) return written;                                                     \
  return settle(WRITE, fate, full, written < 0 ? -1 : 0) < 0 ? -1 : written;

ssize_t write(int descriptor, const void* bytes,
              size_t size){WRITE_BODY(descriptor, size, NEXT(write)(descriptor, bytes, part))}

ssize_t writev(int descriptor, const struct iovec* parts,
               int count){WRITE_BODY(descriptor, count, NEXT(writev)(descriptor, parts, part))}

ssize_t pwrite(int descriptor, const void* bytes, size_t size,
               off_t offset){WRITE_BODY(descriptor, size, NEXT(pwrite)(descriptor, bytes, part, offset))}

ssize_t pwrite64(int descriptor, const void* bytes, size_t size, off64_t offset) __attribute__((alias("pwrite")));

int fsync(int descriptor) {
  DESCRIPTOR_BODY(FSYNC, descriptor, NEXT(fsync)(descriptor))
}

int fdatasync(int descriptor) {
  DESCRIPTOR_BODY(FSYNC, descriptor, NEXT(fdatasync)(descriptor))
}

int ftruncate(int descriptor, off_t size) {
  DESCRIPTOR_BODY(TRUNCATE, descriptor, NEXT(ftruncate)(descriptor, size))
}

int ftruncate64(int descriptor, off64_t size) __attribute__((alias("ftruncate")));

int close(int descriptor) {
  char full[PATH_MAX];
  const int flags = *folder == '\0' ? 0 : fcntl(descriptor, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || !is_below_folder(descriptor, NULL, full))
    return NEXT(close)(descriptor);
  struct Fate fate = meet(CLOSE, full);
  if (fate.error != 0) {  // as Linux does: the number is given back all the same
    NEXT(close)(descriptor);
    errno = fate.error;
    return -1;
  }
  return settle(CLOSE, fate, full, NEXT(close)(descriptor));
}

int mkdirat(int directory, const char* path, mode_t mode) {
  PATH_BODY(MKDIR, directory, path, NEXT(mkdirat)(directory, path, mode))
}

int mkdir(const char* path, mode_t mode) {
  PATH_BODY(MKDIR, AT_FDCWD, path, NEXT(mkdir)(path, mode))
}

int unlinkat(int directory, const char* path, int flags) {
  PATH_BODY(REMOVE, directory, path, NEXT(unlinkat)(directory, path, flags))
}

int unlink(const char* path) {
  PATH_BODY(REMOVE, AT_FDCWD, path, NEXT(unlink)(path))
}

int rmdir(const char* path) {
  PATH_BODY(REMOVE, AT_FDCWD, path, NEXT(rmdir)(path))
}

int remove(const char* path) {
  PATH_BODY(REMOVE, AT_FDCWD, path, NEXT(remove)(path))
}

static void note_unseen(const char* path, long milliseconds) {
  const long until = now() + milliseconds;
  hide(path, until);
  const char* file = getenv("FETTLE_FAULT_UNSEEN");
  if (file == NULL) return;
  FILE* stream = fopen(file, "a");
  if (stream == NULL) refuse(file);
  fprintf(stream, "%ld %s\n", until, path);
  fclose(stream);
}

int renameat2(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) {
  char full[PATH_MAX];
  const enum Operation operation = (flags & RENAME_EXCHANGE) != 0 ? EXCHANGE : RENAME;
  if (!is_below_folder(to_directory, to, full)) return NEXT(renameat2)(from_directory, from, to_directory, to, flags);
  const struct Fate fate = meet(operation, full);
  OR_FAIL(fate)
  const int result = NEXT(renameat2)(from_directory, from, to_directory, to, flags);
  const int error = errno;
  if (result == 0 && fate.unseen > 0) note_unseen(full, fate.unseen);
  char both[2 * PATH_MAX];
  snprintf(both, sizeof both, "%s <- %s", full, from);
  errno = error;
  return settle(operation, fate, both, result);
}

int renameat(int from_directory, const char* from, int to_directory, const char* to) {
  return renameat2(from_directory, from, to_directory, to, 0);
}

int rename(const char* from, const char* to) {
  return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int fstatat(int directory, const char* path, struct stat* status, int flags) {
  PATH_BODY(STAT, directory, path, NEXT(fstatat)(directory, path, status, flags))
}

int stat(const char* path, struct stat* status) {
  PATH_BODY(STAT, AT_FDCWD, path, NEXT(stat)(path, status))
}

int lstat(const char* path, struct stat* status) {
  PATH_BODY(STAT, AT_FDCWD, path, NEXT(lstat)(path, status))
}

int fstatat64(int directory, const char* path, struct stat64* status, int flags) __attribute__((alias("fstatat")));
int stat64(const char* path, struct stat64* status) __attribute__((alias("stat")));
int lstat64(const char* path, struct stat64* status) __attribute__((alias("lstat")));

DIR* opendir(const char* path) {
  char full[PATH_MAX];
  if (!is_below_folder(AT_FDCWD, path, full)) return NEXT(opendir)(path);
  struct Fate fate = meet(LIST, full);
  if (fate.error == 0 && is_unseen(full)) fate.error = ENOENT;
  if (fate.error == 0) return NEXT(opendir)(path);
  errno = fate.error;
  return NULL;
}

struct dirent* readdir(DIR* directory) {
  struct dirent* entry = NEXT(readdir)(directory);
  char full[PATH_MAX];
  while (entry != NULL && atomic_load(&unseen_count) > 0 && is_below_folder(dirfd(directory), entry->d_name, full) &&
         is_unseen(full)) {
    entry = NEXT(readdir)(directory);
  }
  return entry;
}

struct dirent64* readdir64(DIR* directory) __attribute__((alias("readdir")));
