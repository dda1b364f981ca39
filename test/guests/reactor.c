// A reactor of WASI 0.1: no main, functions that are called by name.
#include <stdio.h>
#include <stdlib.h>

static const char *greeting;

// Runs in _initialize; without that call greet has nothing to say.
__attribute__((constructor)) static void prepare(void) {
    greeting = "hello from a reactor";
}

__attribute__((export_name("greet"))) void greet(void) {
    puts(greeting ? greeting : "not initialized");
    fflush(stdout);
}

__attribute__((export_name("fail"))) void fail(void) {
    __builtin_trap();
}

__attribute__((export_name("quit"))) void quit(void) {
    exit(7);
}
