/* Prints the number of primes below argv[1]: a C program compiled to wasm32-wasi, unchanged from what runs natively. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    long limit = argc > 1 ? strtol(argv[1], NULL, 10) : 1000;
    if (limit < 2 || limit > 100000000) {
        fprintf(stderr, "usage: primes LIMIT (2 to 100000000)\n");
        return 2;
    }
    char *composite = calloc((size_t)limit, 1);
    if (composite == NULL) {
        fprintf(stderr, "primes: no memory for %ld numbers\n", limit);
        return 1;
    }
    long count = 0;
    for (long n = 2; n < limit; n++) {
        if (composite[n]) continue;
        count++;
        for (long m = n * 2; m < limit; m += n) composite[m] = 1;
    }
    printf("%ld primes below %ld\n", count, limit);
    free(composite);
    return 0;
}
