"""The rows of the table: one function for each kind of work, which returns samples by contestant.

Contestants take turns, and what they copied is compared with the source before a figure counts; what a row does otherwise,
docs/performance.md says.
"""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from contestants import (DEADLINE, Borg, Cp, Failed, Farwrite, Lsyncd, Mark, Restic, Rsync, Syncthing, differences, free_port,
                         peak, process_figures, run, wait)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Row:
    """Figures of one row: samples per contestant and measure, and where a contestant failed."""

    def __init__(self, title, unit="s"):
        self.title, self.unit, self.samples, self.notes = title, unit, {}, []

    def add(self, contestant, value):
        self.samples.setdefault(contestant, []).append(value)
        print(f"    {contestant}: {value:.4g} {self.unit}", flush=True)

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            print(f"    {text}", flush=True)


def quantile(samples, q):
    return sorted(samples)[min(len(samples) - 1, int(q * len(samples)))]


def synced(path, work):
    """Seconds that `work` takes, ending with what it wrote on the disk."""
    begin = time.monotonic()
    work()
    run("sync", "-f", path)
    return time.monotonic() - begin


def quiet(path):
    """Nothing of the contestant before is still to be written."""
    run("sync", "-f", path)
    time.sleep(0.5)


def warm(source):
    """All of it is in memory, for whoever has the next turn."""
    # Not to /dev/null itself: tar sees that, and reads nothing.
    run("sh", "-c", 'tar --create --file=- --directory "$0" . | cat > /dev/null', source)


def cold(bench):
    """None of it is in memory: who restores has not just read the backup. The programs are: our daemons, which go on running, are."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for program in (bench.program, "rsync", "cp", "borg"):
        run(program, "--version")
    run("restic", "version")


def equal(source, copy, strict=False):
    found = differences(source, copy, strict)
    if found:
        raise Failed(f"the copy differs: {found.splitlines()[:3]}")


def in_turn(contestants, turn):
    """Each run begins with another one: what comes later finds the machine warmer, or its disk busier."""
    first = turn % len(contestants)
    return contestants[first:] + contestants[:first]


def caught_up(c, source, done=lambda: None):
    """The moment at which the copy was complete, as the contestant says. Only then is it compared, after `done`: a judge at work takes
    the processors from the contestant."""
    wait("the last file", lambda: (c.copy() / "last").exists(), step=0.002)
    begin = time.monotonic()
    while True:
        at = c.all_done()
        done()
        found = differences(source, c.copy(), strict=isinstance(c, Farwrite))
        if not found:
            return at
        if isinstance(c, Farwrite) or at - begin > 600:
            raise Failed(f"{c.name}: the copy differs: {found.splitlines()[:3]}")


def restored(bench, source, work):
    """What was backed up is what is restored: for a backup that is no copy of the tree."""
    to = bench.fields / "restored"
    bench.disks[1].fresh()
    to.mkdir()
    equal(source, work(to) or to / source.name)
    bench.disks[1].fresh()


def tree(bench):
    """The kernel's source tree from Debian's package, unpacked once."""
    top = bench.data / "tree"
    if not (top / "done").exists():
        shutil.rmtree(top, ignore_errors=True)
        (top / "src").mkdir(parents=True)
        run("tar", "-xf", next(Path("/usr/src").glob("linux-source-6.*.tar.xz")), "-C", top / "src")
        (top / "done").touch()
        quiet(top)
    return top / "src"


def large(bench, size=4 * GIB):
    """A file that does not compress."""
    top = bench.data / "large"
    file = top / "file"
    if not file.exists() or file.stat().st_size != size:
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir(parents=True)
        chance = random.Random(1)
        with open(file, "wb") as f:
            for _ in range(size // (16 * MIB)):
                f.write(chance.randbytes(16 * MIB))
        quiet(top)
    return top


def limit(bench, samples, pause):
    """What a durable copy of 4 KiB on another machine costs at the least: a loopback round trip, an append and fdatasync; `pause` between
    two, as between the files of the others."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener.accept()[0] as c, open(bench.place / "limit", "ab", buffering=0) as log:
            c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := c.recv(4096, socket.MSG_WAITALL):
                log.write(data)
                os.fdatasync(log.fileno())
                c.send(b".")

    threading.Thread(target=serve, daemon=True).start()
    out = []
    with socket.create_connection(listener.getsockname()) as c:
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(samples):
            begin = time.monotonic()
            c.sendall(bytes(4096))
            c.recv(1)
            out.append(time.monotonic() - begin)
            pause()
    return out


def latency(bench):
    """4 KiB new file: from close(2) to the whole file standing at the destination."""
    row = Row("4 KiB new file, until it stands in the copy", "ms")
    # Looked into, it is many files, and no pauses: else there is nothing to see.
    ours, pause = (400, 0) if bench.profiles is not None else (20, 1)
    contestants = [(c(), count) for c, count in [(lambda: Farwrite(bench.place, bench.program), ours),
                                                 *bench.peers((lambda: Lsyncd(bench.place), 20), (lambda: Syncthing(bench.place), 2))]]
    for c, _ in contestants:
        source = bench.field(c)
        (source / "first").write_text("first")
        c.start(source)
    payload = random.Random(2).randbytes(4096)
    chance = random.Random(3)

    def rest():
        time.sleep(pause * chance.uniform(0.02, 0.08))

    for turn in range(bench.runs * 3):
        for v in limit(bench, 20, rest):
            row.samples.setdefault("limit: append + fdatasync + round trip", []).append(v * 1000)
        for c, count in contestants:
            with bench.measured(f"{count} new files of 4 KiB, each as soon as the one before stands in the copy", c):
                for i in range(count):
                    file = c.source / f"{turn}-{i}"
                    copy = c.copy() / file.name
                    with open(file, "wb", buffering=0) as f:
                        f.write(payload)
                    begin = time.monotonic()
                    while not (copy.exists() and copy.stat().st_size == 4096):
                        time.sleep(0.0002)
                        if time.monotonic() - begin > 60:
                            raise Failed(f"{c.name}: a file did not come")
                    row.samples.setdefault(c.name, []).append((time.monotonic() - begin) * 1000)
                    rest()
    for c, _ in contestants:
        c.settle()
        equal(c.source, c.copy())
    for c, _ in contestants:
        c.__exit__(None, None, None)
    return row


def wire(port):
    """Bytes that loopback has carried so far (all of them: nothing else may use it meanwhile)."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0


def delta(bench):
    """4 KiB changed in a file of 4 GiB, twice a turn."""
    row = Row("4 KiB changed in a file of 4 GiB, no exact sensor")
    sent = Row("4 KiB changed in a file of 4 GiB, no exact sensor: on the wire", "KiB")
    template = large(bench)
    contestants = [lambda: Farwrite(bench.place, bench.program, sensor="fanotify"), *bench.peers(lambda: Lsyncd(bench.place), lambda: Syncthing(bench.place))]
    chance = random.Random(4)

    def change(c):
        block, at = chance.randbytes(4096), chance.randrange(4 * GIB) // 4096 * 4096
        before = wire(None)
        begin = time.monotonic()
        with open(c.source / "file", "r+b", buffering=0) as f:
            f.seek(at)
            f.write(block)

        def there():
            with open(c.copy() / "file", "rb", buffering=0) as f:
                f.seek(at)
                return f.read(4096) == block
        with bench.measured("4 KiB in 4 GiB, until they stand in the copy", c):
            wait("the change stands in the copy", there, 120, 0.002)
        row.add(c.name, time.monotonic() - begin)
        time.sleep(0.3)
        sent.add(c.name, (wire(None) - before) / 1024)

    for turn in range(bench.runs):
        for make in in_turn(contestants, turn):
            bench.fresh()
            with make() as c:
                source = bench.field(c)
                run("cp", "--reflink=auto", template / "file", source / "file")
                c.start(source)
                quiet(source)
                quiet(bench.place)
                for _ in range(2):
                    change(c)
                run("cmp", source / "file", c.copy() / "file")
    return [row, sent]


def first(bench, source, title, others, prepare=warm):
    """A first backup by everybody; `prepare` says what of the source is in memory."""
    row = Row(title)

    def ours(mirror):
        who = "farwrite, with mirror" if mirror else "farwrite, log only"
        with Farwrite(bench.place, bench.program, mirror=mirror, tag="mirror" if mirror else "log") as c:
            c.add(source)
            prepare(source)
            quiet(c.place)

            def backup():
                with bench.measured(who, c):
                    c.run_source()
                    c.settle()
            row.add(who, synced(c.place, backup))
            if mirror:
                equal(source, c.copy(), strict=True)
            else:
                run(bench.program, "vault", "verify", c.vault)
                restored(bench, source, lambda to: c.restore(to, beside=True))

    def of(other):
        with other(bench.place) as c:
            prepare(source)
            quiet(c.place)
            row.add(c.name, synced(c.place, lambda: c.backup(source)))
            if hasattr(c, "copy"):
                equal(source, c.copy())
            else:
                restored(bench, source, lambda to: c.restore(to, source))

    everybody = [lambda: ours(True), lambda: ours(False)] + [lambda other=other: of(other) for other in bench.peers(*others)]
    for turn in range(bench.runs):
        for turn_of in in_turn(everybody, turn):
            bench.fresh()
            turn_of()
    return row


def tree_peers(bench):
    return [Rsync, Cp, Restic, Borg] + ([Syncthing] if bench.slow else [])


def first_tree(bench):
    """First backup of 92,000 entries that are in memory."""
    return first(bench, tree(bench), "first backup of the kernel's source tree, ends with sync -f", tree_peers(bench))


def first_tree_cold(bench):
    """First backup of 92,000 entries of which nothing is in memory."""
    title = "first backup of the kernel's source tree with nothing of it in memory, ends with sync -f"
    return first(bench, tree(bench), title, tree_peers(bench), lambda _: cold(bench))


def first_large(bench):
    """First backup of one file that does not compress."""
    return first(bench, large(bench), "first backup of an incompressible file of 4 GiB, ends with sync -f", [Rsync, Cp])


def storm(bench):
    """What stands still to be done when a storm of changes ends."""
    row = Row("storm: time behind after the last operation")
    template = bench.data / "storm"
    if not template.exists():
        for i in range(10_000):
            file = template / f"d{i // 100}" / f"f{i}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(random.Random(i).randbytes(200 + i % 6000))
    contestants = [lambda: Farwrite(bench.place, bench.program), *bench.peers(lambda: Lsyncd(bench.place), lambda: Syncthing(bench.place))]
    for turn in range(bench.runs):
        for make in in_turn(contestants, turn):
            bench.fresh()
            with make() as c:
                source = bench.field(c)
                (source / "log").write_text("")
                c.start(source)
                quiet(source)
                with bench.measured("the storm itself and what is behind it", c) as done:
                    storm_work(source, template)
                    begin = time.monotonic()
                    at = caught_up(c, source, done)
                row.add(c.name, at - begin)
    return row


def storm_work(source, template):
    """Two subtrees of 10,000 files copied in, a directory of each renamed and 20 removed, 200 appends."""
    for top in ("a", "b"):
        run("cp", "-a", template, source / top)
        (source / top / "d7").rename(source / top / "renamed")
        for d in range(20, 40):
            shutil.rmtree(source / top / f"d{d}")
    for i in range(200):
        with open(source / "log", "a") as f:
            f.write(f"line {i}\n")
    (source / "last").write_text("last")


def flood_work(top):
    """100,000 files made, a third renamed, a third deleted, in 1,000 folders: 166,666 names, 266,666 operations with the opens."""
    payload = random.Random(5).randbytes(4096)
    for d in range(1000):
        os.mkdir(f"{top}/{d}")
    for i in range(100_000):
        fd = os.open(f"{top}/{i % 1000}/{i}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, payload)
        os.close(fd)
    for i in range(0, 100_000, 3):
        os.rename(f"{top}/{i % 1000}/{i}", f"{top}/{(i + 1) % 1000}/r{i}")
    for i in range(1, 100_000, 3):
        os.unlink(f"{top}/{i % 1000}/{i}")


def flood(bench):
    """Operations at full speed: what the application pays, and how far behind the copy is after it."""
    row = Row("flood of 166,666 operations on names and 100,000 writes")
    for turn in range(bench.runs):
        for make in in_turn([*bench.peers(None), lambda: Farwrite(bench.place, bench.program), *bench.peers(lambda: Lsyncd(bench.place))], turn):
            bench.fresh()
            if make is None:
                alone = bench.fields / "alone"
                alone.mkdir()
                row.add("alone", elapsed(lambda: flood_work(alone)))
                continue
            with make() as c:
                source = bench.field(c)
                (source / "first").write_text("first")
                c.start(source)
                with bench.measured("the work and what is behind it", c) as done:
                    begin = time.monotonic()
                    flood_work(source)
                    (source / "last").write_text("last")
                    took = time.monotonic() - begin
                    at = caught_up(c, source, done)
                row.add(f"{c.name}: the work", took)
                row.add(f"{c.name}: behind", at - begin - took)
                if isinstance(c, Farwrite):
                    rss = max(process_figures(c.daemon.pid)[0], process_figures(c.server.pid)[0])
                    row.note(f"farwrite: the larger of its two daemons has {rss:.0f} MiB resident after it")
    return row


VAULT_IDLE = "farwrite, nice, vault idle"


def application(bench):
    """What an application in the protected directory pays: untar, random writes, a database."""
    row = Row("what the application pays")
    archive = bench.data / "tree.tar"
    if not archive.exists():
        run("tar", "-cf", archive, "-C", tree(bench), ".")

    def untar(top, _=None):
        run("tar", "-xf", archive, "-C", top)

    def fio(top, _):
        run("fio", "--name=w", f"--directory={top}", "--rw=randwrite", "--bs=4k", "--size=256m", "--io_size=128m", "--ioengine=psync",
            "--fsync=64", "--randseed=7", "--minimal")

    def pgbench(top, _):
        return database(top, bench, lambda: None)

    def pgbench_loaded(top, backed_up):
        return database(top, bench, backed_up)

    works = {"untar": untar, "fio": fio, "pgbench": pgbench, "pgbench, its tables backed up": pgbench_loaded}
    protected = {
        "alone": None,
        # What the kernel does for this sensor in the application's own calls.
        "fanotify, events thrown away": lambda: Mark(bench.place),
        "farwrite": lambda: Farwrite(bench.place, bench.program),
        "farwrite, nice": lambda: Farwrite(bench.place, bench.program, nice=10),
        VAULT_IDLE: lambda: Farwrite(bench.place, bench.program, nice=10),
        "lsyncd": lambda: Lsyncd(bench.place),
    }
    # The first to ask for so much memory would pay for it.
    bench.fresh()
    untar(bench.fields)
    for turn in range(bench.runs):
        for what, work in works.items():
            for who, make in in_turn([(w, m) for w, m in protected.items() if w == "farwrite, nice" or bench.peers(w)], turn):
                bench.fresh()
                if make is None:
                    source = bench.fields / "alone"
                    source.mkdir()
                    quiet(source)
                    row.add(f"{what}: {who}", elapsed(lambda: work(source, lambda: quiet(source))))
                    continue
                with make() as c:
                    source = bench.field(c)
                    (source / "first").write_text("first")
                    c.start(source)
                    quiet(source)
                    hold = c.hold if who == VAULT_IDLE else lambda: None

                    def backed_up():
                        if not isinstance(c, Mark):
                            c.all_done()
                        quiet(source)
                        hold()

                    if work is not pgbench_loaded:
                        hold()
                    with bench.measured(what, c):
                        took = elapsed(lambda: work(source, backed_up))
                    if not isinstance(c, Lsyncd):
                        row.add(f"{what}: {who}", took)
                    if who == VAULT_IDLE:
                        c.go_on()
                    if isinstance(c, Mark):
                        continue
                    if isinstance(c, Farwrite):
                        c.settle()
                        equal(source, c.copy(), strict=True)
                        continue
                    # What the application paid is known; a peer that never gets there is not waited for.
                    try:
                        wait("an equal copy", lambda: not differences(source, c.copy()), 60, 1)
                        row.add(f"{what}: {who}", took)
                    except Failed:
                        row.note(f"{what}: {who}: does not count, a minute after {took:.3g} s of work the copy was still another tree")
    return row


def elapsed(work):
    """What the work says that it took, else how long it ran."""
    begin = time.monotonic()
    said = work()
    return said if said is not None else time.monotonic() - begin


def database(top, bench, loaded):
    """10,000 transactions of four clients on a PostgreSQL of its own; `loaded` is called once its tables are full."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    data, port = top / "db", free_port()
    run("install", "-d", "-o", "postgres", "-m", "700", data)
    for above in [top, *top.parents]:
        if not above.stat().st_mode & 1:
            above.chmod(above.stat().st_mode | 0o111)
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    run(*as_postgres, programs / "initdb", "-D", data, "--auth=trust", "--locale=C", cwd="/")
    run(*as_postgres, programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", "-o",
        f"-p {port} -k {data} -c listen_addresses=''", "start", cwd="/")
    try:
        connect = ["-h", data, "-p", port, "-U", "postgres", "postgres"]
        run(programs / "pgbench", "-i", "-q", "-s", "10", *connect)
        loaded()
        out = run(programs / "pgbench", "-c", "4", "-t", "2500", *connect)
    finally:
        run(*as_postgres, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop", cwd="/")
    return 10_000 / float(out.split("tps = ")[1].split()[0])


def million(bench):
    """A million files in 1,000 folders."""
    top = bench.data / "million"
    if not (bench.data / "million.done").exists():
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir(parents=True)
        for d in range(1000):
            os.mkdir(f"{top}/{d}")
            for i in range(1000):
                fd = os.open(f"{top}/{d}/{i}", os.O_WRONLY | os.O_CREAT, 0o644)
                os.write(fd, b"%d" % i)
                os.close(fd)
        (bench.data / "million.done").touch()
        quiet(top)
    return top


def idle(bench):
    """Memory and processor time with a million files protected and nothing to do; a restart without anything changed."""
    memory = Row("1,000,000 files protected and idle: resident", "MiB")
    source = million(bench)
    with Farwrite(bench.place, bench.program) as c:
        begin = time.monotonic()
        c.start(source)
        memory.note(f"first backup of the million: {time.monotonic() - begin:.0f} s")
        restart = Row("restart of the source, 1,000,000 files unchanged")
        # A million files of the mirror are on their way to the same disk.
        quiet(c.place)
        for _ in range(bench.runs):
            restart.add("find -printf", elapsed(lambda: run("find", source, "-printf", "%p %s %T@ %i\n", stdout=subprocess.DEVNULL)))
            os.killpg(c.daemon.pid, 15)
            c.daemon.wait(60)
            begin = time.monotonic()
            with bench.measured("restart over a million files", c):
                c.run_source()
                c.settle()
            restart.add("farwrite, compare", time.monotonic() - begin)
        equal(source, c.copy(), strict=True)
        # Half a minute after its last batch a vault puts itself to rest, and so does the source behind it.
        time.sleep(60)
        processor = Row("1,000,000 files protected and idle: processor time in a minute", "ms")
        before = [process_figures(p.pid) for p in (c.daemon, c.server)]
        time.sleep(60)
        for who, p, b in zip(("source", "vault"), (c.daemon, c.server), before):
            rss, cpu, switches = process_figures(p.pid)
            memory.add(f"farwrite {who}", rss)
            processor.add(f"farwrite {who}", (cpu - b[1]) * 1000)
            processor.note(f"{who}: {switches - b[2]} times awake in the minute")
    return [memory, processor, restart]


class Delay:
    """A proxy that holds every byte back for a time, each way, without limiting how many are under way."""

    def __init__(self, to, seconds):
        self.to, self.seconds = to, seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                a = self.listener.accept()[0]
                b = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            for x, y in ((a, b), (b, a)):
                x.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.one_way(x, y)

    def one_way(self, x, y):
        import queue
        under_way = queue.Queue()

        def take():
            try:
                while data := x.recv(MIB):
                    under_way.put((time.monotonic() + self.seconds, data))
            except OSError:
                pass
            under_way.put(None)

        def give():
            try:
                while item := under_way.get():
                    time.sleep(max(0.0, item[0] - time.monotonic()))
                    y.sendall(item[1])
                y.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        for work in (take, give):
            threading.Thread(target=work, daemon=True).start()


def distance(bench):
    """The same first backup through a proxy, with and without 50 ms each way."""
    row = Row("100,000 small files through a proxy", "files/s")
    top = bench.data / "small"
    if not (bench.data / "small.done").exists():
        for i in range(100_000):
            file = top / f"{i // 100}" / f"{i}"
            if i % 100 == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(random.Random(i).randbytes(1024))
        (bench.data / "small.done").touch()
    for _ in range(bench.runs):
        for name, seconds in (("no proxy", None), ("no delay", 0.0), ("50 ms each way", 0.05)):
            bench.fresh()
            with Farwrite(bench.place, bench.program) as c:
                if seconds is not None:
                    c.dial = Delay(c.port, seconds).port
                c.add(top)
                quiet(top)
                warm(top)
                begin = time.monotonic()
                with bench.measured(name, c):
                    c.run_source()
                    c.settle()
                row.add(name, 100_000 / (time.monotonic() - begin))
                equal(top, c.copy(), strict=True)
    return row


def many(bench, sources=200, directories=64, files=32):
    """As many simulated sources (crates/farwrite/examples/sources.rs) send the backup of 17 MB each, against one that sends all of it:
    the vault's part of the work and no other."""
    row = Row(f"{sources} sources at once to one vault", "MB/s")
    chance = random.Random(6)
    everything = bench.data / f"many-{directories}"
    if not (bench.data / f"many-{directories}.done").exists():
        shutil.rmtree(everything, ignore_errors=True)
        for s in range(sources):
            for d in range(directories):
                top = everything / f"s{s}" / f"{d}"
                top.mkdir(parents=True)
                for i in range(files):
                    (top / f"{i}").write_bytes(chance.randbytes(8192))
        (bench.data / f"many-{directories}.done").touch()
    for _ in range(bench.runs):
        for name, count, top in (("one source", 1, everything), (f"{sources} sources together", sources, everything / "s0")):
            bench.fresh()
            with Farwrite(bench.place, bench.program) as c:
                invites = [c.invite(f"s{s}") for s in range(count)]
                with bench.measured(name, c):
                    figures = json.loads(run(bench.simulated, top, input="\n".join(invites)))
                row.note(f"{name}: the vault had {peak(c.server.pid):.0f} MiB resident at most")
                for s in range(count):
                    equal(top, f"{c.vault}/sources/s{s}/mirror{top}")
            for what in "durable", "mirrored":
                ends, half = figures[what]["ends"], figures[what]["at_half"]
                row.add(f"{name}, {what}", count * figures["bytes"] / max(ends) / 1e6)
                if count > 1:
                    some = [f"{100 * quantile(half, q) / figures['batches']:.0f} %" for q in (0, 0.1, 0.9, 1)]
                    fair = sum(0.4 <= h / figures["batches"] <= 0.6 for h in half)
                    row.note(f"{what}: the first source was done after {min(ends):.2f} s, a tenth after {quantile(ends, 0.1):.2f} s, all after "
                             f"{max(ends):.2f} s; when half of all was, {fair} sources were at 40 % to 60 %, four of five at {some[1]} to {some[2]}, all at "
                             f"{some[0]} to {some[3]}")
    return row


def restore(bench, source, title, peers):
    row = Row(title)
    with Farwrite(bench.place, bench.program, mirror=False) as ours:
        ours.start(source)
        others = [other(bench.place) for other in bench.peers(Cp, *peers)]
        for o in others:
            o.backup(source)
        to = bench.fields / "restored"

        def timed(name, work):
            # What was restored before is out of the way.
            bench.disks[1].fresh()
            to.mkdir()
            quiet(to)
            cold(bench)
            where = [None]

            def do():
                with bench.measured(name, ours):
                    where[0] = work()
            row.add(name, synced(to, do))
            equal(source, where[0])
        everybody = [("farwrite, over TLS", lambda: ours.restore(to) or to / source.name),
                     ("farwrite, from its directory", lambda: ours.restore(to, beside=True) or to / source.name),
                     *[(o.name, lambda o=o: o.restore(to, source)) for o in others]]
        for turn in range(bench.runs):
            for name, work in in_turn(everybody, turn):
                timed(name, work)
        for o in others:
            o.__exit__(None, None, None)
    return row


def restore_tree(bench):
    """Restore of the kernel's source tree."""
    return restore(bench, tree(bench), "restore of the kernel's source tree, ends with sync -f", [Restic, Borg])


def restore_large(bench):
    """Restore of one large file."""
    return restore(bench, large(bench), "restore of an incompressible file of 4 GiB, ends with sync -f", [Restic, Borg])


def delta_exact(bench):
    """4 KiB changed in a file of 4 GiB with the kernel sensors, in a virtual machine with Debian's kernel."""
    row = Row("4 KiB changed in a sparse file of 4 GiB, in a virtual machine without hardware support")
    here = Path(__file__).resolve().parent
    out = in_machine(bench, "--kernel", "6.12", here / "vm-delta.sh")
    figures_of(row, out, "bytes read|processor time")
    return row


def untar_exact(bench):
    """What an untar pays for the module and for fanotify in processor time of its own, in a virtual machine that counts instructions."""
    row = Row("what an untar of 10,500 files pays for a sensor: its own processor time, in a virtual machine, 1 ns for each instruction")
    here = Path(__file__).resolve().parent
    payload = bench.data / "untar"
    payload.mkdir(exist_ok=True)
    top = tree(bench)
    run("tar", "-cf", payload / "some.tar", "-C", next(top.iterdir()), "fs", "include", "kernel", "lib", "mm")
    out = in_machine(bench, "--icount", "--kernel", "6.12", "--payload", payload, here / "vm-untar.sh")
    figures_of(row, out, "dropped")
    return row


def restart_exact(bench):
    """A restart with the module over a million unchanged files, in a virtual machine that counts instructions; the first backup of the
    million is made here."""
    row = Row("restart of the source, 1,000,000 files unchanged, in a virtual machine, 1 ns for each instruction")
    here = Path(__file__).resolve().parent
    image = bench.data / "million.ext4"
    # Made anew each time: the state in it is of this program.
    run(here / "million-in-image", image, million(bench), bench.program, timeout=2 * DEADLINE)
    try:
        out = in_machine(bench, "--icount-waits", "--kernel", "6.12", "--ext4", image, here / "vm-restart.sh")
    finally:
        image.unlink()
    figures_of(row, out, "names looked at|its version|processor time")
    return row


def in_machine(bench, *what):
    """What a script in a virtual machine says, with the program that is measured. It ends by its own deadline, an hour at most."""
    runner = Path(__file__).resolve().parent.parent / "vm" / "run"
    return run(runner, "--keep", *what, timeout=2 * 3600, env={**os.environ, "FARWRITE_PROGRAM": bench.program})


def figures_of(row, out, notes):
    """What a script in a virtual machine has measured: `FIGURE WHO SECONDS`, and lines in which `notes` (a pattern) is."""
    for line in out.splitlines():
        if found := re.search(r"^note: FIGURE (.*) (\S+)$", line):
            row.add(found[1], float(found[2]))
        elif line.startswith("note: ") and re.search(notes, line):
            row.note(line.removeprefix("note: "))


ROWS = {
    "latency": latency, "delta": delta, "delta-exact": delta_exact, "first-tree": first_tree, "first-tree-cold": first_tree_cold,
    "first-large": first_large, "storm": storm, "flood": flood,
    "application": application, "idle": idle, "distance": distance, "many": many, "restart-exact": restart_exact, "untar-exact": untar_exact,
    "restore-tree": restore_tree, "restore-large": restore_large,
}
# Where no perf can look.
IN_MACHINES = ("delta-exact", "restart-exact", "untar-exact")
