"""Where the time goes while something runs: what both processors do is sampled (perf record, cpu-clock) and told by program and by
kind of work. What Farwrite is measured by is measured without this: sampling takes a few hundredths."""

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from contestants import Failed

FREQUENCY = 499

# What a function of a library that is linked in, or of libc, does. The first that fits.
KINDS = [(re.compile(pattern), kind) for pattern, kind in [
    (r"^(ZSTD|HUF|FSE|HIST|FASTCOVER|COVER)_|^ZSTD", "zstd"),
    (r"[Bb]lake3", "BLAKE3"),
    (r"xxhash|XXH", "XXH3"),
    (r"aes_?gcm|aesni|_aes_|gcm_|[Cc]ha[Cc]ha|poly1305|vpaes|ghash|x25519|ring_core|aws_lc", "cipher of TLS"),
    (r"memcpy|memmove|memset|memcmp|bcmp", "copying in memory"),
    (r"malloc|free|calloc|realloc|_int_|consolidate|unlink_chunk|sysmalloc|arena_", "allocator"),
    (r"rustls|tokio|mio::", "TLS and tokio"),
]]
# What functions of the kernel that do a system call are called besides its name.
PREFIX = re.compile(r"^(?:__x64_sys_|__se_sys_|__do_sys_|ksys_|do_sys_|do_|vm_)")
# Programs of ours that are no daemons, by the end of their file's name.
OURS = {"/farwrite": "the command", "/sources": "the simulated sources"}
# What Farwrite runs beside: sampled, but no part of it.
JUDGE = re.compile(r"^perf")


class Profile:
    """Samples from `__enter__` to `stop`, or to its end; then `seconds`, and what `programs` says."""

    def __enter__(self):
        self.top = tempfile.TemporaryDirectory()
        self.data, control, ack = (Path(self.top.name) / n for n in ("data", "control", "ack"))
        for fifo in (control, ack):
            os.mkfifo(fifo)
        # Both ends, so that no open waits for the other.
        self.control, self.ack = os.open(control, os.O_RDWR), os.open(ack, os.O_RDWR)
        self.log = open(Path(self.top.name) / "log", "w+")
        try:
            self.perf = subprocess.Popen(["perf", "record", "--all-cpus", "--event", "cpu-clock", "-g", "--freq", str(FREQUENCY), "--delay", "-1", "--control",
                                          f"fifo:{control},{ack}", "--no-buildid-cache", "--output", self.data], stdout=self.log, stderr=self.log, start_new_session=True)
        except FileNotFoundError:
            raise Failed("there is no perf: install linux-perf") from None
        try:
            self.tell("enable")
        except Failed:
            self.perf.kill()
            raise
        self.begin, self.seconds = time.monotonic(), None
        return self

    def tell(self, what):
        """Has perf begin or end, and waits until it has."""
        os.write(self.control, f"{what}\n".encode())
        if not select.select([self.ack], [], [], 20)[0] or self.perf.poll() is not None:
            self.log.seek(0)
            raise Failed(f"perf does not answer: {self.log.read()[-400:]}")
        os.read(self.ack, 64)

    def stop(self):
        """No more samples from now on."""
        if self.seconds is None:
            self.seconds = time.monotonic() - self.begin
            self.tell("disable")

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.stop()
        finally:
            self.perf.send_signal(signal.SIGINT)
            try:
                self.perf.wait(60)
            except subprocess.TimeoutExpired:
                self.perf.kill()
            os.close(self.control)
            os.close(self.ack)
            self.log.close()
            if kind is not None:
                self.top.cleanup()

    def programs(self, names):
        """Processor seconds by program and kind of work; idle time is nobody's. `names`: what a process is called, by pid."""
        script = subprocess.Popen(["perf", "script", "--input", self.data, "--no-inline", "--fields", "comm,pid,tid,ip,sym,dso"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
        programs, head, frames = {}, None, []
        for line in script.stdout:
            line = line.rstrip("\n")
            if line and not line[0].isspace():
                head, frames = line, []
            elif line:
                found = re.match(r"\s+[0-9a-f]+ (.*) \(([^()]*)\)$", line)
                frames.append((found[1], found[2]) if found else (line.strip(), ""))
            elif head:
                who, what = whose(names, head, frames)
                if who:
                    programs.setdefault(who, Counter())[what] += 1 / FREQUENCY
                head = None
        self.top.cleanup()
        if script.wait() != 0 or not programs:
            raise Failed("perf script ended without samples")
        return programs


def whose(names, head, frames):
    """To which program a sample belongs, and what it did there."""
    found = re.match(r"(.*?)\s+(-?\d+)/(-?\d+)", head)
    if not found:
        # A thread that has just ended.
        return "others", "?"
    command, pid = found[1].strip(), int(found[2])
    calls = [name for name, _ in frames]
    if pid == 0 and not any("softirq" in n or "sysvec" in n and "apic_timer" not in n for n in calls):
        return None, None
    if JUDGE.match(command):
        return None, None
    who = names.get(pid)
    if who is None:
        ours = next((name for end, name in OURS.items() if any(dso.endswith(end) for _, dso in frames)), None)
        thread = any(n.startswith("ret_from_fork") for n in calls) and "do_syscall_64" not in calls
        who = ours or ("the kernel's threads" if thread or pid == 0 else "others")
        if ours:
            names[pid] = who
    return who, (re.sub(r"[/:].*", "", command) if who == "the kernel's threads" else kind(frames))


def kind(frames):
    """What a sample did: a library's work, or a system call of the kernel."""
    if not frames:
        return "?"
    name, dso = frames[0]
    if dso.startswith("[") and "vdso" not in dso and "unknown" not in dso or ".ko" in dso:
        names = [n for n, _ in frames]
        if any("page_fault" in n for n in names):
            return "kernel: fresh pages"
        if "do_syscall_64" not in names:
            return "kernel: else"
        inner = [n for n in names[:names.index("do_syscall_64")] if n != "x64_sys_call"]
        call = PREFIX.sub("", inner[-1]) if inner else "entry"
        return f"kernel: {SAME.get(call, call)}"
    for pattern, what in KINDS:
        if pattern.search(name):
            return what
    if dso.endswith(tuple(OURS)):
        # Names of Rust have a path; what is linked in and has none is SQLite (the rest of C is above).
        return "Farwrite's own code" if "::" in name or name.startswith("<") or "[unknown]" in name else "SQLite"
    return "libc" if "libc" in dso or "vdso" in dso else "its own code"


# Calls that do the same in other words.
SAME = {"pread64": "read", "preadv2": "read", "readv": "read", "preadv": "read", "pwrite64": "write", "writev": "write", "pwritev": "write", "pwritev2": "write",
        "openat2": "open", "openat": "open", "creat": "open", "recvfrom": "receive", "recvmsg": "receive", "sendto": "send", "sendmsg": "send",
        "fdatasync": "fsync", "renameat2": "rename", "renameat": "rename", "unlinkat": "unlink", "linkat": "link", "statx": "stat", "newfstatat": "stat",
        "newfstat": "stat", "newlstat": "stat", "mkdirat": "mkdir", "getdents64": "getdents", "fchownat": "chown", "fchown": "chown", "fchmodat": "chmod", "fchmod": "chmod",
        "utimensat": "utimes", "utimes": "utimes", "epoll_pwait": "epoll_wait", "poll": "epoll_wait", "ppoll": "epoll_wait", "madvise": "memory", "mmap": "memory", "mmap_pgoff": "memory", "munmap": "memory",
        "brk": "memory", "mprotect": "memory", "exit_group": "exit"}


def told(programs, seconds, processors):
    """One line for each program: its processor seconds and the largest parts of them."""
    busy = sum(sum(c.values()) for c in programs.values())
    lines = [f"{seconds:.2f} s, of which the processors were idle for {max(0, 100 - 100 * busy / processors / seconds):.0f} %"]
    for who, parts in sorted(programs.items(), key=lambda p: -sum(p[1].values())):
        total = sum(parts.values())
        if total < 0.02 * seconds:
            continue
        shown = [f"{what} {s:.2f}" for what, s in parts.most_common(8) if s >= 0.03 * total]
        lines.append(f"{who} {total:.2f} s: {', '.join(shown)}")
    return lines
