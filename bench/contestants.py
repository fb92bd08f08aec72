"""Farwrite and its peers behind one face: what a row of the table needs of each.

A contestant that mirrors continuously is started on a source directory and says where its copy stands; one that is run by hand
copies a tree when it is told to. Every process started here is stopped by `stop`, whatever happens in between.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

DEADLINE = 900.0


class Failed(Exception):
    """A contestant did not do what it was asked to; the row has no figure for it."""


def run(*args, **kw):
    """Runs a command to its end; its output. Fails with the end of what it said."""
    kw = {"stdout": subprocess.PIPE, "timeout": DEADLINE, **kw}
    done = subprocess.run([str(a) for a in args], stderr=subprocess.PIPE, text=True, **kw)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, args[:4]))} ...: {(done.stderr or done.stdout or '')[-400:]}")
    return done.stdout


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(what, condition, deadline=DEADLINE, step=0.01):
    """Waits for a condition; how long it took."""
    begin = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - begin
        except (OSError, Failed):
            pass
        if time.monotonic() - begin > deadline:
            raise Failed(f"not within {deadline:.0f} s: {what}")
        time.sleep(step)


def differences(source, copy, strict=False):
    """What rsync, as a judge, finds different; `strict`: also attributes and times that not all contestants keep. Sockets and what a
    contestant keeps for itself do not count."""
    how = ["-aHAXnc", "--numeric-ids"] if strict else ["-aHnc", "--omit-dir-times"]
    hidden = ["--exclude=/.stfolder", "--exclude=/.stversions", "--exclude=.syncthing.*"]
    done = subprocess.run(["rsync", *how, "--delete", "--itemize-changes", *hidden, f"{source}/", f"{copy}/"],
                          capture_output=True, text=True, timeout=DEADLINE)
    # 24: something went while it looked, so a contestant is still at work.
    if done.returncode not in (0, 24):
        raise Failed(f"rsync as a judge: {done.stderr[-300:]}")
    return done.stdout + done.stderr


def process_figures(pid):
    """(resident MiB, processor seconds, voluntary context switches) of a process with all its threads that have not ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    cpu, switches = 0.0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # Finer than the ticks of /proc/PID/stat.
        cpu += int((task / "schedstat").read_text().split()[0]) / 1e9
        switches += int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text())[1])
    return rss, cpu, switches


def peak(pid):
    """The most MiB that a process has had resident."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def children(pid):
    """The processes that it has started and that have not ended."""
    try:
        return "".join((t / "children").read_text() for t in Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return "?"


STARTED = []


def stop_all():
    """Whatever happened to their rows, nobody is left running."""
    for c in STARTED:
        c.stop()
    STARTED.clear()


class Contestant:
    name = "?"

    def __init__(self, place):
        self.place = Path(place) / self.name.replace(" ", "-")
        if self.place.exists():
            shutil.rmtree(self.place)
        self.place.mkdir(parents=True)
        self.processes = []
        STARTED.append(self)

    def spawn(self, *args, **kw):
        log = open(self.place / f"log-{len(self.processes)}", "wb")
        p = subprocess.Popen([str(a) for a in args], stdout=log, stderr=log, start_new_session=True, **kw)
        self.processes.append(p)
        return p

    def stop(self):
        """Ends what was started, the last first."""
        for p in reversed(self.processes):
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGTERM)
                try:
                    p.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(p.pid, signal.SIGKILL)
                    p.wait()
        self.processes = []

    def log(self):
        return "\n".join(p.read_text(errors="replace")[-600:] for p in sorted(self.place.glob("log-*")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.place, ignore_errors=True)


class Farwrite(Contestant):
    """A vault and a source on loopback, over TLS, each with its own state."""

    name = "farwrite"

    def __init__(self, place, program, mirror=True, sensor="auto", nice=0, port=None, tag=""):
        if tag:
            self.name = f"farwrite-{tag}"
        super().__init__(place)
        self.program, self.sensor, self.nice, self.daemon = program, sensor, nice, None
        self.vault, self.state = self.place / "vault", self.place / "state"
        run(program, "vault", "init", *([] if mirror else ["--no-mirror"]), self.vault)
        self.port = free_port()
        self.dial = port or self.port
        self.serve()

    def command(self, *args):
        nice = ["nice", "-n", str(self.nice)] if self.nice else []
        return [*nice, self.program, *args]

    def serve(self):
        self.server = self.spawn(*self.command("vault", "serve", self.vault, "--listen", f"127.0.0.1:{self.port}"))
        wait("the vault listens", lambda: socket.create_connection(("127.0.0.1", self.port), 1).close() is None, 30)

    def invite(self, name):
        said = run(self.program, "vault", "invite", self.vault, "--name", name, "--address", f"127.0.0.1:{self.dial}")
        return re.search(r"farwrite1:\S+", said)[0]

    def hold(self):
        """The vault does nothing from now on, as if its machine were busy, until `go_on`."""
        self.server.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.server.send_signal(signal.SIGCONT)

    def add(self, source):
        run(self.program, "source", "add", source, "--to", self.invite("bench"), "--state", self.state)
        self.source = Path(source)

    def run_source(self):
        self.daemon = self.spawn(*self.command("source", "run", "--state", self.state, "--sensor", self.sensor))
        wait("the source answers", lambda: (self.state / "control.sock").exists(), 60, 0.001)

    def start(self, source):
        self.add(source)
        self.run_source()
        self.settle()

    def settle(self):
        """Returns once all that was changed before is durable and stands in the mirror."""
        wait("flush", lambda: run(self.program, "flush", "--state", self.state, "--timeout", "15m") is not None, DEADLINE, 0.005)

    def all_done(self):
        """When a flush ends: it asks nobody to be faster, but ends what waits for its time."""
        self.settle()
        return time.monotonic()

    def status(self):
        return json.loads(run(self.program, "status", "--json", "--state", self.state))

    def copy(self):
        return Path(f"{self.vault}/sources/bench/mirror{self.source}")

    def restore(self, to, beside=False):
        """Over the network as a source does, or from the directory of the vault, as the others do."""
        origin = ["--vault-dir", self.vault, "--source", "bench"] if beside else ["--state", self.state]
        run(self.program, "restore", self.source, "--to", to, *origin)


class Mark(Contestant):
    """A fanotify mark and nothing behind it: mark.c."""

    name = "mark"

    def start(self, source):
        self.source = Path(source)
        program = self.place / "mark"
        run("cc", "-O2", "-o", program, Path(__file__).resolve().parent / "mark.c")
        self.spawn(program, source)
        wait("the mark", lambda: "ready" in (self.place / "log-0").read_text(), 10)


class Rsync(Contestant):
    name = "rsync"

    def backup(self, source):
        run("rsync", "-a", f"{source}/", f"{self.place}/copy/")

    def copy(self):
        return self.place / "copy"


class Cp(Contestant):
    name = "cp"

    def backup(self, source):
        run("cp", "-a", source, self.place / "copy")

    def copy(self):
        return self.place / "copy"

    def restore(self, to, source):
        run("cp", "-a", self.copy(), to)
        return to / "copy"


class Restic(Contestant):
    name = "restic"

    def __init__(self, place):
        super().__init__(place)
        self.env = {**os.environ, "RESTIC_REPOSITORY": f"{self.place}/repository", "RESTIC_PASSWORD": "bench",
                    "RESTIC_CACHE_DIR": f"{self.place}/cache"}
        run("restic", "init", env=self.env)

    def backup(self, source):
        run("restic", "backup", "--quiet", source, env=self.env)

    def restore(self, to, source):
        run("restic", "restore", "latest", "--target", to, env=self.env)
        return Path(f"{to}{source}")


class Borg(Contestant):
    name = "borg"

    def __init__(self, place):
        super().__init__(place)
        self.env = {**os.environ, "BORG_BASE_DIR": f"{self.place}/base", "BORG_PASSPHRASE": "bench"}
        run("borg", "init", "--encryption=repokey", f"{self.place}/repository", env=self.env)

    def backup(self, source):
        run("borg", "create", f"{self.place}/repository::one", source, env=self.env)

    def restore(self, to, source):
        run("borg", "extract", f"{self.place}/repository::one", env=self.env, cwd=to)
        return Path(f"{to}{source}")


class Lsyncd(Contestant):
    """lsyncd with delay 0, and an rsync daemon that receives."""

    name = "lsyncd"

    def start(self, source):
        self.source = Path(source)
        port = free_port()
        self.copy().mkdir()
        (self.place / "rsyncd.conf").write_text(
            f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\nuid = root\ngid = root\n"
            f"[copy]\npath = {self.copy()}\nread only = false\n")
        self.spawn("rsync", "--daemon", "--no-detach", f"--config={self.place}/rsyncd.conf")
        wait("rsync listens", lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, 30)
        (self.place / "lsyncd.conf").write_text(
            "settings { nodaemon = true, maxProcesses = 1 }\n"
            f"sync {{ default.rsync, source = \"{source}\", target = \"rsync://127.0.0.1:{port}/copy/\", delay = 0, "
            "rsync = { archive = true, hard_links = true } }\n")
        self.daemon = self.spawn("lsyncd", self.place / "lsyncd.conf")
        self.settle()

    def settle(self):
        wait("lsyncd has copied all", lambda: differences(self.source, self.copy()) == "", DEADLINE, 0.05)

    def all_done(self):
        """When lsyncd, its rsyncs and the daemon were last at work, before a second of rest."""
        begin = time.monotonic()
        seen, at = getattr(self, "last_work", (None, begin))
        while True:
            if any(p.poll() is not None for p in self.processes):
                raise Failed("lsyncd or its rsync daemon ended")
            now = [(process_figures(p.pid)[1], children(p.pid)) for p in self.processes]
            if now != seen or any(c for _, c in now):
                seen, at = now, time.monotonic()
            if time.monotonic() - at >= 1:
                # Asked again, with nothing done since: the same moment.
                self.last_work = seen, at
                return at
            if time.monotonic() - begin > DEADLINE:
                raise Failed("lsyncd is still at work")
            time.sleep(0.02)

    def copy(self):
        return self.place / "copy"


class Syncthing(Contestant):
    """Two syncthings that know each other only, the watcher's delay 1 s, no relays, no discovery."""

    name = "syncthing"

    def instance(self, which, folder):
        home = self.place / which
        run("syncthing", "generate", f"--home={home}", "--no-default-folder", "--skip-port-probing")
        identity = run("syncthing", f"--home={home}", "--device-id").strip()
        return {"home": home, "id": identity, "gui": free_port(), "port": free_port(), "folder": folder, "key": f"key-{which}"}

    def configure(self, me, peer, kind):
        device = lambda d, address: (
            f'<device id="{d["id"]}" name="{d["home"].name}" compression="metadata"><address>{address}</address></device>')
        (me["home"] / "config.xml").write_text(f"""<configuration version="35">
<folder id="bench" path="{me['folder']}" type="{kind}" rescanIntervalS="3600" fsWatcherEnabled="true" fsWatcherDelayS="1">
<device id="{me['id']}"/><device id="{peer['id']}"/></folder>
{device(me, 'dynamic')}{device(peer, f"tcp://127.0.0.1:{peer['port']}")}
<gui enabled="true" tls="false"><address>127.0.0.1:{me['gui']}</address><apikey>{me['key']}</apikey></gui>
<options><listenAddress>tcp://127.0.0.1:{me['port']}</listenAddress><globalAnnounceEnabled>false</globalAnnounceEnabled>
<localAnnounceEnabled>false</localAnnounceEnabled><relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled>
<setLowPriority>false</setLowPriority><startBrowser>false</startBrowser><urAccepted>-1</urAccepted><crashReportingEnabled>false</crashReportingEnabled>
<autoUpgradeIntervalH>0</autoUpgradeIntervalH><reconnectionIntervalS>1</reconnectionIntervalS></options></configuration>""")
        environment = {**os.environ, "STNODEFAULTFOLDER": "1", "STNOUPGRADE": "1"}
        return self.spawn("syncthing", "serve", f"--home={me['home']}", "--no-browser", "--no-restart", env=environment)

    def start(self, source, settle=True):
        self.source = Path(source)
        self.copy().mkdir()
        for folder in (self.source, self.copy()):
            (folder / ".stfolder").mkdir(exist_ok=True)
        self.a, self.b = self.instance("a", self.source), self.instance("b", self.copy())
        self.configure(self.b, self.a, "receiveonly")
        self.daemon = self.configure(self.a, self.b, "sendonly")
        if settle:
            self.settle()

    def ask(self, which, path):
        request = urllib.request.Request(f"http://127.0.0.1:{which['gui']}{path}", headers={"X-API-Key": which["key"]})
        with urllib.request.urlopen(request, timeout=30) as r:
            return json.load(r)

    def backup(self, source):
        self.start(source, settle=False)
        self.all_done()

    def all_done(self):
        """When both say that nothing is left to do."""
        def done():
            a, b = self.ask(self.a, "/rest/db/status?folder=bench"), self.ask(self.b, "/rest/db/status?folder=bench")
            return (a["state"] == "idle" and b["state"] == "idle" and b["needTotalItems"] == 0
                    and a["localFiles"] == b["localFiles"] > 0 and a["sequence"] > 0)
        wait("syncthing idle", done, DEADLINE, 0.05)
        return time.monotonic()

    def settle(self):
        self.all_done()
        wait("syncthing has copied all", lambda: differences(self.source, self.copy()) == "", DEADLINE, 0.2)

    def copy(self):
        return self.place / "copy"

    def __exit__(self, *_):
        super().__exit__()
        shutil.rmtree(self.source / ".stfolder", ignore_errors=True)
