/* An HTTP server that waits for nobody: its listener and its connections are non-blocking, and poll() says which are ready.
 * Run it as a preview 1 module: smalti run --ports 1 http-poll.wasm -- REQUESTS */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 64, BUFFER = 4096 };

static struct pollfd watched[MOST];
static char heard[MOST][BUFFER];
static size_t length[MOST];

static void nonblocking(int fd) {
    int flags = fcntl(fd, F_GETFL, 0);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        perror("fcntl");
        exit(1);
    }
}

/* Whether a whole request has come. */
static int complete(int i) { return strstr(heard[i], "\r\n\r\n") != NULL; }

static void forget(int i, int *count) {
    close(watched[i].fd);
    *count -= 1;
    watched[i] = watched[*count];
    memcpy(heard[i], heard[*count], BUFFER);
    length[i] = length[*count];
}

int main(int argc, char **argv) {
    static const char answer[] =
        "HTTP/1.1 200 OK\r\nContent-Length: 24\r\nConnection: close\r\n\r\nHello from a poll loop!\n";
    const char *fd = getenv("SMALTI_LISTEN_FD0");
    long left = argc > 1 ? atol(argv[1]) : 1;
    int count = 1;
    if (fd == NULL) {
        fprintf(stderr, "there is no listener: run it with --ports 1\n");
        return 1;
    }
    watched[0].fd = atoi(fd);
    watched[0].events = POLLIN;
    nonblocking(watched[0].fd);
    printf("polling port %s\n", getenv("PORT0") ? getenv("PORT0") : "?");
    fflush(stdout);
    while (left > 0) {
        if (poll(watched, count, 3600 * 1000) < 0) {
            perror("poll");
            return 1;
        }
        for (int i = count - 1; i > 0; i--) {
            if (watched[i].revents == 0) continue;
            ssize_t n = recv(watched[i].fd, heard[i] + length[i], BUFFER - 1 - length[i], 0);
            if (n < 0 && errno == EAGAIN) continue;
            if (n > 0) length[i] += n;
            heard[i][length[i]] = 0;
            if (complete(i)) {
                if (send(watched[i].fd, answer, sizeof answer - 1, 0) != (ssize_t)(sizeof answer - 1)) perror("send");
                left -= 1;
            }
            if (n <= 0 || complete(i) || length[i] == BUFFER - 1) {
                shutdown(watched[i].fd, SHUT_WR);
                forget(i, &count);
            }
        }
        if (watched[0].revents != 0 && count < MOST) {
            int connection = accept(watched[0].fd, NULL, NULL);
            if (connection >= 0) {
                nonblocking(connection);
                watched[count].fd = connection;
                watched[count].events = POLLIN;
                watched[count].revents = 0;
                length[count] = 0;
                count += 1;
            } else if (errno != EAGAIN) {
                perror("accept");
                return 1;
            }
        }
    }
    puts("done");
    return 0;
}
