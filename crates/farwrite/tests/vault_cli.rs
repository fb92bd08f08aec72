//! The vault commands of the real binary: making, serving, inviting, status, verification, and every wrong use.

mod maker;

use farwrite_core::{SourceName, Timestamp};
use farwrite_transfer::net::tls::Identity;
use farwrite_transfer::net::{PairError, pair_blocking};
use farwrite_transfer::pairing::{Invite, InviteStore};
use maker::{NOON, sample_vault};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

struct Place {
    top: PathBuf,
    _temp: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Place {
            top: temp.path().canonicalize().unwrap(),
            _temp: temp,
        }
    }

    fn vault(&self) -> PathBuf {
        self.top.join("vault")
    }

    fn run(&self, args: &[&str]) -> Output {
        farwrite()
            .args(args)
            .current_dir(&self.top)
            .output()
            .unwrap()
    }
}

fn farwrite() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_farwrite"));
    c.env("TZ", "UTC")
        .env_remove("FARWRITE_LOG")
        .env_remove("NOTIFY_SOCKET");
    c
}

fn good(out: Output) -> String {
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// The one line of a command that must fail.
fn bad(out: Output) -> String {
    assert_eq!(
        out.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(err.starts_with("farwrite: "), "{err}");
    err
}

fn source() -> SourceName {
    SourceName::new("web1").unwrap()
}

struct Served {
    child: Child,
    line: String,
}

impl Served {
    fn start(vault: &Path) -> Served {
        let mut child = farwrite()
            .args(["vault", "serve", "--listen", "127.0.0.1:0"])
            .arg(vault)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Served { child, line }
    }

    fn address(&self) -> String {
        self.line
            .split(" on ")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .into()
    }

    /// Asks it to end and waits for it.
    fn stop(mut self, signal: Signal) -> bool {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn init_makes_a_vault_only_where_nothing_is() {
    let p = Place::new();
    let made = good(p.run(&["vault", "init", "vault"]));
    assert!(
        made.contains("vault serve") && made.contains("vault invite"),
        "{made}"
    );
    assert!(bad(p.run(&["vault", "init", "vault"])).contains("is a vault already"));
    fs::create_dir(p.top.join("full")).unwrap();
    fs::write(p.top.join("full/file"), "").unwrap();
    assert!(bad(p.run(&["vault", "init", "full"])).contains("is not empty"));
    assert!(bad(p.run(&["vault", "init", "full/file"])).contains("Not a directory"));
    // A new ext4 is not quite empty.
    fs::create_dir_all(p.top.join("disk/lost+found")).unwrap();
    good(p.run(&["vault", "init", "disk", "--no-mirror"]));
}

#[test]
fn every_command_wants_a_vault() {
    let p = Place::new();
    for args in [
        &["vault", "serve", "."][..],
        &["vault", "invite", ".", "--name", "x"],
        &["vault", "status", "."],
        &["vault", "verify", "."],
        &["vault", "stdio", ".", "--name", "x"],
        &["ls", "--vault-dir", ".", "--source", "x"],
    ] {
        assert!(
            bad(p.run(args)).contains("is not a vault: make one with"),
            "{args:?}"
        );
    }
    good(p.run(&["vault", "init", "vault"]));
    assert!(bad(p.run(&["vault", "verify", "vault", "--name", "x"])).contains("no source x"));
    assert!(bad(p.run(&["ls", "--vault-dir", "vault", "--source", "x"])).contains("no source x"));
    assert!(
        bad(p.run(&[
            "vault",
            "invite",
            "vault",
            "--name",
            "x",
            "--address",
            "::1"
        ]))
        .contains("[::1]")
    );
    assert!(bad(p.run(&["vault", "serve", "vault", "--listen", "9873"])).contains("ADDR:PORT"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(
        bad(p.run(&["vault", "serve", "vault", "--listen", &address]))
            .contains("another program uses this port")
    );
}

#[test]
fn one_process_serves_a_vault_and_ends_when_asked() {
    let p = Place::new();
    good(p.run(&["vault", "init", "vault"]));
    for signal in [Signal::TERM, Signal::INT] {
        let served = Served::start(&p.vault());
        assert!(served.line.contains("fingerprint "), "{}", served.line);
        let second = bad(p.run(&["vault", "serve", "vault", "--listen", "127.0.0.1:0"]));
        assert!(second.contains("is being served already"), "{second}");
        let out = p.run(&["vault", "invite", "vault", "--name", "web1"]);
        let said = String::from_utf8(out.stderr.clone()).unwrap();
        assert!(
            said.contains("web1") && said.contains("farwrite source add"),
            "{said}"
        );
        let line = good(out);
        assert_eq!(line.lines().count(), 1, "{line}");
        let invite: Invite = line.parse().unwrap();
        assert_eq!(invite.addresses, [served.address()]);
        assert!(served.line.contains(&invite.vault.to_string()));
        assert!(served.stop(signal));
    }
}

#[test]
fn the_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let p = Place::new();
    good(p.run(&["vault", "init", "vault"]));
    let path = p.top.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut command = farwrite();
    command
        .env("NOTIFY_SOCKET", &path)
        .args(["vault", "serve", "--listen", "127.0.0.1:0"])
        .arg(p.vault());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let hear = || {
        let mut buf = [0; 200];
        let n = socket.recv(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..n]).trim().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(hear(), "STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_invite_is_good_for_one_machine_and_for_its_time() {
    let p = Place::new();
    good(p.run(&["vault", "init", "vault"]));
    let served = Served::start(&p.vault());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pair =
        |invite: &Invite, key: &Identity| pair_blocking(runtime.handle(), invite, key, "test");
    let refusal = |e: PairError| match e {
        PairError::Refused(r) => r.text,
        other => panic!("{other}"),
    };
    let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let invite: Invite = good(p.run(&["vault", "invite", "vault", "--name", "web1"]))
        .parse()
        .unwrap();
    assert_eq!(pair(&invite, &one).unwrap().name, source());
    // The answer may have been lost on the way.
    assert_eq!(pair(&invite, &one).unwrap().name, source());
    assert!(refusal(pair(&invite, &other).unwrap_err()).contains("used already"));

    let store = InviteStore::new(&p.vault());
    let then = Timestamp {
        sec: NOON - 1_000_000_000,
        nsec: 0,
    };
    let old = store
        .create(
            &source(),
            vec![served.address()],
            invite.vault,
            then,
            Duration::from_secs(60),
        )
        .unwrap();
    assert!(refusal(pair(&old, &other).unwrap_err()).contains("expired"));
    let mut forged = invite.clone();
    forged.token[0] ^= 1;
    assert!(refusal(pair(&forged, &other).unwrap_err()).contains("has not made this invite"));

    let status: Value =
        serde_json::from_str(&good(p.run(&["vault", "status", "vault", "--json"]))).unwrap();
    assert_eq!(
        (&status[0]["name"], &status[0]["last_batch"]),
        (&"web1".into(), &0.into()),
        "{status}"
    );
    let again = p.run(&["vault", "invite", "vault", "--name", "web1"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("has joined before"));
}

#[test]
fn status_shows_every_source() {
    let p = Place::new();
    sample_vault(&p.vault(), &source());
    let status: Value =
        serde_json::from_str(&good(p.run(&["vault", "status", "vault", "--json"]))).unwrap();
    let row = &status[0];
    assert_eq!(
        (&row["last_batch"], &row["mirror_batch"], &row["batches"]),
        (&4.into(), &4.into(), &4.into())
    );
    assert_eq!(
        (&row["last_time"], &row["clean"]),
        (&"2026-05-01T12:20:00Z".into(), &false.into())
    );
    assert_eq!(
        (&row["failure"], &row["error"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        row["mirror"],
        format!("{}/sources/web1/mirror", p.vault().display())
    );
    let text = good(p.run(&["vault", "status", "vault"]));
    let line = text.lines().nth(1).unwrap();
    assert!(
        line.starts_with("web1    2026-05-01 12:20:00") && line.ends_with("/sources/web1/mirror"),
        "{text}"
    );

    fs::write(
        p.vault().join("sources/web1/failure.toml"),
        "what = \"disk full\"\n[time]\nsec = 1\nnsec = 0\n",
    )
    .unwrap();
    fs::create_dir(p.vault().join("sources/broken")).unwrap();
    fs::write(p.vault().join("sources/broken/source.toml"), "{").unwrap();
    let text = good(p.run(&["vault", "status", "vault"]));
    assert!(
        text.contains("! web1: disk full (") && text.contains("! broken: "),
        "{text}"
    );
}

#[test]
fn verify_finds_a_flipped_bit() {
    let p = Place::new();
    sample_vault(&p.vault(), &source());
    assert!(good(p.run(&["vault", "verify", "vault"])).starts_with("web1: ok, 4 batches, "));
    let segment = p.vault().join("sources/web1/log/00000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(3).position(|w| w == b"one").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let out = p.run(&["vault", "verify", "vault"]);
    let said = String::from_utf8(out.stdout.clone()).unwrap();
    assert!(
        said.starts_with("web1: segment 1, offset 64, batch 1: "),
        "{said}"
    );
    assert!(bad(out).contains("wrong in "));
    let out = p.run(&["vault", "verify", "vault", "--name", "web1", "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let doc: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&doc[0]["findings"][0]["offset"], &doc[0]["error"]),
        (&64.into(), &Value::Null),
        "{doc}"
    );
}

#[test]
fn doctor_reports_and_fails_only_for_what_does_not_work() {
    let p = Place::new();
    let state = p.top.join("state");
    let doctor = |args: &[&str]| {
        farwrite()
            .env("FARWRITE_STATE", &state)
            .arg("doctor")
            .args(args)
            .output()
            .unwrap()
    };
    let text = good(doctor(&[]));
    assert!(
        text.contains("sensor scan") && text.contains("warn  configuration"),
        "{text}"
    );
    assert!(!state.exists(), "doctor made the state directory");
    fs::create_dir(&state).unwrap();
    fs::create_dir(p.top.join("src")).unwrap();
    let directory = |name: &str, slot: u32| {
        format!(
            "[[directory]]\npath = \"{}/{name}\"\nslot = {slot}\n",
            p.top.display()
        )
    };
    fs::write(
        state.join("config.toml"),
        directory("src", 1) + &directory("gone", 2),
    )
    .unwrap();
    let out = doctor(&["--json"]);
    let checks: Value = serde_json::from_slice(&out.stdout).unwrap();
    let of = |what: String| {
        checks
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["check"] == *what)
            .unwrap()["result"]
            .clone()
    };
    assert_eq!(of(format!("{}/src", p.top.display())), "ok", "{checks}");
    assert_eq!(of(format!("{}/gone", p.top.display())), "fail", "{checks}");
    assert!(bad(out).contains("one thing does not work"));
    assert_eq!(fs::read_dir(p.top.join("src")).unwrap().count(), 0);
    fs::write(state.join("config.toml"), "interval = \"often\"").unwrap();
    let broken = doctor(&[]);
    assert!(String::from_utf8_lossy(&broken.stdout).contains("fail  configuration"));
    bad(broken);
}

#[test]
fn a_served_vault_verifies_its_sources_by_itself() {
    let p = Place::new();
    sample_vault(&p.vault(), &source());
    let mut child = farwrite()
        .args([
            "vault",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--verify-every",
            "1s",
        ])
        .arg(p.vault())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let path = p.vault().join("sources/web1/verify.toml");
    let begun = std::time::Instant::now();
    while !path.exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = fs::read_to_string(&path);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(found.unwrap().contains("findings = 0"));
}
