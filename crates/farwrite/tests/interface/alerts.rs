//! Alerts: that they get to where they are to go, when they begin and when they are over; that a wrong field is named; that
//! no password gets out.

use crate::browser::*;
use crate::rig::*;
use crate::sinks::{self, Tls, certificates, wait_for};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A source whose daemon trusts the authority in `place/authority.pem`.
fn pair(place: &Place) -> Pair {
    let mut pair = Pair::new(place);
    let authority = place.top.join("authority.pem");
    let command = move || {
        let mut c = farwrite();
        c.env("SSL_CERT_FILE", &authority)
            .env_remove("SSL_CERT_DIR");
        c
    };
    pair.source = Source::run_by(&pair.source.state, Box::new(command));
    pair
}

fn configure(state: &Path, alert: &str) {
    let config = state.join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (top, rest) = text.split_once("[[directory]]").unwrap();
    let rest = rest.split_once("\n[alert").map_or(rest, |(rest, _)| rest);
    fs::write(&config, format!("{top}[[directory]]{rest}\n{alert}\n")).unwrap();
}

/// Nothing that the daemon logs or says holds it.
fn assert_secret(pair: &Pair, secret: &str) {
    assert!(!pair.source.log_text().contains(secret));
    assert!(
        !pair
            .source
            .run(&["status", "--json"])
            .good()
            .contains(secret)
    );
    let socket = pair.source.state.join("control.sock");
    let client = farwrite_control::Client::connect(&socket).unwrap();
    let all = client.get::<Value>("settings").unwrap().to_string();
    assert!(
        all.contains("alert_channels") && !all.contains(secret),
        "{all}"
    );
}

#[test]
fn an_alert_gets_through_by_webhook_and_mail_when_the_vault_goes_and_when_it_is_back() {
    let place = Place::new();
    let tls = certificates(&place.top.join("authority.pem"));
    let mut pair = pair(&place);
    // Busy at first, then away, then it takes it: what is not delivered is tried again.
    let (web, posts) = sinks::http(&[503, 429], Tls::AtOnce(tls.clone()));
    let (mail, letters) = sinks::smtp(Some("hunter2"), Tls::OnRequest(tls));
    configure(
        &pair.source.state,
        &format!(
            "[alert]\noffline = \"200ms\"\nwebhook = \"https://localhost:{web}/hook\"\nwebhook_token = \"t0ken\"\n\
             [alert.mail]\nserver = \"localhost:{mail}\"\nuser = \"me\"\npassword = \"hunter2\"\n\
             from = \"Farwrite <farwrite@example.org>\"\nto = [\"a@example.org\", \"b@example.org\"]\n"
        ),
    );
    pair.source.start();
    pair.converges(SOON);
    pair.vault.kill();
    let begins = |phase: &'static str| {
        move |(_, body): &(String, String)| {
            let v: Value = serde_json::from_str(body).unwrap();
            v["alert"] == "offline" && v["phase"] == phase
        }
    };
    let letter = wait_for("the mail", &letters, |l| l.text.contains("offline"));
    assert!(letter.secured, "the mail came in the clear");
    assert_eq!(letter.login, Some(("me".into(), "hunter2".into())));
    assert!(letter.from.contains("<farwrite@example.org>"), "{letter:?}");
    assert_eq!(letter.to.len(), 2, "{letter:?}");
    assert!(letter.text.contains("Subject: Farwrite on "), "{letter:?}");
    until("the webhook after two refusals", SOON, || {
        (posts.lock().unwrap().len() >= 3).then_some(())
    });
    let (head, body) = posts.lock().unwrap()[2].clone();
    assert!(begins("begin")(&(head.clone(), body.clone())), "{body}");
    assert!(head.starts_with("POST /hook "), "{head}");
    assert!(
        head.to_lowercase().contains("authorization: bearer t0ken"),
        "{head}"
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(
        body["text"].as_str().unwrap().starts_with("Farwrite on "),
        "{body}"
    );
    pair.vault.serve();
    wait_for("that it is over", &posts, begins("end"));
    wait_for("that it is over", &letters, |l| {
        l.text.contains("This is over")
    });
    // By hand: each channel says how it went.
    let said = pair.source.run(&["alert", "test"]).good();
    assert!(
        said.contains("webhook: sent to localhost") && said.contains("mail: sent to a@example.org"),
        "{said}"
    );
    wait_for("the test", &letters, |l| {
        l.text.contains("somebody asked for a test")
    });
    assert_secret(&pair, "hunter2");
    assert_secret(&pair, "t0ken");
}

#[test]
fn what_cannot_be_delivered_is_said_and_holds_nothing_up() {
    let place = Place::new();
    let tls = certificates(&place.top.join("authority.pem"));
    // This one is not trusted.
    let foreign = certificates(&place.top.join("foreign.pem"));
    let mut pair = pair(&place);
    let said = pair.source.run(&["alert", "test"]).bad();
    assert!(said.contains("no daemon is running"), "{said}");
    pair.source.start();
    pair.converges(SOON);
    let state = pair.source.state.clone();
    let said = pair.source.run(&["alert", "test"]).bad();
    assert!(said.contains("nobody would be told"), "{said}");
    let (mail, letters) = sinks::smtp(Some("right"), Tls::AtOnce(tls));
    let (web, _) = sinks::http(&[302], Tls::None);
    let (untrusted, never) = sinks::http(&[], Tls::AtOnce(foreign));
    let mail_with = |password: &str| {
        format!(
            "[alert.mail]\nserver = \"localhost:{mail}\"\nsecurity = \"tls\"\nuser = \"me\"\npassword = \"{password}\"\n\
             from = \"f@example.org\"\nto = [\"t@example.org\"]\n"
        )
    };
    configure(&state, &mail_with("hunter2"));
    let said = pair.source.run(&["alert", "test"]).bad();
    assert!(
        said.contains("535") && said.contains("wrong password"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    configure(&state, &mail_with("right"));
    pair.source.run(&["alert", "test"]).good();
    assert!(letters.lock().unwrap()[0].secured);
    for (webhook, why) in [
        (format!("http://127.0.0.1:{web}/"), "302"),
        ("http://127.0.0.1:1/".into(), "refused"),
        (format!("https://localhost:{untrusted}/"), "certificate"),
    ] {
        configure(&state, &format!("[alert]\nwebhook = \"{webhook}\"\n"));
        let said = pair.source.run(&["alert", "test"]).bad();
        assert!(said.to_lowercase().contains(why), "{webhook}: {said}");
    }
    assert!(never.lock().unwrap().is_empty());
    // A server that never answers: the backup goes on, the other channel too.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, log) = (silent.local_addr().unwrap().port(), place.top.join("told"));
    configure(
        &state,
        &format!(
            "[alert]\noffline = \"100ms\"\ncommand = \"echo $FARWRITE_ALERT $FARWRITE_PHASE >> {}\"\nwebhook = \"http://127.0.0.1:{port}/\"\n",
            log.display()
        ),
    );
    pair.vault.kill();
    until("the command", SOON, || {
        let told = fs::read_to_string(&log).unwrap_or_default();
        told.contains("offline begin").then_some(())
    });
    pair.vault.serve();
    fs::write(pair.src.join("meanwhile"), "x").unwrap();
    pair.converges(SOON);
    until("that it is over", SOON, || {
        let told = fs::read_to_string(&log).unwrap();
        told.contains("offline end").then_some(())
    });
}

#[test]
fn channels_are_set_and_tested_on_the_page_which_names_what_is_wrong() {
    let site = Site::open(|_| ());
    let b = &site.browser;
    let (mail, letters) = sinks::smtp(Some("hunter2"), Tls::None);
    site.go("/settings");
    b.click("#test-alert");
    b.wait(
        "nobody",
        SOON,
        "document.querySelector('#tested').innerText.includes('Nobody would be told')",
    );
    let save = |what: &str| {
        b.run("window.isOld = true");
        b.click("#save");
        b.wait(
            what,
            SOON,
            "!window.isOld && document.readyState === 'complete' && document.querySelector('#save')",
        );
    };
    b.fill("#alert_webhook", "hook");
    save("an error");
    assert!(b.text("#error-alert_webhook").contains("https://"));
    assert_eq!(b.value("#alert_webhook"), "hook");
    b.fill("#alert_webhook", "");
    b.fill("#alert_disk", "little");
    save("an error");
    assert!(!b.text("#error-alert_disk").is_empty());
    b.fill("#alert_disk", "1 MB");
    b.fill("#alert_mail_server", &format!("127.0.0.1:{mail}"));
    save("an error");
    assert!(!b.text("#error-alert_mail_from").is_empty());
    b.fill("#alert_mail_from", "farwrite@example.org");
    b.fill("#alert_mail_to", "a@example.org\nnobody");
    save("an error");
    assert!(b.text("#error-alert_mail_to").contains("nobody"));
    b.fill("#alert_mail_to", "a@example.org\nb@example.org");
    b.fill("#alert_mail_user", "me");
    b.fill("#alert_mail_password", "hunter2");
    b.run("document.querySelector('#alert_mail_security').value = 'none'");
    save("saved");
    assert!(b.text("body").contains("Saved"), "{}", b.text("body"));
    // The password is on no page, and stays if the field is left empty.
    let page = b.run("return document.documentElement.outerHTML");
    assert!(!page.as_str().unwrap().contains("hunter2"));
    assert_eq!(
        b.attribute("#alert_mail_password", "placeholder"),
        "there is one"
    );
    save("saved again");
    b.click("#test-alert");
    b.wait("sent", SOON, "document.querySelector('#tested').innerText.includes('sent to a@example.org, b@example.org')");
    let letter = letters.lock().unwrap()[0].clone();
    assert_eq!(letter.login, Some(("me".into(), "hunter2".into())));
    // Another server gets it only from somebody who knows it.
    b.fill("#alert_mail_server", "127.0.0.1:1");
    save("an error");
    assert!(b.text("#error-alert_mail_password").contains("again"));
    let found = b.violations();
    assert!(found.is_empty(), "{found:?}");
    assert_secret(&site.pair, "hunter2");
    let config = fs::read_to_string(site.pair.source.state.join("config.toml")).unwrap();
    assert!(config.contains("password = \"hunter2\""));
}
