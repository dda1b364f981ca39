// One program for many tests: the first argument says what to do. WASI 0.1.
// README.md in this folder lists the commands and what they print.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

// Names the file that a command failed on; the exit code of every failure is 1.
static int failed(const char *what) {
    fprintf(stderr, "tool: %s: %s\n", what, strerror(errno));
    return 1;
}

// Writes all bytes, however small the pieces are that the host takes.
static int write_all(int fd, const char *bytes, size_t size) {
    while (size > 0) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0)
            return -1;
        bytes += written;
        size -= written;
    }
    return 0;
}

// Copies until the end of `from`.
static int copy(int from, int to) {
    static char buffer[64 * 1024];
    for (;;) {
        ssize_t size = read(from, buffer, sizeof buffer);
        if (size == 0)
            return 0;
        if (size < 0 || write_all(to, buffer, size) != 0)
            return -1;
    }
}

static int args(char **a) {
    for (; *a; a++)
        puts(*a);
    return 0;
}

static int env(char **a) {
    (void)a;
    for (char **variable = environ; *variable; variable++)
        puts(*variable);
    return 0;
}

static int cwd(char **a) {
    (void)a;
    char folder[4096];
    if (!getcwd(folder, sizeof folder))
        return failed("cwd");
    puts(folder);
    return 0;
}

static int quit(char **a) {
    exit(atoi(a[0]));
}

// Two calls deep, so that a backtrace has names to show.
__attribute__((noinline)) static void trap_inner(void) {
    __builtin_trap();
}

__attribute__((noinline)) static void trap_outer(void) {
    trap_inner();
}

static int trap(char **a) {
    (void)a;
    trap_outer();
    return 0;
}

static int cat(char **a) {
    (void)a;
    return copy(0, 1) == 0 ? 0 : failed("cat");
}

static int print_error(char **a) {
    fprintf(stderr, "%s\n", a[0]);
    return 0;
}

static int put(const char *path, const char *text, int how) {
    int fd = open(path, O_WRONLY | O_CREAT | how, 0666);
    if (fd < 0 || write_all(fd, text, strlen(text)) != 0 || close(fd) != 0)
        return failed(path);
    return 0;
}

static int write_file(char **a) {
    return put(a[0], a[1], O_TRUNC);
}

static int append_file(char **a) {
    return put(a[0], a[1], O_APPEND);
}

static int read_file(char **a) {
    int fd = open(a[0], O_RDONLY);
    if (fd < 0 || copy(fd, 1) != 0)
        return failed(a[0]);
    close(fd);
    return 0;
}

static int stat_file(char **a) {
    struct stat found;
    if (lstat(a[0], &found) != 0)
        return failed(a[0]);
    const char *kind = S_ISREG(found.st_mode)   ? "file"
                       : S_ISDIR(found.st_mode) ? "directory"
                       : S_ISLNK(found.st_mode) ? "symlink"
                                                : "other";
    printf("%s %lld\n", kind, (long long)found.st_size);
    return 0;
}

static int by_name(const struct dirent **left, const struct dirent **right) {
    return strcmp((*left)->d_name, (*right)->d_name);
}

static int list(char **a) {
    struct dirent **found;
    int count = scandir(a[0], &found, NULL, by_name);
    if (count < 0)
        return failed(a[0]);
    for (int i = 0; i < count; i++)
        if (strcmp(found[i]->d_name, ".") != 0 && strcmp(found[i]->d_name, "..") != 0)
            puts(found[i]->d_name);
    return 0;
}

static int loop(char **a) {
    (void)a;
    puts("looping");
    fflush(stdout);
    for (volatile unsigned turns = 0;; turns++)
        ;
}

// Fractions are not needed: who sleeps is there to be interrupted.
static int sleep_long(char **a) {
    puts("sleeping");
    fflush(stdout);
    struct timespec time = {.tv_sec = atoi(a[0])};
    if (nanosleep(&time, NULL) != 0)
        return failed("sleep");
    puts("slept");
    return 0;
}

static int alloc(char **a) {
    const size_t megabyte = 1 << 20;
    int count = atoi(a[0]);
    for (int i = 0; i < count; i++) {
        char *memory = malloc(megabyte);
        if (!memory)
            return failed("alloc");
        // Through volatile, or the compiler sees that nobody reads it.
        for (size_t at = 0; at < megabyte; at += 4096)
            ((volatile char *)memory)[at] = 1;
    }
    printf("allocated %d MB\n", count);
    fflush(stdout);
    return a[1] ? sleep_long(a + 1) : 0;
}

static int terminals(char **a) {
    (void)a;
    for (int fd = 0; fd < 3; fd++)
        printf("%d %s\n", fd, isatty(fd) ? "yes" : "no");
    return 0;
}

static int now(char **a) {
    (void)a;
    printf("%lld\n", (long long)time(NULL));
    return 0;
}

static int random_bytes(char **a) {
    (void)a;
    unsigned char bytes[16];
    if (getentropy(bytes, sizeof bytes) != 0)
        return failed("random");
    for (size_t i = 0; i < sizeof bytes; i++)
        printf("%02x", bytes[i]);
    puts("");
    return 0;
}

static int make_folder(char **a) {
    return mkdir(a[0], 0777) == 0 ? 0 : failed(a[0]);
}

static int remove_folder(char **a) {
    return rmdir(a[0]) == 0 ? 0 : failed(a[0]);
}

static int remove_file(char **a) {
    return unlink(a[0]) == 0 ? 0 : failed(a[0]);
}

static int move(char **a) {
    return rename(a[0], a[1]) == 0 ? 0 : failed(a[0]);
}

static int link_to(char **a) {
    return symlink(a[0], a[1]) == 0 ? 0 : failed(a[1]);
}

static int read_link(char **a) {
    char target[4096];
    ssize_t size = readlink(a[0], target, sizeof target);
    if (size < 0)
        return failed(a[0]);
    printf("%.*s\n", (int)size, target);
    return 0;
}

static const struct command {
    const char *name;
    int arguments;
    int (*run)(char **arguments);
} commands[] = {
    {"env", 0, env},           {"cwd", 0, cwd},           {"exit", 1, quit},
    {"trap", 0, trap},         {"cat", 0, cat},           {"stderr", 1, print_error},
    {"write", 2, write_file},  {"append", 2, append_file}, {"read", 1, read_file},
    {"stat", 1, stat_file},    {"ls", 1, list},           {"loop", 0, loop},
    {"sleep", 1, sleep_long},  {"alloc", 1, alloc},       {"isatty", 0, terminals},
    {"time", 0, now},          {"random", 0, random_bytes}, {"mkdir", 1, make_folder},
    {"rmdir", 1, remove_folder}, {"unlink", 1, remove_file}, {"rename", 2, move},
    {"symlink", 2, link_to},   {"readlink", 1, read_link},
};

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "args") == 0)
        return args(argv);
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0 && argc - 2 >= commands[i].arguments)
            return commands[i].run(argv + 2);
    fprintf(stderr, "tool: no such command, or too few arguments; see README.md beside tool.c\n");
    return 2;
}
