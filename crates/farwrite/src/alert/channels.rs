//! Where alerts go, as the configuration has it, and what of it is wrong.

use super::secret::Secret;
use lettre::message::Mailbox;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use ureq::http::Uri;

/// Longest address, name or password.
const TEXT_BYTES: usize = 2048;
/// Most people that get a mail.
const RECIPIENTS: usize = 32;

/// Where alerts go; what is empty is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Run by `sh -c`.
    pub command: String,
    /// Gets a POST with JSON.
    pub webhook: String,
    /// Sent along as `Authorization: Bearer`.
    pub webhook_token: Secret,
    /// Mail.
    pub mail: Mail,
}

/// `[alert.mail]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mail {
    /// HOST or HOST:PORT; empty: no mail.
    pub server: String,
    /// How the connection is secured.
    pub security: Security,
    /// Empty: the server wants no login.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Of the user.
    #[serde(skip_serializing_if = "Secret::is_empty")]
    pub password: Secret,
    /// The sender.
    pub from: String,
    /// Who gets it.
    pub to: Vec<String>,
}

/// How a connection to a mail server is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// Plain at first, TLS before anything is said; port 587.
    #[default]
    Starttls,
    /// TLS from the start; port 465.
    Tls,
    /// None; port 25.
    None,
}

impl Security {
    /// All, as the configuration has them.
    pub const NAMES: [&'static str; 3] = ["starttls", "tls", "none"];

    /// By its name.
    pub fn named(name: &str) -> Option<Security> {
        match name {
            "starttls" => Some(Security::Starttls),
            "tls" => Some(Security::Tls),
            "none" => Some(Security::None),
            _ => None,
        }
    }

    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        Security::NAMES[self as usize]
    }

    fn port(self) -> u16 {
        match self {
            Security::Starttls => 587,
            Security::Tls => 465,
            Security::None => 25,
        }
    }
}

/// A field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("alert.{field}: {why}")]
pub struct Wrong {
    /// As the configuration has it: "webhook", "mail.server" ...
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn wrong<T>(field: &'static str, why: impl Into<String>) -> Result<T, Wrong> {
    let why = why.into();
    Err(Wrong { field, why })
}

impl Channels {
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), Wrong> {
        check_webhook(&self.webhook, &self.webhook_token)?;
        self.mail.check()
    }
}

fn check_webhook(address: &str, token: &Secret) -> Result<(), Wrong> {
    if token.reveal().len() > TEXT_BYTES || token.reveal().chars().any(|c| !c.is_ascii_graphic()) {
        return wrong("webhook_token", "letters, digits and signs only");
    }
    if address.is_empty() {
        return Ok(());
    }
    let field = "webhook";
    if address.len() > TEXT_BYTES {
        return wrong(field, format!("longer than {TEXT_BYTES} bytes"));
    }
    let form = "an address such as https://alerts.example.org/hook is needed";
    let Ok(uri) = address.parse::<Uri>() else {
        return wrong(field, form);
    };
    let Some(authority) = uri.authority() else {
        return wrong(field, form);
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return wrong(field, form);
    }
    if authority.as_str().contains('@') {
        return wrong(
            field,
            "no user and password in the address: use webhook_token",
        );
    }
    if !token.is_empty() && uri.scheme_str() == Some("http") && !is_loopback(authority.host()) {
        return wrong(
            field,
            "a token would be readable on its way: use https, or no token",
        );
    }
    Ok(())
}

/// Does it stay on this machine?
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// "host", "host:port", "[address]:port".
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, Some(port.parse::<u16>().ok().filter(|p| *p > 0)?))
        }
        _ => (text, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c);
    let good = !host.is_empty() && host.len() <= 255;
    let good = good && (host.chars().all(plain) || host.parse::<IpAddr>().is_ok());
    good.then(|| (host.to_owned(), port))
}

impl Mail {
    /// Host and port.
    pub(super) fn place(&self) -> Option<(String, u16)> {
        let (host, port) = host_and_port(&self.server)?;
        Some((host, port.unwrap_or(self.security.port())))
    }

    fn check(&self) -> Result<(), Wrong> {
        if self.server.is_empty() {
            return Ok(());
        }
        let Some((host, _)) = self.place() else {
            return wrong(
                "mail.server",
                "HOST or HOST:PORT is needed, such as mail.example.org:587",
            );
        };
        if self.user.len() > TEXT_BYTES || self.user.chars().any(char::is_control) {
            return wrong("mail.user", "no name of a user");
        }
        let password = self.password.reveal();
        if password.len() > TEXT_BYTES || password.chars().any(char::is_control) {
            return wrong("mail.password", "too long, or not text");
        }
        if self.user.is_empty() != self.password.is_empty() {
            return match self.user.is_empty() {
                true => wrong("mail.user", "a password without a user"),
                false => wrong("mail.password", "a user needs a password"),
            };
        }
        if !self.user.is_empty() && self.security == Security::None && !is_loopback(&host) {
            return wrong(
                "mail.security",
                "the password would be readable on its way: use starttls or tls",
            );
        }
        if self.from.parse::<Mailbox>().is_err() {
            return wrong(
                "mail.from",
                "an address such as farwrite@example.org is needed",
            );
        }
        if self.to.is_empty() {
            return wrong("mail.to", "nobody would get it: at least one address");
        }
        if self.to.len() > RECIPIENTS {
            return wrong("mail.to", format!("more than {RECIPIENTS} addresses"));
        }
        match self.to.iter().find(|a| a.parse::<Mailbox>().is_err()) {
            Some(bad) => wrong("mail.to", format!("{bad:?} is not an address")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail() -> Mail {
        Mail {
            server: "mail.example.org".into(),
            security: Security::Starttls,
            user: "me".into(),
            password: Secret::new("hunter2"),
            from: "Farwrite <farwrite@example.org>".into(),
            to: vec!["a@example.org".into(), "b@example.org".into()],
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(mail().check(), Ok(()));
        assert_eq!(mail().place(), Some(("mail.example.org".into(), 587)));
        type Change = fn(&mut Mail);
        let cases: [(&str, Change); 12] = [
            ("mail.server", |m| m.server = "a b".into()),
            ("mail.server", |m| m.server = "host:99999".into()),
            ("mail.server", |m| m.server = "smtp://host".into()),
            ("mail.server", |m| m.server = ":25".into()),
            ("mail.user", |m| m.user = String::new()),
            ("mail.password", |m| m.password = Secret::default()),
            ("mail.security", |m| m.security = Security::None),
            ("mail.from", |m| m.from = "me".into()),
            ("mail.from", |m| m.from = "me@x\r\nbcc: a@b".into()),
            ("mail.to", |m| m.to = vec![]),
            ("mail.to", |m| m.to = vec!["nobody".into()]),
            ("mail.to", |m| m.to = vec!["a@b".into(); 33]),
        ];
        for (i, (field, change)) in cases.into_iter().enumerate() {
            let mut m = mail();
            change(&mut m);
            let found = m.check().unwrap_err();
            assert_eq!(found.field, field, "case {i}: {found}");
            assert!(!found.to_string().contains("hunter2"));
        }
        for (server, place) in [
            ("h:25", ("h", 25)),
            ("[::1]:2525", ("::1", 2525)),
            ("::1", ("::1", 587)),
        ] {
            let m = Mail {
                server: server.into(),
                ..mail()
            };
            assert_eq!(m.place(), Some((place.0.into(), place.1)), "{server}");
        }
    }

    #[test]
    fn a_webhook_is_an_address_without_a_password() {
        let none = Secret::default();
        let token = Secret::new("t0ken");
        for good in [
            "",
            "https://a.example/x?y=z",
            "http://10.0.0.1:8080/",
            "http://[::1]/",
        ] {
            assert_eq!(check_webhook(good, &none), Ok(()), "{good}");
        }
        for bad in [
            "a",
            "/x",
            "ftp://a/x",
            "https://",
            "https://u:p@a/x",
            "http://a b/",
        ] {
            assert_eq!(
                check_webhook(bad, &none).unwrap_err().field,
                "webhook",
                "{bad}"
            );
        }
        assert!(check_webhook("http://a.example/", &token).is_err());
        assert!(check_webhook("http://127.0.0.1:1/", &token).is_ok());
        assert!(check_webhook("https://a.example/", &token).is_ok());
        let bad = check_webhook("https://a.example/", &Secret::new("a\r\nb"));
        assert_eq!(bad.unwrap_err().field, "webhook_token");
    }

    #[test]
    fn a_secret_is_not_printed() {
        let all = Channels {
            mail: mail(),
            webhook_token: Secret::new("t0ken"),
            ..Channels::default()
        };
        let text = format!("{all:?} {all:#?}");
        assert!(
            !text.contains("hunter2") && !text.contains("t0ken"),
            "{text}"
        );
    }
}
