//! Can a vault be reached, and does it know this machine?

use super::Check;
use crate::config::Vault;
use crate::state::State;
use farwrite_core::history::{Request, Response};
use farwrite_transfer::net::HistoryClient;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

/// How long to try.
const WITHIN: Duration = Duration::from_secs(5);

/// Connects, and asks for the last backup.
pub(super) fn vault(state: &State, vault: &Vault) -> Check {
    let what = format!("vault {}", vault.name);
    let remedy = match &vault.ssh {
        Some(url) => format!(
            "try `ssh` to {url} by hand: it must get in without a password, and `farwrite` must be there"
        ),
        None => format!(
            "see that `farwrite vault serve` runs there and that {} gets through",
            vault.addresses.join(" or ")
        ),
    };
    match ask(state, vault) {
        Ok(text) => Check::ok(what, text),
        Err(e) => Check::fail(what, format!("{e:#}"), remedy),
    }
}

fn ask(state: &State, vault: &Vault) -> anyhow::Result<String> {
    let dialer = vault.dialer(state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (answer, answered) = mpsc::channel();
    let handle = runtime.handle().clone();
    // Ends with the program at the latest: nothing waits for it beyond the bound.
    std::thread::spawn(move || {
        let asked = HistoryClient::connect(
            &handle,
            dialer,
            concat!("farwrite ", env!("CARGO_PKG_VERSION")),
        )
        .and_then(|client| client.ask(Request::Moments));
        // Nobody listens any more after the bound.
        let _ = answer.send(asked);
    });
    let asked = answered.recv_timeout(WITHIN);
    runtime.shutdown_background();
    match asked {
        Err(_) => anyhow::bail!("no answer within {} s", WITHIN.as_secs()),
        Ok(Err(e)) => Err(e.into()),
        Ok(Ok(Response::Moments(Some((_, last))))) => {
            let age = farwrite_core::Timestamp::from(SystemTime::now()).since(last.time);
            Ok(format!(
                "reached; the last backup is {} old",
                crate::bytes::span(age)
            ))
        }
        Ok(Ok(_)) => Ok("reached; no backup yet".into()),
    }
}
