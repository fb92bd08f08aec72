//! Vaults and sources of the real program that a test may kill, stop, starve, cut off or run as another user. Nothing
//! here waits without a deadline, and nothing started here outlives its test.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// For everything that ought to be done at once.
pub const SOON: Duration = Duration::from_secs(60);
/// For what moves much data on a busy machine.
pub const LONG: Duration = Duration::from_secs(240);
/// Between two looks at a condition.
const STEP: Duration = Duration::from_millis(20);
/// User and group `nobody`.
const NOBODY: u32 = 65_534;

/// A temporary directory for one test.
pub struct Place {
    pub top: PathBuf,
    temp: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests need root"
        );
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let top = temp.path().canonicalize().unwrap();
        Place { top, temp }
    }

    /// One that other users reach, with a copy of the program.
    pub fn for_everybody() -> Place {
        let mut place = Place::new();
        place.temp = tempfile::tempdir_in("/var/tmp").unwrap();
        place.top = place.temp.path().canonicalize().unwrap();
        fs::set_permissions(&place.top, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_farwrite"), place.top.join("farwrite")).unwrap();
        place
    }

    /// A directory in it; made if it is not there.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.top.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The program as another user; only in a place for everybody.
    pub fn as_nobody(&self) -> Box<dyn Fn() -> Command> {
        let program = self.top.join("farwrite");
        Box::new(move || {
            let mut c = Command::new("setpriv");
            c.args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=-all",
            ])
            .arg(&program);
            clean(&mut c);
            c
        })
    }
}

pub fn give_to_nobody(path: &Path) {
    std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// The program.
pub fn farwrite() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_farwrite"));
    clean(&mut c);
    c
}

/// The program with low priority.
pub fn nicely() -> Command {
    let mut c = Command::new("nice");
    c.args(["-n", "10", env!("CARGO_BIN_EXE_farwrite")]);
    clean(&mut c);
    c
}

fn clean(c: &mut Command) {
    c.env("TZ", "UTC")
        .env_remove("FARWRITE_LOG")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("FARWRITE_STATE");
}

/// What a command left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// It worked; its output.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out
    }

    /// It failed, with one line on standard error, which is returned.
    #[track_caller]
    pub fn bad(self) -> String {
        assert_eq!(self.code, Some(1), "{}\n{}", self.out, self.err);
        assert_eq!(self.err.trim_end().lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("farwrite: "), "{}", self.err);
        self.err
    }
}

/// Runs a command to its end, which has to come in time.
#[track_caller]
pub fn run(command: &mut Command, within: Duration) -> Ran {
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let all = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = all(Box::new(child.stdout.take().unwrap()));
    let err = all(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            let said = (out.join().unwrap(), err.join().unwrap());
            panic!("{command:?} did not end within {within:?}; it said {said:?}");
        }
        thread::sleep(Duration::from_millis(5));
    };
    Ran {
        code: status.code(),
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}

/// A system tool that has to work.
#[track_caller]
pub fn tool(name: &str, args: &[&str]) -> String {
    run(Command::new(name).args(args), SOON).good()
}

/// Waits for a condition; `what` says which did not come true.
#[track_caller]
pub fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(t) = ask() {
            return t;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(STEP);
    }
}

/// A process in the background, its output in a file that is shown if the test fails.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &mut Command, log: PathBuf) -> Running {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Running {
            child: command.spawn().unwrap(),
            log,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let text = fs::read(&self.log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let from = text.char_indices().rev().nth(20_000).map_or(0, |(i, _)| i);
            eprintln!("--- {}\n{}", self.log.display(), &text[from..]);
        }
    }
}

/// A vault and the process that serves it.
pub struct Vault {
    pub dir: PathBuf,
    pub address: String,
    server: Option<Running>,
    /// Instead of the program as root.
    command: Box<dyn Fn() -> Command>,
}

impl Vault {
    /// Makes one and serves it.
    pub fn new(dir: &Path) -> Vault {
        Vault::made_by(dir, Box::new(farwrite))
    }

    pub fn made_by(dir: &Path, command: Box<dyn Fn() -> Command>) -> Vault {
        run(command().args(["vault", "init"]).arg(dir), SOON).good();
        Vault::served(dir, "127.0.0.1:0", command)
    }

    /// Serves one that exists at an address.
    pub fn at(dir: &Path, address: &str) -> Vault {
        Vault::served(dir, address, Box::new(farwrite))
    }

    fn served(dir: &Path, address: &str, command: Box<dyn Fn() -> Command>) -> Vault {
        let mut vault = Vault {
            dir: dir.to_owned(),
            address: address.into(),
            server: None,
            command,
        };
        vault.serve();
        vault
    }

    /// Serves it, at the same address as before.
    pub fn serve(&mut self) {
        self.serve_with(&[]);
    }

    /// The same with more arguments.
    pub fn serve_with(&mut self, more: &[&str]) {
        let log = self.log();
        let before = fs::metadata(&log).map_or(0, |m| m.len() as usize);
        let mut command = (self.command)();
        command
            .args(["vault", "serve", "--listen", &self.address])
            .args(more)
            .arg(&self.dir);
        let mut server = Running::start(&mut command, log.clone());
        self.address = until("the vault is served", SOON, || {
            let text = fs::read_to_string(&log).unwrap();
            assert!(!server.ended(), "the server ended: {text}");
            let line = text[before..]
                .lines()
                .find(|l| l.starts_with("serving ") && l.contains("fingerprint"))?;
            Some(line.split(" on ").nth(1)?.split(',').next()?.to_owned())
        });
        self.server = Some(server);
    }

    pub fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    pub fn kill(&mut self) {
        self.server.take();
    }

    /// Asks the server to end.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("served");
        server.signal(Signal::TERM);
        until("the server ends when asked", SOON, || {
            server.ended().then_some(())
        });
    }

    pub fn invite(&self, name: &str, address: &str) -> String {
        self.invite_for(name, address, "1h")
    }

    pub fn invite_for(&self, name: &str, address: &str, expires: &str) -> String {
        let mut c = (self.command)();
        c.args([
            "vault",
            "invite",
            "--name",
            name,
            "--address",
            address,
            "--expires",
            expires,
        ])
        .arg(&self.dir);
        run(&mut c, SOON).good().trim().to_owned()
    }

    pub fn mirror(&self, source: &str, dir: &Path) -> PathBuf {
        let mirror = self.dir.join("sources").join(source).join("mirror");
        mirror.join(dir.strip_prefix("/").unwrap())
    }

    pub fn verify(&self) -> Ran {
        run(farwrite().args(["vault", "verify"]).arg(&self.dir), LONG)
    }

    pub fn status(&self) -> Value {
        let out = run(
            farwrite()
                .args(["vault", "status", "--json"])
                .arg(&self.dir),
            SOON,
        )
        .good();
        serde_json::from_str(&out).unwrap()
    }

    /// Restores straight from the directory, into `to`, which becomes `to/NAME-OF-DIR`.
    pub fn restore(&self, source: &str, dir: &Path, at: Option<&str>, to: &Path) -> Ran {
        let mut c = farwrite();
        c.arg("restore")
            .arg(dir)
            .arg("--to")
            .arg(to)
            .arg("--vault-dir")
            .arg(&self.dir)
            .args(["--source", source]);
        if let Some(at) = at {
            c.args(["--at", at]);
        }
        run(&mut c, LONG)
    }

    /// The directory of the log of one source.
    pub fn segments(&self, source: &str) -> PathBuf {
        self.dir.join("sources").join(source).join("log")
    }
}

/// A source: its state directory and its daemon.
pub struct Source {
    pub state: PathBuf,
    args: Vec<String>,
    daemon: Option<Running>,
    command: Box<dyn Fn() -> Command>,
}

impl Source {
    /// Not paired with any vault yet.
    pub fn new(state: &Path) -> Source {
        Source::run_by(state, Box::new(farwrite))
    }

    pub fn run_by(state: &Path, command: Box<dyn Fn() -> Command>) -> Source {
        Source {
            state: state.to_owned(),
            args: vec![],
            daemon: None,
            command,
        }
    }

    /// Arguments for `source run` from now on.
    pub fn with(mut self, args: &[&str]) -> Source {
        self.args = args.iter().map(|s| s.to_string()).collect();
        self
    }

    /// A command of this source.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = (self.command)();
        c.env("FARWRITE_STATE", &self.state).args(args);
        c
    }

    /// Runs a command of this source.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args), SOON)
    }

    /// Protects a directory by an invite.
    #[track_caller]
    pub fn add(&self, dir: &Path, invite: &str, more: &[&str]) -> Ran {
        run(
            self.command(&["source", "add"])
                .arg(dir)
                .args(["--to", invite])
                .args(more),
            SOON,
        )
    }

    /// Starts the daemon and does not wait for it.
    pub fn spawn(&mut self) {
        let log = self.log();
        let mut command = self.command(&["-v", "source", "run"]);
        self.daemon = Some(Running::start(command.args(&self.args), log));
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        self.ready();
    }

    #[track_caller]
    pub fn ready(&mut self) {
        until("the daemon answers", SOON, || {
            assert!(
                !self.daemon.as_mut().unwrap().ended(),
                "the daemon ended: {}",
                self.log_text()
            );
            (self.run(&["status", "--json"]).code == Some(0)).then_some(())
        });
    }

    pub fn log(&self) -> PathBuf {
        self.state.with_extension("log")
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    pub fn kill(&mut self) {
        self.daemon.take();
    }

    /// Waits until the daemon has ended by itself, with an error; gives what it said.
    #[track_caller]
    pub fn fails(&mut self) -> String {
        let daemon = self.daemon.as_mut().expect("running");
        let ended = until("the daemon ends", SOON, || daemon.child.try_wait().unwrap());
        assert!(!ended.success(), "{ended}");
        self.daemon.take();
        self.log_text()
    }

    pub fn daemon(&self) -> &Running {
        self.daemon.as_ref().expect("running")
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "--json"]).good()).unwrap()
    }

    /// Waits for a status that `is`.
    #[track_caller]
    pub fn until(&self, what: &str, within: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            last = self.status();
            if is(&last) {
                return last;
            }
            thread::sleep(STEP);
        }
        panic!("not within {within:?}: {what}; status {last:#}");
    }

    /// Flushes; the result is for the caller to judge.
    #[track_caller]
    pub fn try_flush(&self, within: Duration) -> Ran {
        let timeout = format!("{}ms", within.as_millis());
        run(
            &mut self.command(&["flush", "--timeout", &timeout]),
            within + SOON,
        )
    }

    #[track_caller]
    pub fn flush(&self, within: Duration) {
        let ran = self.try_flush(within);
        if ran.code != Some(0) {
            panic!("flush: {}; status {:#}", ran.err, self.status());
        }
    }
}

/// A vault, a source and a directory that one protects in the other.
pub struct Pair {
    pub vault: Vault,
    pub source: Source,
    pub src: PathBuf,
}

/// What the vault calls the only source of a test.
pub const NAME: &str = "web1";

impl Pair {
    /// Everything is set up; the daemon is not started.
    pub fn new(place: &Place) -> Pair {
        let vault = Vault::new(&place.top.join("vault"));
        let address = vault.address.clone();
        Pair::with(place, vault, &address)
    }

    /// The source reaches the vault at `address`.
    pub fn with(place: &Place, vault: Vault, address: &str) -> Pair {
        let src = place.dir("src");
        let source = Source::new(&place.top.join("state"));
        source.add(&src, &vault.invite(NAME, address), &[]).good();
        Pair { vault, source, src }
    }

    pub fn mirror(&self) -> PathBuf {
        self.vault.mirror(NAME, &self.src)
    }

    /// Flushes, and the mirror is the source.
    #[track_caller]
    pub fn converges(&self, within: Duration) {
        self.source.flush(within);
        assert_same(&self.src, &self.mirror());
    }
}

/// Two trees are the same in every respect that rsync knows.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    let with_slash = |p: &Path| format!("{}/", p.display());
    let mut c = Command::new("rsync");
    c.args(["-aHAXnc", "--delete", "--numeric-ids", "--itemize-changes"])
        .arg(with_slash(a))
        .arg(with_slash(b));
    let differences = run(&mut c, LONG).good();
    assert!(
        differences.is_empty(),
        "{} and {} differ:\n{differences}",
        a.display(),
        b.display()
    );
}

/// Now, as `--at` understands it.
pub fn now() -> String {
    tool("date", &["--utc", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .trim()
        .to_owned()
}

/// A filesystem in memory, for as long as this lives.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(at: &Path, size: &str) -> Tmpfs {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=755");
        tool(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &options,
                "farwrite-test",
                at.to_str().unwrap(),
            ],
        );
        Tmpfs(at.to_owned())
    }

    pub fn resize(&self, size: &str) {
        tool(
            "mount",
            &[
                "-o",
                &format!("remount,size={size}"),
                self.0.to_str().unwrap(),
            ],
        );
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process of a failed test may still be in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
