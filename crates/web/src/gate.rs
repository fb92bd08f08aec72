//! Who gets in: one-time tokens that become sessions, and what every request is held to.
//!
//! - A token is good for one browser, once, for a few minutes; a session ends with the process, or unused after some hours.
//! - `Host` must be `localhost` or an IP address: a web page that points its own name at this machine (DNS rebinding) has a
//!   name there.
//! - Whatever changes something must come from a page of this very origin, and carry the session's secret.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a token is good.
const TOKEN_FOR: Duration = Duration::from_secs(300);
/// How long a session may be unused.
const SESSION_FOR: Duration = Duration::from_secs(12 * 3600);
/// Tokens that nobody has used yet.
const TOKENS: usize = 16;
/// Sessions at once; the one that was unused for longest makes room.
const SESSIONS: usize = 64;

/// Scripts, styles and images from here only; nothing inline, nothing framed, no form to elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What the pages are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The daemon of a source.
    Source,
    /// The daemon of a vault.
    Vault,
}

/// See the module.
pub(crate) struct Gate {
    pub(crate) kind: Kind,
    inner: Mutex<Inner>,
    /// Cookies do not know ports: two daemons on one machine must not take each other's.
    cookie: String,
}

#[derive(Default)]
struct Inner {
    tokens: Vec<(String, Instant)>,
    sessions: Vec<Session>,
}

/// A browser that was let in.
#[derive(Clone)]
pub(crate) struct Session {
    id: String,
    /// In every form.
    pub(crate) csrf: String,
    used: Instant,
}

impl Gate {
    pub(crate) fn new(port: u16, kind: Kind) -> Gate {
        Gate {
            kind,
            inner: Mutex::default(),
            cookie: format!("farwrite-{port}"),
        }
    }

    /// A new token.
    pub(crate) fn token(&self) -> String {
        let token = secret();
        let mut inner = self.inner.lock();
        inner.tokens.retain(|(_, made)| made.elapsed() < TOKEN_FOR);
        if inner.tokens.len() == TOKENS {
            inner.tokens.remove(0);
        }
        inner.tokens.push((token.clone(), Instant::now()));
        token
    }

    /// Exchanges a token for the `Set-Cookie` of a new session.
    pub(crate) fn enter(&self, token: &str) -> Option<HeaderValue> {
        let mut inner = self.inner.lock();
        inner.tokens.retain(|(_, made)| made.elapsed() < TOKEN_FOR);
        let at = inner.tokens.iter().position(|(t, _)| same(t, token))?;
        inner.tokens.remove(at);
        let now = Instant::now();
        inner
            .sessions
            .retain(|s| now.duration_since(s.used) < SESSION_FOR);
        if inner.sessions.len() == SESSIONS {
            inner.sessions.sort_by_key(|s| s.used);
            inner.sessions.remove(0);
        }
        let session = Session {
            id: secret(),
            csrf: secret(),
            used: now,
        };
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Strict",
            self.cookie, session.id
        );
        inner.sessions.push(session);
        HeaderValue::from_str(&cookie).ok()
    }

    /// The session of a request.
    fn session(&self, headers: &HeaderMap) -> Option<Session> {
        let id = headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(';'))
            .filter_map(|c| c.trim().split_once('='))
            .find(|(name, _)| *name == self.cookie)?
            .1;
        let mut inner = self.inner.lock();
        let session = inner.sessions.iter_mut().find(|s| same(&s.id, id))?;
        if session.used.elapsed() >= SESSION_FOR {
            return None;
        }
        session.used = Instant::now();
        Some(session.clone())
    }
}

impl Session {
    /// Is this the secret of the session's forms?
    pub(crate) fn is_csrf(&self, given: &str) -> bool {
        same(&self.csrf, given)
    }
}

/// 256 random bits as text.
fn secret() -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("the kernel has randomness");
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares without telling by its time where the difference is.
fn same(a: &str, b: &str) -> bool {
    let differs = a.bytes().zip(b.bytes()).fold(0, |d, (x, y)| d | (x ^ y));
    a.len() == b.len() && differs == 0
}

/// Holds every request to the rules; pages find the [`Session`] among the request's extensions.
pub(crate) async fn guard(
    State(gate): State<Arc<Gate>>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut response = match admit(&gate, &request) {
        Ok(session) => {
            if let Some(session) = session {
                request.extensions_mut().insert(session);
            }
            next.run(request).await
        }
        Err((code, why)) => refusal(gate.kind, code, why),
    };
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not "no-referrer": forms would then be sent with "Origin: null".
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in fixed {
        // What a handler has set is stricter, or an asset.
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    for (name, value) in [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn admit(gate: &Gate, request: &Request) -> Result<Option<Session>, (StatusCode, &'static str)> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let host = host.filter(|h| is_this_machine(h)).ok_or((
        StatusCode::MISDIRECTED_REQUEST,
        "Use localhost or the machine's address, not another name.",
    ))?;
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if !reads && !from_here(headers, host) {
        return Err((
            StatusCode::FORBIDDEN,
            "This request comes from another web page.",
        ));
    }
    let path = request.uri().path();
    if path == "/enter" || path.starts_with("/assets/") {
        return Ok(None);
    }
    // Reading must not be had from other sites either: a cookie may have come along.
    let site = headers.get("sec-fetch-site").and_then(|v| v.to_str().ok());
    if site == Some("cross-site") && !is_navigation(headers) {
        return Err((
            StatusCode::FORBIDDEN,
            "This request comes from another web page.",
        ));
    }
    match gate.session(headers) {
        Some(session) => Ok(Some(session)),
        None => Err((
            StatusCode::UNAUTHORIZED,
            "This browser has not been let in, or too long ago.",
        )),
    }
}

/// `localhost` or an IP address, with or without a port.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let bare = |h: &str| h.eq_ignore_ascii_case("localhost") || h.parse::<IpAddr>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let Some((inside, port)) = rest.split_once(']') else {
            return false;
        };
        let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port_ok && inside.parse::<IpAddr>().is_ok();
    }
    match host.split_once(':') {
        Some((name, port)) => is_port(port) && bare(name),
        None => bare(host),
    }
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

/// Does the browser say that the request was made by a page of this origin?
fn from_here(headers: &HeaderMap, host: &str) -> bool {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    match text("origin") {
        Some(origin) => origin.strip_prefix("http://") == Some(host),
        None => text("sec-fetch-site") == Some("same-origin"),
    }
}

fn is_navigation(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-mode")
        .is_some_and(|v| v == "navigate")
}

/// A page that says why, in words.
pub(crate) fn refusal(kind: Kind, code: StatusCode, why: &str) -> Response {
    (code, crate::pages::refused(kind, why)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_localhost() {
        for good in [
            "localhost",
            "localhost:9874",
            "LOCALHOST:1",
            "127.0.0.1:9874",
            "[::1]:9874",
            "[::1]",
            "10.0.0.7",
        ] {
            assert!(is_this_machine(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:9874",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "localhost:x",
            "127.0.0.1:99999",
            "[::1",
            "[::1]x",
            "[evil]",
            "localhost:80:80",
            "2130706433",
        ] {
            assert!(!is_this_machine(bad), "{bad}");
        }
    }

    #[test]
    fn a_token_is_good_once_and_old_ones_make_room() {
        let gate = Gate::new(1, Kind::Source);
        let first = gate.token();
        assert!(gate.enter("").is_none() && gate.enter("x").is_none());
        assert!(gate.enter(&first).is_some());
        assert!(gate.enter(&first).is_none());
        let oldest = gate.token();
        for _ in 0..TOKENS {
            gate.token();
        }
        assert!(gate.enter(&oldest).is_none());
    }
}
