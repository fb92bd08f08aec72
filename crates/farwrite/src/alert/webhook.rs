//! One POST with a JSON document. No redirect is followed: the answer must not choose who else is told.

use super::{Alert, NotSent, Secret, host};
use serde_json::json;
use std::time::Duration;
use ureq::tls::{RootCerts, TlsConfig};

/// From connecting to the end of the answer.
const WITHIN: Duration = Duration::from_secs(15);

/// Sends it.
pub(super) fn send(address: &str, token: &Secret, alert: &Alert) -> Result<(), NotSent> {
    let certificates = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(WITHIN))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .tls_config(certificates.build())
        .user_agent(concat!("farwrite/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let mut request = agent
        .post(address)
        .header("content-type", "application/json");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {}", token.reveal()));
    }
    let answer = request
        .send(body(alert).to_string())
        .map_err(|e| NotSent::for_now(e.to_string()))?;
    let code = answer.status();
    if code.is_success() {
        return Ok(());
    }
    let why = format!("the server answers {code}");
    // What the server does not want it will not want later; but it may be busy, or too often asked.
    match code.is_server_error() || [408, 425, 429].contains(&code.as_u16()) {
        true => Err(NotSent::for_now(why)),
        false => Err(NotSent::for_good(why)),
    }
}

/// `text` is what Slack, Mattermost and their like show.
fn body(alert: &Alert) -> serde_json::Value {
    json!({
        "version": 1,
        "alert": alert.kind,
        "phase": alert.phase.name(),
        "host": host(),
        "about": alert.about,
        "message": alert.message,
        "text": alert.line(),
        "time": alert.time.to_string(),
    })
}
