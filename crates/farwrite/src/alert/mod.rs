//! Telling a person, wherever he is, that something is wrong and when it is over: by a command, a webhook, a mail. Used by
//! the daemon of a source and by that of a vault, which know what is wrong. Must never hold up the backup, never grow
//! without bound while nobody can be reached, and never let a password out.

mod api;
mod channels;
mod command;
mod deliver;
mod mail;
mod secret;
mod webhook;

pub use api::{change, show, tested};
pub use channels::{Channels, Mail, Security, Wrong};
pub use deliver::{Dispatcher, Tested, test};
pub use secret::Secret;

use jiff::Timestamp;
use std::sync::OnceLock;

/// Whether something begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is wrong from now on.
    Begin,
    /// It is over.
    End,
    /// Nothing is wrong: somebody wants to see whether he would be told.
    Test,
}

impl Phase {
    /// As commands and webhooks get it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Begin => "begin",
            Phase::End => "end",
            Phase::Test => "test",
        }
    }
}

/// Something that a person has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// What sort: "lag", "offline" ...
    pub kind: &'static str,
    /// Which vault (at a source) or source (at a vault); empty: this machine itself.
    pub about: String,
    /// Begin or end.
    pub phase: Phase,
    /// In words.
    pub message: String,
    /// When.
    pub time: Timestamp,
}

impl Alert {
    /// From now.
    pub fn new(kind: &'static str, about: &str, phase: Phase, message: impl Into<String>) -> Alert {
        Alert {
            kind,
            about: about.into(),
            phase,
            message: message.into(),
            time: Timestamp::now(),
        }
    }

    /// One line that says it all.
    fn line(&self) -> String {
        // A message may hold a path, and a path anything.
        let message: String = self
            .message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("Farwrite on {}: {message}", host())
    }
}

/// What this machine is called.
fn host() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = rustix::system::uname();
        let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c);
        let name: String = name
            .nodename()
            .to_string_lossy()
            .chars()
            .filter(|c| plain(*c))
            .collect();
        if name.is_empty() {
            "localhost".into()
        } else {
            name
        }
    })
}

/// Why something was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// In words, without any secret.
    pub why: String,
    /// It may work later.
    pub again: bool,
}

impl NotSent {
    fn for_now(why: impl Into<String>) -> NotSent {
        NotSent {
            why: why.into(),
            again: true,
        }
    }

    fn for_good(why: impl Into<String>) -> NotSent {
        NotSent {
            why: why.into(),
            again: false,
        }
    }
}
