// SPDX-License-Identifier: Apache-2.0 OR MIT
/* A fanotify mark on the filesystem of a directory, and a reader that throws the events away: what no program that uses this
 * sensor can save an application. `mark DIR`; says "ready" once it marks, and ends when it is told to. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/fanotify.h>
#include <unistd.h>

#ifndef FAN_REPORT_TARGET_FID
#define FAN_REPORT_TARGET_FID 0x1000
#endif
#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif

/* As the sensor asks for them: crates/capture/src/fanotify. */
#define FLAGS (FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_REPORT_FID | FAN_REPORT_DFID_NAME | FAN_REPORT_TARGET_FID)
#define MASK (FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | FAN_ONDIR)

static char buffer[512 << 10];

int main(int count, char **args)
{
    int group = fanotify_init(FLAGS, O_RDONLY);

    if (count != 2 || group < 0 || fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, MASK, AT_FDCWD, args[1])) {
        perror("mark");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (struct pollfd events = {group, POLLIN, 0}; poll(&events, 1, -1) >= 0;) {
        while (read(group, buffer, sizeof buffer) > 0)
            ;
        /* Events of some milliseconds are taken together. */
        usleep(2000);
    }
    return 0;
}
