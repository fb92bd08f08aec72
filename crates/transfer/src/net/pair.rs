//! The source's side of a pairing: shows the vault the token and its own key, and learns its name.

use super::READ_BYTES;
use super::dialer::{Dialed, Dialer, TlsTarget};
use super::history::{hello, push};
use super::outgoing::Outgoing;
use super::tls::Identity;
use crate::message::{Message, Purpose, Refusal, TEXT_BYTES, printable};
use crate::pairing::Invite;
use crate::session::{DEAD_AFTER, Framer, HELLO_BYTES, OUTPUT_BYTES};
use bytes::BytesMut;
use farwrite_core::SourceName;
use serde_bytes::ByteBuf;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// What a source has after pairing; with its [`Identity`] all that a [`Dialer`] needs is in the invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paired {
    /// What the vault calls itself.
    pub vault: String,
    /// What it calls this source.
    pub name: SourceName,
}

/// Why a pairing failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The vault was not reached, or the connection broke: try again with the same invite.
    #[error("no connection to the vault: {why}")]
    Lost {
        /// Why.
        why: String,
    },
    /// The vault does not want it.
    #[error("the vault refused: {0}")]
    Refused(Refusal),
}

/// Redeems an invite at the first of its addresses where the invite's vault answers.
pub async fn pair(
    invite: &Invite,
    identity: &Identity,
    software: &str,
) -> Result<Paired, PairError> {
    let dialer = Dialer::Tls(TlsTarget {
        addresses: invite.addresses.clone(),
        vault: invite.vault,
        identity: identity.clone(),
    });
    let lost = |why: String| PairError::Lost { why };
    let dialed = dialer.dial().await.map_err(lost)?;
    match timeout(DEAD_AFTER, exchange(dialed, invite, software)).await {
        Ok(result) => result,
        Err(_) => Err(lost("no answer in time".into())),
    }
}

/// [`pair`] for plain threads.
pub fn pair_blocking(
    rt: &tokio::runtime::Handle,
    invite: &Invite,
    identity: &Identity,
    software: &str,
) -> Result<Paired, PairError> {
    rt.block_on(pair(invite, identity, software))
}

async fn exchange(dialed: Dialed, invite: &Invite, software: &str) -> Result<Paired, PairError> {
    let lost = |why: String| PairError::Lost { why };
    let (mut stream, _) = dialed.split();
    let mut out = Outgoing::new(Duration::ZERO);
    let token = ByteBuf::from(invite.token.to_vec());
    push(out.end(), &hello(software.into(), Purpose::Pair { token }));
    while out.is_busy() {
        let sent = out.progress(&mut stream, OUTPUT_BYTES).await;
        sent.map_err(|e| lost(e.to_string()))?;
    }
    let mut framer = Framer::default();
    let mut input = BytesMut::with_capacity(READ_BYTES);
    loop {
        while let Some(record) = framer.next(HELLO_BYTES).map_err(|e| lost(e.to_string()))? {
            match Message::from_record(&record).map_err(|e| lost(e.to_string()))? {
                Message::Paired { vault, name } => {
                    let vault = printable(&vault, TEXT_BYTES);
                    return Ok(Paired { vault, name });
                }
                Message::Refused(r) => {
                    let text = printable(&r.text, TEXT_BYTES);
                    return Err(PairError::Refused(Refusal::new(r.code, text)));
                }
                Message::Failed { text, .. } => return Err(lost(printable(&text, TEXT_BYTES))),
                Message::Alive => {}
                other => {
                    let what = printable(&format!("{other:?}"), 80);
                    return Err(lost(format!("the vault broke the protocol: {what}")));
                }
            }
        }
        input.clear();
        match stream.read_buf(&mut input).await {
            Ok(0) => return Err(lost("the vault closed the connection".into())),
            Ok(_) => framer.push(&input),
            Err(e) => return Err(lost(e.to_string())),
        }
    }
}
