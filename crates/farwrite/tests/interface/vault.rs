//! The pages of a vault: who is let in, what they tell of sources and what not, verification, alerts.

use crate::browser::*;
use crate::pages::looks;
use crate::rig::*;
use crate::security::say;
use crate::sinks::{self, Tls, wait_for};
use farwrite_control::{Client, VaultStatus};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A vault with a source, and a browser that was let in to its pages.
struct VaultSite {
    pair: Pair,
    browser: Browser,
    base: String,
    _place: Place,
}

impl VaultSite {
    fn open(place: Place) -> VaultSite {
        let mut pair = Pair::new(&place);
        fs::write(
            pair.src.join("a name that is nobody's business"),
            "secret content",
        )
        .unwrap();
        fs::write(pair.src.join("large"), vec![7; 3_000_000]).unwrap();
        pair.source.start();
        pair.converges(SOON);
        let browser = Browser::start();
        let link = vault_entrance(&pair.vault);
        browser.go(&link);
        VaultSite {
            pair,
            browser,
            base: link.split("/enter").next().unwrap().to_owned(),
            _place: place,
        }
    }

    fn go(&self, path: &str) {
        self.browser.go(&format!("{}{path}", self.base));
    }
}

fn status(vault: &Path) -> VaultStatus {
    let client = Client::connect(&vault.join("control.sock")).unwrap();
    client.get("vault").unwrap()
}

#[test]
fn a_vault_shows_its_sources_to_whom_it_let_in_and_to_nobody_else() {
    let mut site = VaultSite::open(Place::new());
    let dir = site.pair.vault.dir.clone();
    let b = &site.browser;
    b.wait(
        "well",
        SOON,
        "document.querySelector('h1').innerText.includes('All is well. 1 of 1 connected')",
    );
    let row = b.text("tbody tr");
    assert!(
        row.contains(NAME) && row.contains("connected") && row.contains("up to date"),
        "{row}"
    );
    b.wait(
        "the mirror is counted",
        SOON,
        "/^3\\.[0-9] MB/.test(document.querySelectorAll('tbody td')[5].innerText)",
    );
    b.wait(
        "the source says that it is not behind",
        SOON,
        "document.querySelectorAll('tbody td')[3].innerText.includes('up to date')",
    );
    let source = &status(&dir).sources[0];
    assert_eq!((source.pending_changes, source.lag_ms), (Some(0), Some(0)));
    for page in ["/", &format!("/source/{NAME}"), "/alerts"] {
        site.go(page);
        let text = b.run("return document.documentElement.outerHTML");
        let text = text.as_str().unwrap();
        assert!(
            !text.contains("nobody's business") && !text.contains("secret content"),
            "{text}"
        );
    }
    // The same gate as that of a source.
    let address = site.base.strip_prefix("http://").unwrap().to_owned();
    let get = |path: &str, host: &str, more: &str| {
        say(
            &address,
            &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n"),
        )
    };
    for path in [
        "/",
        "/alerts",
        "/live/sources",
        "/live/source/web1",
        "/source/web1",
        "/no",
    ] {
        let answer = get(path, &address, "");
        assert_eq!(answer.code, 401, "{path}");
        assert!(
            !answer.body.contains(NAME) && answer.body.contains("farwrite vault ui"),
            "{}",
            answer.body
        );
        assert!(
            answer.head.contains("default-src 'none'"),
            "{}",
            answer.head
        );
        assert_eq!(get(path, "evil.example", "").code, 421);
        assert_eq!(
            get(path, &address, "sec-fetch-site: cross-site\r\n").code,
            403
        );
    }
    let post = format!(
        "POST /source/{NAME}/verify HTTP/1.1\r\nhost: {address}\r\norigin: http://evil.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(say(&address, &post).code, 403);
    assert_eq!(get("/enter?token=old", &address, "").code, 403);
    let mode = fs::metadata(dir.join("control.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // A source that goes away, and one that was never there.
    site.pair.source.kill();
    site.go("/");
    site.browser.wait(
        "gone",
        SOON,
        "document.querySelector('tbody').innerText.includes('not connected')",
    );
    assert!(!status(&dir).sources[0].connected);
    assert_eq!(site.pair.vault.status()[0]["connected"], false);
    site.pair.source.start();
    site.browser.wait(
        "back",
        SOON,
        "document.querySelector('h1').innerText.includes('1 of 1 connected')",
    );
    site.go("/source/nobody");
    site.browser.wait(
        "not there",
        SOON,
        "document.body.innerText.includes('no source of this name')",
    );
    // The vault itself: stopped, the page says that it is old.
    site.go("/");
    site.browser.wait(
        "live",
        SOON,
        "document.querySelector('h1').innerText.includes('All is well')",
    );
    site.pair.vault.stop();
    assert!(!dir.join("control.sock").exists());
    site.browser
        .wait("old", SOON, "!document.querySelector('#connection').hidden");
}

#[test]
fn a_vault_is_verified_on_its_page_and_tells_somebody_what_is_wrong() {
    let mut site = VaultSite::open(Place::new());
    let b = &site.browser;
    let (web, posts) = sinks::http(&[], Tls::None);
    site.go("/alerts");
    b.fill("#alert_silent", "ever");
    b.click("#save");
    b.wait(
        "the error",
        SOON,
        "document.querySelector('#error-alert_silent')",
    );
    assert_eq!(b.value("#alert_silent"), "ever");
    b.fill("#alert_silent", "2d");
    b.fill("#alert_webhook", &format!("http://127.0.0.1:{web}/"));
    b.click("#save");
    b.wait("saved", SOON, "document.body.innerText.includes('Saved')");
    b.click("#test-alert");
    b.wait(
        "sent",
        SOON,
        "document.querySelector('#tested').innerText.includes('sent to 127.0.0.1')",
    );
    let mut test = farwrite();
    test.args(["vault", "alert-test"]).arg(&site.pair.vault.dir);
    let said = run(&mut test, SOON).good();
    assert!(said.contains("webhook: sent to 127.0.0.1"), "{said}");
    // Retention: wrong, previewed, saved.
    site.go(&format!("/source/{NAME}"));
    b.fill("#keep_all", "5 minutes");
    b.click("#preview-button");
    b.wait(
        "the error",
        SOON,
        "document.querySelector('#preview').innerText.includes('keep_all')",
    );
    b.click("#save");
    b.wait(
        "the error",
        SOON,
        "document.querySelector('#error-keep_all')",
    );
    assert_eq!(b.value("#keep_all"), "5 minutes");
    b.fill("#keep_all", "30d");
    b.fill("#daily", "2y");
    b.click("#preview-button");
    b.wait(
        "the preview",
        SOON,
        "document.querySelector('#prune-preview')?.innerText.includes('Nothing would be dropped')",
    );
    b.click("#save");
    b.wait(
        "saved",
        SOON,
        "document.body.innerText.includes('next daily prune')",
    );
    let mut shown = farwrite();
    shown.args(["vault", "retention"]).arg(&site.pair.vault.dir);
    let said = run(&mut shown, SOON).good();
    assert!(said.contains("web1: every change 30d, daily 2y"), "{said}");
    // The brake: said, told, and let go of.
    let source_dir = site.pair.vault.dir.join("sources").join(NAME);
    let brake = "why = \"900 of 1,000 files rewritten\"\nfirst = 7\nmark = \"brake-6\"\n[time]\nsec = 1\nnsec = 0\n";
    fs::write(source_dir.join("brake.toml"), brake).unwrap();
    b.wait(
        "said",
        SOON,
        "document.querySelector('#brake')?.innerText.includes('900 of 1,000')",
    );
    wait_for("the webhook", &posts, |(_, body)| {
        body.contains("\"brake\"") && body.contains("\"begin\"")
    });
    let found = b.violations();
    assert!(found.is_empty(), "{found:?}");
    b.run("window.confirm = () => true");
    b.click("#release");
    b.wait(
        "released",
        SOON,
        "!document.querySelector('#brake') && document.querySelector('#state')",
    );
    assert!(!source_dir.join("brake.toml").exists());
    wait_for("that it is over", &posts, |(_, body)| {
        body.contains("\"brake\"") && body.contains("\"end\"")
    });
    // Verified: clean.
    site.go(&format!("/source/{NAME}"));
    assert!(b.text("#verify").contains("never"));
    b.click("#verify-now");
    b.wait(
        "clean",
        SOON,
        "document.querySelector('#verify')?.innerText.includes('clean')",
    );
    assert!(site.pair.vault.status()[0]["verified"]["findings"] == 0);
    // A byte of the content goes bad.
    let segment = site.pair.vault.segments(NAME).join("00000001.seg");
    let mut file = fs::OpenOptions::new().write(true).open(segment).unwrap();
    file.seek(SeekFrom::Start(300)).unwrap();
    file.write_all(b"rot").unwrap();
    drop(file);
    b.click("#verify-now");
    b.wait(
        "wrong",
        SOON,
        "document.querySelector('#verify')?.innerText.includes('wrong')",
    );
    let told = wait_for("the webhook", &posts, |(_, body)| {
        body.contains("\"verify\"")
    });
    assert!(
        told.1.contains(NAME) && told.1.contains("\"begin\""),
        "{}",
        told.1
    );
    site.go("/");
    b.wait(
        "said",
        SOON,
        "document.querySelector('#sentence').innerText.includes('things wrong')",
    );
    // It is remembered over a restart of the daemon.
    site.pair.vault.stop();
    site.pair.vault.serve();
    until("the alert", SOON, || {
        (!status(&site.pair.vault.dir).alerts.is_empty()).then_some(())
    });
    assert!(site.pair.vault.verify().code == Some(1));
    // The same in numbers, for a monitoring system.
    site.pair.vault.stop();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    drop(taken);
    site.pair.vault.serve_with(&["--metrics", &address]);
    let metrics = || {
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        say(&address, request)
    };
    let text = until("the alert is among the numbers", SOON, || {
        let answer = metrics();
        assert!(answer.head.contains("openmetrics-text"), "{}", answer.head);
        answer
            .body
            .contains("farwrite_vault_alert{alert=\"verify\",source=\"web1\"} 1")
            .then_some(answer.body)
    });
    assert!(text.ends_with("# EOF\n"), "{text}");
    let number = |name: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("farwrite_vault_source_{name}{{")));
        let value = line
            .unwrap_or_else(|| panic!("{name}: {text}"))
            .rsplit(' ')
            .next()
            .unwrap();
        value.parse::<f64>().unwrap()
    };
    assert!(number("verify_findings") > 0.0 && number("verify_age_seconds") < 600.0);
    assert!(number("log_bytes") > 0.0 && number("versions") > 0.0);
    assert!(
        !text.contains("nobody's business") && !text.contains("demo"),
        "{text}"
    );
}

#[test]
fn every_page_of_a_vault_is_for_everybody() {
    let mut place = Place::new();
    if screens().is_some() {
        place.top = "/srv/demo-vault".into();
        let _ = fs::remove_dir_all(&place.top);
        fs::create_dir_all(&place.top).unwrap();
    }
    let mut site = VaultSite::open(place);
    // A day of growth to look at.
    site.pair.source.flush(SOON);
    let now = tool("date", &["+%s"]).trim().parse::<u64>().unwrap() * 1000;
    let rows: Vec<String> = (0..140)
        .map(|i| {
            let at = now - (140 - i) * 600_000;
            format!(
                "[{at}, {}, {}, {}]",
                i * 20_000 + (i % 7) * 3000,
                200_000,
                3_000_000
            )
        })
        .collect();
    let dir = site.pair.vault.dir.clone();
    site.pair.vault.stop();
    let text = format!("samples = [{}]\n", rows.join(", "));
    fs::write(dir.join("sources").join(NAME).join("space.toml"), text).unwrap();
    site.pair
        .vault
        .invite("mail-server", "backup.example.org:9873");
    site.pair.vault.serve();
    let link = vault_entrance(&site.pair.vault);
    site.base = link.split("/enter").next().unwrap().to_owned();
    let b = &site.browser;
    b.go(&link);
    b.wait(
        "connected",
        SOON,
        "document.querySelector('tbody').innerText.includes('connected')",
    );
    let mut wrong = Vec::new();
    let source = format!("/source/{NAME}");
    for (name, page) in [
        ("vault", "/"),
        ("vault-source", &source),
        ("vault-retention", &source),
        ("vault-alerts", "/alerts"),
        ("vault-missing", "/no"),
    ] {
        looks(b, name, &mut wrong, || {
            site.go(page);
            if page == source.as_str() {
                b.wait("the chart", SOON, "document.querySelector('.space-chart')");
            }
            if name == "vault-retention" {
                b.run("document.querySelector('#retention-title').scrollIntoView()");
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
