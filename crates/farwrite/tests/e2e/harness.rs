//! A source and a vault as a person would set them up: the real binary, real processes, real directories.
//!
//! Whatever waits here has a deadline: what hangs must fail, not hang. Must never know how the product works inside.

use farwrite_core::{Kind, Meta, Name, path::lossy};
use farwrite_fs::{Dir, OpenMode, Stat, data_segments, read_meta};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// For a command that has little to do.
pub const SHORT: Duration = Duration::from_secs(60);
/// For one that reads or writes a whole kernel tree.
pub const LONG: Duration = Duration::from_secs(300);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(5);
/// Lines of a daemon's log that are shown when a test fails.
const LOG_LINES: usize = 40;

/// Calls `f` until it gives something; panics naming `what` at the deadline.
pub fn wait_for<T>(what: &str, within: Duration, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + within;
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// What a command printed and how it ended.
pub struct Done {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    /// Standard output of a command that must have succeeded.
    pub fn good(self) -> String {
        let out = String::from_utf8_lossy(&self.stdout).into_owned();
        assert!(
            self.status.success(),
            "{}: {}\n{out}",
            self.status,
            self.stderr
        );
        out
    }
}

/// Runs a command to its end; kills it and panics at the deadline.
pub fn run(command: &mut Command, within: Duration) -> Done {
    let shown = format!("{command:?}");
    let shown = &shown[..shown.floor_char_boundary(300)];
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|s| {
        let stdout = s.spawn(move || {
            let mut bytes = Vec::new();
            out.read_to_end(&mut bytes).map(|_| bytes)
        });
        let stderr = s.spawn(move || {
            let mut bytes = Vec::new();
            err.read_to_end(&mut bytes).map(|_| bytes)
        });
        let end = Instant::now() + within;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= end {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(LOOK);
        };
        let stdout = stdout.join().unwrap().unwrap();
        let stderr = String::from_utf8_lossy(&stderr.join().unwrap().unwrap()).into_owned();
        match status {
            Some(status) => Done {
                status,
                stdout,
                stderr,
            },
            None => panic!("not done within {within:?}: {shown}\n{stderr}"),
        }
    })
}

/// Runs a program that must succeed; its standard output.
pub fn sh(
    program: &str,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    within: Duration,
) -> String {
    run(Command::new(program).args(args), within).good()
}

/// Runs git in a directory: as nobody in particular, and without maintenance of its own in the background.
pub fn git(dir: &Path, args: &[&str], within: Duration) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir);
    for setting in [
        "user.name=a",
        "user.email=a@b",
        "gc.auto=0",
        "maintenance.auto=false",
    ] {
        command.args(["-c", setting]);
    }
    run(command.args(args), within).good()
}

/// The real binary, with nothing of this process's environment that would change what it does.
pub fn farwrite() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_farwrite"));
    for unwanted in [
        "FARWRITE_LOG",
        "FARWRITE_STATE",
        "NOTIFY_SOCKET",
        "XDG_STATE_HOME",
    ] {
        c.env_remove(unwanted);
    }
    c.env("TZ", "UTC");
    c
}

/// The moment of now, as the history commands take it.
pub fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// A directory of the test's own on a disk filesystem; removed when the test has passed or failed.
pub struct Place {
    top: PathBuf,
    _temp: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let top = temp.path().canonicalize().unwrap();
        Place { top, _temp: temp }
    }

    /// A path in it; nothing is made.
    pub fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// A new empty directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        dir
    }
}

/// A child process that writes its output to a file, shown when the test fails; killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn start(command: &mut Command, log: PathBuf) -> Daemon {
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Daemon { child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends the signal and waits for the end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        if let Some(status) = self.child.try_wait().unwrap() {
            return status;
        }
        self.signal(signal);
        let pid = self.pid();
        wait_for(&format!("the end of process {pid}"), SHORT, || {
            self.child.try_wait().unwrap()
        })
    }

    /// Panics with the log if the process is not running.
    pub fn expect_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("ended: {status}\n{}", self.log());
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- last lines of {}", self.log.display());
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                println!("{line}");
            }
        }
    }
}

/// A vault that is made, and served while `daemon` is there.
pub struct VaultSide {
    pub dir: PathBuf,
    /// `127.0.0.1:PORT`; stays the same over restarts.
    pub address: String,
    pub daemon: Option<Daemon>,
    log: PathBuf,
}

impl VaultSide {
    /// Makes a vault and serves it on a free port.
    pub fn start(place: &Place, name: &str) -> VaultSide {
        let dir = place.path(name);
        run(farwrite().args(["vault", "init"]).arg(&dir), SHORT).good();
        let mut vault = VaultSide {
            dir,
            address: "127.0.0.1:0".into(),
            daemon: None,
            log: place.path(&format!("{name}.log")),
        };
        vault.serve();
        vault
    }

    /// Serves it again where it was served before.
    pub fn serve(&mut self) {
        let mut command = farwrite();
        command
            .args(["-v", "vault", "serve", "--listen", &self.address])
            .arg(&self.dir);
        let before = fs::metadata(&self.log).map_or(0, |m| m.len()) as usize;
        let mut daemon = Daemon::start(&mut command, self.log.clone());
        self.address = wait_for("the vault to be served", SHORT, || {
            daemon.expect_running();
            let log = daemon.log();
            let line = log
                .get(before..)?
                .lines()
                .find(|l| l.starts_with("serving ") && l.contains(", fingerprint "))?;
            Some(line.split(" on ").nth(1)?.split(',').next()?.to_owned())
        });
        self.daemon = Some(daemon);
    }

    /// Ends the server.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.daemon.take().expect("it is being served").end(signal)
    }

    /// The line with which a source of this name may join.
    pub fn invite(&self, name: &str) -> String {
        let mut command = farwrite();
        command.args(["vault", "invite"]).arg(&self.dir);
        command.args(["--name", name, "--address", &self.address]);
        run(&mut command, SHORT).good().trim().to_owned()
    }

    /// Where the mirror of this source's directory is.
    pub fn mirror(&self, source: &str, dir: &Path) -> PathBuf {
        let below = dir.strip_prefix("/").unwrap();
        self.dir
            .join("sources")
            .join(source)
            .join("mirror")
            .join(below)
    }
}

/// A source: a state directory, and a daemon while it runs.
pub struct SourceSide {
    pub state: PathBuf,
    pub daemon: Option<Daemon>,
    log: PathBuf,
}

impl SourceSide {
    pub fn new(place: &Place, name: &str) -> SourceSide {
        SourceSide {
            state: place.path(&format!("{name}.state")),
            daemon: None,
            log: place.path(&format!("{name}.log")),
        }
    }

    /// The binary with this source's state.
    pub fn command(&self) -> Command {
        let mut c = farwrite();
        c.env("FARWRITE_STATE", &self.state);
        c
    }

    /// Protects a directory.
    pub fn add(&self, dir: &Path, to: &str) {
        let mut command = self.command();
        command.args(["source", "add"]).arg(dir).args(["--to", to]);
        run(&mut command, SHORT).good();
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self, args: &[&str]) {
        let mut command = self.command();
        command.args(["-v", "source", "run"]).args(args);
        let mut daemon = Daemon::start(&mut command, self.log.clone());
        wait_for("an answer of the source", SHORT, || {
            daemon.expect_running();
            self.try_status()
                .filter(|s| s["pid"] == u64::from(daemon.pid()))
        });
        self.daemon = Some(daemon);
    }

    /// Ends the daemon.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.daemon.take().expect("it runs").end(signal)
    }

    /// `status --json`, if there is an answer.
    pub fn try_status(&self) -> Option<Value> {
        let done = run(self.command().args(["status", "--json"]), SHORT);
        match done.status.success() {
            true => Some(serde_json::from_slice(&done.stdout).unwrap()),
            false => None,
        }
    }

    pub fn status(&self) -> Value {
        self.try_status().expect("the source answers")
    }

    /// One of the only vault's numbers.
    pub fn number(&self, pointer: &str) -> u64 {
        let status = self.status();
        let found = status["vaults"][0].pointer(pointer).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("no {pointer} in {status:#}"))
    }

    /// Everything done so far is durable and stands in the mirror.
    pub fn flush(&self) {
        self.flush_within(SHORT);
    }

    pub fn flush_within(&self, within: Duration) {
        let mut command = self.command();
        command.args(["flush", "--timeout"]);
        command.arg(format!("{}s", within.as_secs()));
        let done = run(&mut command, within + SHORT);
        if !done.status.success() {
            let status = self.try_status();
            panic!("flush: {}\n{status:#?}", done.stderr);
        }
    }

    /// Restores into a directory and says where the last component then is.
    pub fn restore(&self, path: &Path, at: Option<&str>, to: &Path, within: Duration) -> PathBuf {
        let mut command = self.command();
        command.arg("restore").arg(path).arg("--to").arg(to);
        if let Some(at) = at {
            command.args(["--at", at]);
        }
        run(&mut command, within).good();
        to.join(path.file_name().unwrap())
    }
}

/// One source with one directory in one vault.
pub struct Pair {
    pub vault: VaultSide,
    pub source: SourceSide,
    pub dir: PathBuf,
    pub place: Place,
}

impl Pair {
    /// A vault, and a source that protects the new directory `src`; the source does not run yet.
    pub fn new() -> Pair {
        let place = Place::new();
        let dir = place.dir("src");
        let vault = VaultSide::start(&place, "vault");
        let source = SourceSide::new(&place, "me");
        source.add(&dir, &vault.invite("me"));
        Pair {
            vault,
            source,
            dir,
            place,
        }
    }

    pub fn mirror(&self) -> PathBuf {
        self.vault.mirror("me", &self.dir)
    }

    /// Flushes and compares source and mirror in every way there is.
    pub fn flush_and_compare(&self, what: &str) {
        self.source.flush();
        assert_same(what, &self.dir, &self.mirror());
    }
}

/// What rsync would do to make `copy` equal to `original`; empty if they are. Top-level names in `skip` are left out.
pub fn rsync_differences(original: &Path, copy: &Path, skip: &[&str], within: Duration) -> String {
    let slash = |p: &Path| {
        let mut p = p.as_os_str().to_owned();
        p.push("/");
        p
    };
    let mut command = Command::new("rsync");
    command.args(["-aHAXnc", "--delete", "--numeric-ids", "--itemize-changes"]);
    command.args(skip.iter().map(|s| format!("--exclude=/{s}")));
    command.args([slash(original), slash(copy)]);
    run(&mut command, within).good()
}

/// The top-level directory whose paths are too long for rsync: only [`Listing`] compares it.
pub const DEEP: &str = "deep";

/// Panics unless both trees are the same, by rsync's judgement and by [`Listing`]'s.
pub fn assert_same(what: &str, original: &Path, copy: &Path) {
    let differences = rsync_differences(original, copy, &[DEEP], SHORT);
    assert_eq!(
        differences, "",
        "{what}: rsync finds differences (original: {original:?})"
    );
    Listing::of(original).assert_equals(&Listing::of(copy), what);
}

/// What a tree holds at one moment, content told by its hash, so that trees of any size can be compared.
///
/// As `farwrite_testkit::Snapshot`, which keeps the content; neither minds how long the paths are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing(pub BTreeMap<Vec<u8>, Listed>);

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub meta: Meta,
    /// Of all pages that are not zero, with their offsets.
    pub hash: Option<blake3::Hash>,
    /// First name of the same file: equal for hard links of each other.
    pub first_link: Vec<u8>,
    /// Names that the file has in all, a directory's subdirectories included.
    pub links: u32,
}

impl Listing {
    /// Reads a real tree.
    pub fn of(top: &Path) -> Listing {
        let mut walk = Walk::default();
        let dir = Dir::open(top).unwrap_or_else(|e| panic!("{}: {e}", top.display()));
        let stat = dir.stat_self().unwrap();
        let xattrs = farwrite_fs::list_xattrs(&dir, None).unwrap();
        let meta = farwrite_fs::read_meta_with(&stat, Vec::new(), xattrs);
        walk.put(Vec::new(), meta, None, &stat);
        walk.below(&dir, &mut Vec::new());
        Listing(walk.out)
    }

    /// What differs, a line each.
    pub fn differences(&self, other: &Listing) -> Vec<String> {
        let mut out = Vec::new();
        for (p, a) in &self.0 {
            match other.0.get(p) {
                None => out.push(format!("{}: only in the first", lossy(p))),
                Some(b) if a != b => out.push(format!("{}: {a:?}\n   / {b:?}", lossy(p))),
                Some(_) => {}
            }
        }
        let more = other.0.keys().filter(|p| !self.0.contains_key(*p));
        out.extend(more.map(|p| format!("{}: only in the second", lossy(p))));
        out
    }

    pub fn assert_equals(&self, other: &Listing, what: &str) {
        let differences = self.differences(other);
        let shown = &differences[..differences.len().min(10)];
        assert!(
            differences.is_empty(),
            "{what}: {} differences\n{}",
            differences.len(),
            shown.join("\n")
        );
    }
}

#[derive(Default)]
struct Walk {
    out: BTreeMap<Vec<u8>, Listed>,
    files: HashMap<u64, Vec<u8>>,
}

impl Walk {
    fn below(&mut self, dir: &Dir, path: &mut Vec<u8>) {
        let mut names: Vec<Name> = dir.list().unwrap().into_iter().map(|e| e.name).collect();
        names.sort();
        for name in names {
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let stat = dir.stat(&name).unwrap();
            let meta = read_meta(dir, &name, &stat).unwrap();
            let hash = (meta.kind == Kind::File).then(|| {
                let file = dir.open_file(&name, OpenMode::Read).unwrap();
                content_hash(&file, meta.size).unwrap_or_else(|e| panic!("{}: {e}", lossy(path)))
            });
            let is_dir = meta.kind == Kind::Dir;
            self.put(path.clone(), meta, hash, &stat);
            if is_dir {
                self.below(&dir.open_dir(&name).unwrap(), path);
            }
            path.truncate(length);
        }
    }

    fn put(&mut self, path: Vec<u8>, meta: Meta, hash: Option<blake3::Hash>, stat: &Stat) {
        // The walk is in an order of its own that depends on the names only: the first name found is the same in a copy.
        let first = self
            .files
            .entry(stat.id.ino)
            .or_insert_with(|| path.clone());
        let first_link = match stat.nlink > 1 && meta.kind != Kind::Dir {
            true => first.clone(),
            false => path.clone(),
        };
        let listed = Listed {
            meta,
            hash,
            first_link,
            links: stat.nlink,
        };
        self.out.insert(path, listed);
    }
}

/// Of all pages that are not zero, with their offsets; a hole costs nothing.
fn content_hash(file: &File, size: u64) -> io::Result<blake3::Hash> {
    const PAGE: u64 = 4096;
    const PIECE: u64 = 1 << 20;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; PIECE as usize];
    for s in data_segments(file, size)?.iter().filter(|s| !s.hole) {
        let mut at = s.offset / PAGE * PAGE;
        let end = s.offset + s.len;
        while at < end {
            let piece = &mut buffer[..PIECE.min(end - at) as usize];
            file.read_exact_at(piece, at)?;
            for (i, page) in piece.chunks(PAGE as usize).enumerate() {
                if page.iter().any(|b| *b != 0) {
                    hasher.update(&(at + i as u64 * PAGE).to_le_bytes());
                    hasher.update(page);
                }
            }
            at += PIECE;
        }
    }
    Ok(hasher.finalize())
}

/// Bytes that a tree's files take on the disk.
pub fn disk_bytes(top: &Path) -> u64 {
    let out = sh(
        "du",
        [OsStr::new("-s"), OsStr::new("-B1"), top.as_os_str()],
        SHORT,
    );
    out.split_whitespace().next().unwrap().parse().unwrap()
}

/// A name of any bytes.
pub fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
