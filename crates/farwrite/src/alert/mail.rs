//! A mail by SMTP.

use super::{Alert, Mail, NotSent, Phase, Security, host};
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Message, SmtpTransport, Transport};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// For each step of the conversation.
const WITHIN: Duration = Duration::from_secs(15);
/// Longest subject, in characters.
const SUBJECT: usize = 140;

/// Sends it.
pub(super) fn send(mail: &Mail, alert: &Alert) -> Result<(), NotSent> {
    let message = message(mail, alert)?;
    let sent = transport(mail)?.send(&message);
    sent.map(drop).map_err(|e| NotSent {
        why: chain(&e),
        again: !e.is_permanent(),
    })
}

/// An error with what is behind it: "connection error: refused".
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = e.source();
    }
    text
}

fn transport(mail: &Mail) -> Result<SmtpTransport, NotSent> {
    let (host_name, port) = mail
        .place()
        .ok_or_else(|| NotSent::for_good("no mail server"))?;
    let tls = || TlsParameters::new(host_name.clone()).map_err(|e| NotSent::for_good(chain(&e)));
    let security = match mail.security {
        Security::Starttls => Tls::Required(tls()?),
        Security::Tls => Tls::Wrapper(tls()?),
        Security::None => Tls::None,
    };
    let mut builder = SmtpTransport::builder_dangerous(&host_name)
        .port(port)
        .tls(security)
        .hello_name(ClientId::Domain(host().into()))
        .timeout(Some(WITHIN));
    if !mail.user.is_empty() {
        let password = mail.password.reveal().to_owned();
        builder = builder.credentials(Credentials::new(mail.user.clone(), password));
    }
    Ok(builder.build())
}

fn message(mail: &Mail, alert: &Alert) -> Result<Message, NotSent> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let id = format!(
        "<farwrite.{}.{}.{count}@{}>",
        alert.time.as_nanosecond(),
        std::process::id(),
        host()
    );
    let address = |text: &str| {
        text.parse::<Mailbox>()
            .map_err(|e| NotSent::for_good(format!("{text:?}: {e}")))
    };
    let mut builder = Message::builder()
        .from(address(&mail.from)?)
        .subject(alert.line().chars().take(SUBJECT).collect::<String>())
        .message_id(Some(id))
        .header(ContentType::TEXT_PLAIN);
    for to in &mail.to {
        builder = builder.to(address(to)?);
    }
    builder
        .body(text(alert))
        .map_err(|e| NotSent::for_good(chain(&e)))
}

fn text(alert: &Alert) -> String {
    let what = match alert.phase {
        Phase::Begin => "This begins.",
        Phase::End => "This is over.",
        Phase::Test => "Nothing is wrong: somebody asked for a test.",
    };
    let about = match alert.about.as_str() {
        "" => String::new(),
        about => format!("About:   {about}\n"),
    };
    format!(
        "{}\n\n{what}\n\nAlert:   {}\n{about}Machine: {}\nTime:    {}\n",
        alert.message,
        alert.kind,
        host(),
        alert.time
    )
}
