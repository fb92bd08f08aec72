//! Requests that nobody would make, at every door: the pages of a source and of a vault (also with a session), and both
//! control sockets. Each is answered or refused in words, and afterwards everything works as before.

use crate::browser::vault_entrance;
use crate::rig::*;
use crate::security::{Gui, say};
use farwrite_testkit::Chance;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Requests at each door.
const REQUESTS: usize = 1200;
/// More of an answer is not read.
const ANSWER_BYTES: u64 = 1 << 20;

const METHODS: [&str; 9] = [
    "GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE", "BREW",
];
const GUI: [&str; 14] = [
    "/",
    "/switch",
    "/activity",
    "/history",
    "/history/file",
    "/history/image",
    "/history/download",
    "/history/restore",
    "/protect",
    "/protect/preview",
    "/protect/remove",
    "/settings",
    "/enter",
    "/assets/app.js",
];
const VAULT_GUI: [&str; 6] = [
    "/",
    "/source/web1",
    "/source/web1/verify",
    "/source/nobody",
    "/alerts",
    "/assets/app.css",
];
const CONTROL: [&str; 15] = [
    "/v1/status",
    "/v1/flush",
    "/v1/interval",
    "/v1/settings",
    "/v1/protect",
    "/v1/unprotect",
    "/v1/excludes/preview",
    "/v1/history/moments",
    "/v1/history/list",
    "/v1/history/versions",
    "/v1/history/diff",
    "/v1/history/timeline",
    "/v1/history/content",
    "/v1/restore",
    "/v1/metrics",
];
const VAULT_CONTROL: [&str; 5] = [
    "/v1/vault",
    "/v1/sources/web1",
    "/v1/sources/web1/verify",
    "/v1/alerts",
    "/v1/openapi.json",
];
const KEYS: [&str; 26] = [
    "vault",
    "path",
    "path_bytes",
    "at",
    "after",
    "limit",
    "from",
    "to",
    "buckets",
    "directory",
    "exclude",
    "known",
    "invite",
    "vault_name",
    "on",
    "directories",
    "place",
    "overwrite",
    "dry_run",
    "interval",
    "sensor",
    "timeout_ms",
    "alert_lag",
    "alert_mail_to",
    "channels",
    "done",
];

/// A value: nothing that would write anywhere but below `place` if it were taken.
fn value(chance: &mut Chance, place: &Path) -> String {
    let known = [
        String::new(),
        "true".into(),
        "-1".into(),
        "18446744073709551616".into(),
        "0".into(),
        "now".into(),
        "10 minutes ago".into(),
        "9999999999999999999 years ago".into(),
        "-9999-99-99T99:99:99Z".into(),
        "..".into(),
        "/proc/self/mem".into(),
        "/../../..".into(),
        format!("{}/src", place.display()),
        format!("{}/src/../src", place.display()),
        format!("{}/nowhere", place.display()),
        "127.0.0.1".into(),
        "farwrite1:AAAA".into(),
        "ssh://-oProxyCommand=x/y".into(),
        "<script>alert(1)</script>".into(),
        "a\0b".into(),
        "%".into(),
        "\u{202e}\u{0}\u{fffd}".into(),
        "AAAA".repeat(3000),
        "[".repeat(3000),
        "**/".repeat(200),
    ];
    match chance.below(4) {
        0 => (0..chance.below(40))
            .map(|_| char::from(chance.below(256) as u8))
            .collect(),
        _ => known[chance.below(known.len() as u64) as usize].clone(),
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02x}")).collect()
}

/// Pairs in a query or a form.
fn pairs(chance: &mut Chance, place: &Path) -> String {
    let one = |chance: &mut Chance| {
        let key = KEYS[chance.below(KEYS.len() as u64) as usize];
        match chance.below(12) {
            0 => "%zz=%".to_owned(),
            1 => key.to_owned(),
            _ => format!("{key}={}", escaped(&value(chance, place))),
        }
    };
    (0..chance.below(6))
        .map(|_| one(chance))
        .collect::<Vec<_>>()
        .join("&")
}

fn json(chance: &mut Chance, place: &Path, depth: u32) -> String {
    match chance.below(if depth > 3 { 4 } else { 7 }) {
        0 => "null".into(),
        1 => {
            ["true", "-0.0", "1e400", "99999999999999999999", "7"][chance.below(5) as usize].into()
        }
        2 | 3 => serde_json::to_string(&value(chance, place)).unwrap(),
        4 => "[".repeat(chance.below(300) as usize),
        5 => {
            let some: Vec<_> = (0..chance.below(4))
                .map(|_| json(chance, place, depth + 1))
                .collect();
            format!("[{}]", some.join(","))
        }
        _ => {
            let some: Vec<_> = (0..chance.below(5))
                .map(|_| {
                    let key = KEYS[chance.below(KEYS.len() as u64) as usize];
                    format!("\"{key}\":{}", json(chance, place, depth + 1))
                })
                .collect();
            format!("{{{}}}", some.join(","))
        }
    }
}

struct Door<'a> {
    paths: &'a [&'a str],
    host: &'a str,
    cookie: &'a str,
    csrf: &'a str,
    place: &'a Path,
}

impl Door<'_> {
    fn request(&self, chance: &mut Chance) -> String {
        let mut pick = |from: &[&str]| from[chance.below(from.len() as u64) as usize].to_owned();
        let method = pick(&METHODS);
        let mut path = pick(self.paths);
        let extra = pick(&[
            "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "/", "/..",
            "/%2e%2e/", "/%00", "/%ff", "//", ";x", "/1", "/-1",
        ]);
        path.push_str(&extra);
        let kind = pick(&[
            "application/json",
            "application/x-www-form-urlencoded",
            "text/plain",
            "x",
        ]);
        let header = pick(&[
            "",
            "",
            "hx-request: true\r\n",
            "range: bytes=5-1\r\n",
            "accept: \r\n",
            "if-modified-since: x\r\n",
            "sec-fetch-site: same-origin\r\n",
            "x: \u{1}\r\n",
            "expect: 100-continue\r\n",
            "upgrade: h2c\r\n",
        ]);
        let query = match chance.below(3) {
            0 => String::new(),
            _ => format!("?{}", pairs(chance, self.place)),
        };
        let mut body = match (method.as_str(), chance.below(5)) {
            ("GET" | "HEAD", _) | (_, 0) => String::new(),
            (_, 1) => value(chance, self.place),
            (_, 2) if !self.csrf.is_empty() => {
                format!("csrf={}&{}", self.csrf, pairs(chance, self.place))
            }
            (_, 3) if !self.csrf.is_empty() => format!("csrf={}", self.csrf),
            _ if self.csrf.is_empty() => json(chance, self.place, 0),
            _ => pairs(chance, self.place),
        };
        if chance.below(8) == 0 {
            let at = chance.below(body.len() as u64 + 1) as usize;
            let at = (0..=at)
                .rev()
                .find(|i| body.is_char_boundary(*i))
                .unwrap_or(0);
            body.truncate(at);
        }
        let host = self.host;
        format!(
            "{method} {path}{query} HTTP/1.1\r\nhost: {host}\r\norigin: http://{host}\r\ncookie: {}\r\nconnection: close\r\n{header}content-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            self.cookie,
            body.len()
        )
    }

    /// Makes the requests; `open` makes a connection.
    fn storm<S: Read + Write>(&self, chance: &mut Chance, open: impl Fn() -> S) {
        let mut codes = std::collections::BTreeMap::new();
        for _ in 0..REQUESTS {
            let request = self.request(chance);
            let mut stream = open();
            // It may be refused before all of it is there.
            let _ = stream.write_all(request.as_bytes());
            let mut answer = Vec::new();
            let _ = stream.take(ANSWER_BYTES).read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            let code: u16 = head
                .split(' ')
                .nth(1)
                .and_then(|c| c.parse().ok())
                .unwrap_or(0);
            *codes.entry(code).or_insert(0) += 1;
            let shown: String = request.chars().take(600).collect();
            assert!(
                code >= 100 || head.is_empty(),
                "no answer: {head}\nto {shown}"
            );
            let head_only = request.starts_with("HEAD");
            if code >= 500 {
                assert!(
                    [501, 502, 503].contains(&code) && (head_only || body.len() > 20),
                    "{answer}\nto {shown}"
                );
            }
            for bad in [
                "internal error",
                "panicked",
                "RUST_BACKTRACE",
                "<script>alert",
            ] {
                // What was asked for may be named in JSON, which no browser takes for a page.
                let said = answer.to_ascii_lowercase();
                let named = bad.starts_with('<') && said.contains("content-type: application/json");
                assert!(named || !body.contains(bad), "{body}\nto {shown}");
            }
        }
        eprintln!("{}: {codes:?}", self.paths[1]);
        assert!(codes.len() > 3, "{codes:?}");
    }
}

fn timed(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

#[test]
fn requests_that_nobody_would_make_are_answered_in_words() {
    let mut chance = Chance::from_env();
    let gui = Gui::open();
    let place = gui.pair.src.parent().unwrap().to_owned();
    let source_pid = gui.pair.source.status()["pid"].clone();
    let link = vault_entrance(&gui.pair.vault);
    let vault_address = link
        .strip_prefix("http://")
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let token = link.split("token=").nth(1).unwrap();
    let let_in = say(
        &vault_address,
        &format!(
            "GET /enter?token={token} HTTP/1.1\r\nhost: {vault_address}\r\nconnection: close\r\n\r\n"
        ),
    );
    let cookie = let_in
        .head
        .lines()
        .find_map(|l| l.strip_prefix("set-cookie: "))
        .unwrap();
    let vault_cookie = cookie.split(';').next().unwrap().to_owned();
    let page = say(
        &vault_address,
        &format!(
            "GET /alerts HTTP/1.1\r\nhost: {vault_address}\r\ncookie: {vault_cookie}\r\nconnection: close\r\n\r\n"
        ),
    );
    let vault_csrf = page
        .body
        .split("name=\"csrf\" value=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    for (paths, address, cookie, csrf) in [
        (&GUI[..], &gui.address, &gui.cookie, &gui.csrf),
        (&VAULT_GUI[..], &vault_address, &vault_cookie, &vault_csrf),
    ] {
        for cookie in [cookie, ""] {
            let door = Door {
                paths,
                host: address,
                cookie,
                csrf,
                place: &place,
            };
            door.storm(&mut chance, || timed(TcpStream::connect(address).unwrap()));
        }
    }
    for (paths, socket) in [
        (&CONTROL[..], gui.pair.source.state.join("control.sock")),
        (&VAULT_CONTROL[..], gui.pair.vault.dir.join("control.sock")),
    ] {
        let door = Door {
            paths,
            host: "farwrite",
            cookie: "",
            csrf: "",
            place: &place,
        };
        door.storm(&mut chance, || {
            let stream = UnixStream::connect(&socket).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            stream
        });
    }
    // Alive, the same processes, no panic in any log, and what was set to something odd is set back.
    assert_eq!(gui.pair.source.status()["pid"], source_pid);
    for log in [gui.pair.source.log(), gui.pair.vault.log()] {
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        assert!(!text.contains("panicked"), "{text}");
    }
    gui.pair.source.run(&["on"]).good();
    gui.pair.source.run(&["interval", "auto"]).good();
    fs::write(gui.pair.src.join("afterwards"), "x").unwrap();
    gui.pair.converges(SOON);
}
