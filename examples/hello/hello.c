// Says hello, and what it can see of the place where it runs.
#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    printf("Hello from WebAssembly!\n");
    for (int i = 0; i < argc; i++)
        printf("argument %d: %s\n", i, argv[i]);

    char folder[4096];
    printf("working directory: %s\n", getcwd(folder, sizeof folder) ? folder : "none");

    printf("files in /:");
    DIR *root = opendir("/");
    for (struct dirent *entry; root && (entry = readdir(root));)
        if (entry->d_name[0] != '.')
            printf(" %s", entry->d_name);
    printf("\n");
    return 0;
}
