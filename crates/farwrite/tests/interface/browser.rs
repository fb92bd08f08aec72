//! A real browser, driven by WebDriver (<https://www.w3.org/TR/webdriver2/>): Debian's chromium and chromium-driver.
//!
//! WebDriver is JSON over HTTP: the little of it that these tests need is here.

use crate::rig::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Between two looks at a page.
const LOOK: Duration = Duration::from_millis(20);
/// Time for one command of WebDriver.
const COMMAND: Duration = Duration::from_secs(60);

/// Checks a page for what a person with a disability would stumble over.
const AXE: &str = include_str!("../../../../testdata/axe-core/axe.min.js");

/// The driver process; ends with its browsers.
struct Driver {
    child: Child,
    address: String,
}

impl Driver {
    fn start() -> Driver {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium-driver is installed (scripts/setup test)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|l| {
                Some(
                    l.split("started successfully on port ")
                        .nth(1)?
                        .trim_end_matches('.')
                        .to_owned(),
                )
            })
            .expect("the driver names its port");
        // Its output has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Driver {
            child,
            address: format!("127.0.0.1:{port}"),
        }
    }

    /// One command; the error is what the driver says.
    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut stream = TcpStream::connect(&self.address).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(COMMAND)).unwrap();
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream
            .write_all((head + &body).as_bytes())
            .map_err(|e| e.to_string())?;
        let mut reader = BufReader::new(stream);
        let (mut length, mut line) = (None, String::new());
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).map_err(|e| e.to_string())?;
            if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse::<u64>().ok();
            }
            if line.is_empty() {
                return Err("the driver hung up".into());
            }
        }
        let mut answer = Vec::new();
        let read = reader
            .take(length.unwrap_or(u64::MAX))
            .read_to_end(&mut answer);
        read.map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].clone()),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A browser with a new profile.
pub struct Browser {
    driver: Driver,
    session: String,
    _profile: tempfile::TempDir,
}

/// How the browser looks at pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Desktop,
    Phone,
}

/// What is held down.
#[derive(Clone, Copy, Debug)]
pub enum Held {
    Mouse,
    Key(&'static str),
}

impl Browser {
    pub fn start() -> Browser {
        let driver = Driver::start();
        let profile = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut args: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--lang=en",
            "--window-size=1200,900",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": args},
            "timeouts": {"script": 30_000, "pageLoad": 30_000},
        }}});
        let made = driver.call("POST", "/session", &wanted).expect("a browser");
        Browser {
            session: format!("/session/{}", made["sessionId"].as_str().unwrap()),
            driver,
            _profile: profile,
        }
    }

    fn post(&self, path: &str, body: Value) -> Result<Value, String> {
        self.driver
            .call("POST", &format!("{}{path}", self.session), &body)
    }

    pub fn go(&self, address: &str) {
        self.post("/url", json!({"url": address})).unwrap();
    }

    pub fn address(&self) -> String {
        let found = self
            .driver
            .call("GET", &format!("{}/url", self.session), &Value::Null);
        found.unwrap().as_str().unwrap().to_owned()
    }

    pub fn forget_cookies(&self) {
        let path = format!("{}/cookie", self.session);
        self.driver.call("DELETE", &path, &Value::Null).unwrap();
    }

    fn try_run(&self, script: &str) -> Result<Value, String> {
        self.post("/execute/sync", json!({"script": script, "args": []}))
    }

    /// Runs a script in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.try_run(script).unwrap()
    }

    /// Runs one that calls `done` with its result.
    #[track_caller]
    pub fn run_async(&self, script: &str) -> Value {
        let script = format!("const done = arguments[arguments.length - 1]; {script}");
        let found = self.post("/execute/async", json!({"script": script, "args": []}));
        found.unwrap()
    }

    /// Waits for a condition on the page.
    #[track_caller]
    pub fn wait(&self, what: &str, within: Duration, condition: &str) -> Duration {
        let begin = Instant::now();
        let script = format!("return Boolean({condition});");
        loop {
            // A page that is being left has no answer.
            if self.try_run(&script).is_ok_and(|v| v == true) {
                return begin.elapsed();
            }
            if begin.elapsed() > within {
                panic!("not within {within:?}: {what}\n{}", self.text("body"));
            }
            std::thread::sleep(LOOK);
        }
    }

    #[track_caller]
    fn element(&self, using: &str, value: &str) -> String {
        match self.post("/element", json!({"using": using, "value": value})) {
            Ok(found) => {
                let id = found.as_object().unwrap().values().next().unwrap();
                format!("/element/{}", id.as_str().unwrap())
            }
            Err(e) => panic!("{value}: {e}\n{}", self.text("body")),
        }
    }

    /// What is shown of the first such element; empty if there is none.
    pub fn text(&self, css: &str) -> String {
        let script = format!(
            "return document.querySelector({})?.innerText ?? ''",
            json!(css)
        );
        let found = self.try_run(&script).unwrap_or_default();
        found.as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn click(&self, css: &str) {
        self.act("css selector", css, "click", json!({}));
    }

    #[track_caller]
    pub fn follow(&self, link: &str) {
        self.act("link text", link, "click", json!({}));
    }

    /// Presses keys while the element has the focus.
    #[track_caller]
    pub fn press(&self, css: &str, keys: &str) {
        self.act("css selector", css, "value", json!({"text": keys}));
    }

    /// Does something to an element. If another page came between the looking up and the doing, it was not touched: that is
    /// done again.
    #[track_caller]
    fn act(&self, using: &str, value: &str, what: &str, with: Value) {
        let begin = Instant::now();
        loop {
            let element = self.element(using, value);
            match self.post(&format!("{element}/{what}"), with.clone()) {
                Err(e) if e.contains("stale element") && begin.elapsed() < SOON => (),
                done => {
                    done.unwrap();
                    return;
                }
            }
        }
    }

    /// Holds the mouse's button or a key down on an element while `meanwhile` runs, then lets go.
    #[track_caller]
    pub fn hold(&self, css: &str, held: Held, meanwhile: impl FnOnce()) {
        let act = |actions: Value| {
            self.post("/actions", json!({"actions": [actions]}))
                .unwrap();
        };
        let mouse = |actions: Value| json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
        let keys = |actions: Value| json!({"type": "key", "id": "keys", "actions": actions});
        match held {
            Held::Mouse => {
                let element = self.element("css selector", css);
                let id = element.strip_prefix("/element/").unwrap();
                // The key that WebDriver names elements by.
                let origin = json!({"element-6066-11e4-a52e-4f735466cecf": id});
                act(mouse(json!([
                    {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin},
                    {"type": "pointerDown", "button": 0},
                ])));
                meanwhile();
                act(mouse(json!([{"type": "pointerUp", "button": 0}])));
            }
            Held::Key(key) => {
                self.run(&format!("document.querySelector({}).focus()", json!(css)));
                act(keys(json!([{"type": "keyDown", "value": key}])));
                meanwhile();
                act(keys(json!([{"type": "keyUp", "value": key}])));
            }
        }
    }

    /// Drags with the mouse over an element, from one part of its width to another.
    #[track_caller]
    pub fn drag(&self, css: &str, from: f64, to: f64) {
        let element = self.element("css selector", css);
        let id = element.strip_prefix("/element/").unwrap();
        let width = self.run(&format!(
            "return document.querySelector({}).getBoundingClientRect().width",
            json!(css)
        ));
        // From its middle.
        let x = |part: f64| ((part - 0.5) * (width.as_f64().unwrap() - 2.0)) as i64;
        let at = |part: f64| json!({"type": "pointerMove", "duration": 50, "x": x(part), "y": 0, "origin": {"element-6066-11e4-a52e-4f735466cecf": id}});
        let actions = json!([
            at(from), {"type": "pointerDown", "button": 0}, at((from + to) / 2.0), at(to), {"type": "pointerUp", "button": 0},
        ]);
        let mouse = json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
        self.post("/actions", json!({"actions": [mouse]})).unwrap();
    }

    /// Replaces what is in a field.
    #[track_caller]
    pub fn fill(&self, css: &str, text: &str) {
        let element = self.element("css selector", css);
        self.post(&format!("{element}/clear"), json!({})).unwrap();
        self.post(&format!("{element}/value"), json!({"text": text}))
            .unwrap();
    }

    #[track_caller]
    pub fn value(&self, css: &str) -> String {
        let found = self.run(&format!(
            "return document.querySelector({}).value",
            json!(css)
        ));
        found.as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn attribute(&self, css: &str, name: &str) -> String {
        let found = self.run(&format!(
            "return document.querySelector({}).getAttribute({})",
            json!(css),
            json!(name)
        ));
        found.as_str().unwrap_or_default().to_owned()
    }

    /// What axe-core finds on the page that is open.
    pub fn violations(&self) -> Vec<String> {
        // The policy of the page does not let scripts in; the driver does.
        self.run(AXE);
        let found = self.run_async(
            "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations.map(v => \
             v.id + ': ' + v.help + ' ' + v.nodes.map(n => n.target.join(' ') + ' ' + (n.any[0]?.message || '')).join(' | '))), \
             e => done([String(e)]));",
        );
        let found = found.as_array().unwrap().iter();
        found.map(|v| v.as_str().unwrap().to_owned()).collect()
    }

    /// Light or dark, desktop or phone.
    pub fn look(&self, look: Look, dark: bool) {
        let (width, height, phone) = match look {
            Look::Desktop => (1200, 860, false),
            Look::Phone => (390, 844, true),
        };
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", media);
        let screen =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", screen);
    }

    fn devtools(&self, command: &str, params: Value) {
        self.post(
            "/goog/cdp/execute",
            json!({"cmd": command, "params": params}),
        )
        .unwrap();
    }

    pub fn screenshot(&self, to: &Path) {
        let path = format!("{}/screenshot", self.session);
        let png = self.driver.call("GET", &path, &Value::Null).unwrap();
        std::fs::write(to, STANDARD.decode(png.as_str().unwrap()).unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser's processes.
        let _ = self.driver.call("DELETE", &self.session, &Value::Null);
    }
}

/// A source with a GUI and a browser that was let in.
pub struct Site {
    pub pair: Pair,
    pub browser: Browser,
    /// `http://127.0.0.1:PORT`.
    pub base: String,
    pub place: Place,
}

impl Site {
    pub fn open(prepare: impl FnOnce(&Path)) -> Site {
        Site::open_in(Place::new(), prepare)
    }

    pub fn open_in(place: Place, prepare: impl FnOnce(&Path)) -> Site {
        let mut pair = Pair::new(&place);
        prepare(&pair.src);
        pair.source.start();
        pair.converges(SOON);
        let browser = Browser::start();
        let link = entrance(&pair);
        browser.go(&link);
        let base = link.split("/enter").next().unwrap().to_owned();
        Site {
            pair,
            browser,
            base,
            place,
        }
    }

    pub fn go(&self, path: &str) {
        self.browser.go(&format!("{}{path}", self.base));
    }

    /// The address of the history of something in the protected directory.
    pub fn history(&self, page: &str, below: &str, at: &str) -> String {
        let path = self.pair.src.join(below);
        let query = [("path", path.to_str().unwrap()), ("at", at)];
        format!("{page}?{}", serde_urlencoded::to_string(query).unwrap())
    }
}

/// A link that lets a browser in.
pub fn entrance(pair: &Pair) -> String {
    pair.source.run(&["ui"]).good().trim().to_owned()
}

/// A link that lets a browser in to the pages of a vault.
pub fn vault_entrance(vault: &Vault) -> String {
    let mut command = farwrite();
    command.args(["vault", "ui"]).arg(&vault.dir);
    run(&mut command, SOON).good().trim().to_owned()
}

/// Where screenshots are wanted, if they are: `FARWRITE_SCREENS=DIR`.
pub fn screens() -> Option<PathBuf> {
    std::env::var_os("FARWRITE_SCREENS").map(PathBuf::from)
}
