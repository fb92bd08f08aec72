//! The invite: one line to carry from the vault to the source.
//!
//! ```text
//! farwrite1:BASE64URL( postcard(addresses, vault fingerprint, token, name, expires) ++ first 4 bytes of its BLAKE3 )
//! ```
//! The checksum is against garbled pastes, not against forgery: who can change the line can make one.

use crate::message::TOKEN_BYTES;
use crate::net::tls::Fingerprint;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use farwrite_core::{SourceName, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the line starts; the number is the format's version.
const PREFIX: &str = "farwrite1:";
/// Most addresses of an invite.
pub(super) const ADDRESSES: usize = 8;
/// Most bytes of one address.
pub(super) const ADDRESS_BYTES: usize = 260;
/// Most characters of the line.
const LINE_BYTES: usize = 4096;
/// Bytes of the checksum.
const SUM_BYTES: usize = 4;

/// An invite as both sides see it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Where the vault may be reached, `host:port` each, best first.
    pub addresses: Vec<String>,
    /// The vault's key.
    pub vault: Fingerprint,
    /// The secret; good for one source.
    pub token: [u8; TOKEN_BYTES],
    /// The name that the source will have.
    pub name: SourceName,
    /// Not good after this.
    pub expires: Timestamp,
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invite({} at {:?})", self.name, self.addresses)
    }
}

/// Why a line is not an invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInvite {
    /// It starts with something else.
    #[error("this is not an invite: it must start with \"{PREFIX}\"")]
    NotAnInvite,
    /// Of another version.
    #[error("this invite is of a newer version of Farwrite: update this machine")]
    Newer,
    /// Characters are missing or changed.
    #[error("this invite is damaged: copy the whole line")]
    Damaged,
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(&sum.as_bytes()[..SUM_BYTES]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Invite {
    type Err = BadInvite;

    /// White space anywhere is dropped: terminals and mail programs break long lines.
    fn from_str(line: &str) -> Result<Self, BadInvite> {
        if line.len() > 2 * LINE_BYTES {
            return Err(BadInvite::Damaged);
        }
        let line: String = line.split_ascii_whitespace().collect();
        let Some(body) = line.strip_prefix(PREFIX) else {
            let versioned = line
                .strip_prefix("farwrite")
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            return Err(if versioned {
                BadInvite::Newer
            } else {
                BadInvite::NotAnInvite
            });
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| BadInvite::Damaged)?;
        let (bytes, sum) = bytes
            .split_last_chunk::<SUM_BYTES>()
            .ok_or(BadInvite::Damaged)?;
        if blake3::hash(bytes).as_bytes()[..SUM_BYTES] != *sum {
            return Err(BadInvite::Damaged);
        }
        let invite: Invite = match postcard::take_from_bytes(bytes) {
            Ok((invite, [])) => invite,
            _ => return Err(BadInvite::Damaged),
        };
        if invite.addresses.len() > ADDRESSES
            || invite.addresses.iter().any(|a| a.len() > ADDRESS_BYTES)
        {
            return Err(BadInvite::Damaged);
        }
        Ok(invite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Invite {
        Invite {
            addresses: vec!["vault.example:7843".into(), "[2001:db8::1]:7843".into()],
            vault: Fingerprint::from_bytes([0xab; 32]),
            token: [7; TOKEN_BYTES],
            name: SourceName::new("web-1").unwrap(),
            expires: Timestamp {
                sec: 1_800_000_000,
                nsec: 0,
            },
        }
    }

    /// The line of version 1, frozen.
    const FROZEN: &str = "farwrite1:AhJ2YXVsdC5leGFtcGxlOjc4NDMSWzIwMDE6ZGI4OjoxXTo3ODQzq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6sHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwV3ZWItMYDIzrQNAK3RcTw";

    #[test]
    fn version_1_is_frozen() {
        assert_eq!(sample().to_string(), FROZEN);
        assert_eq!(FROZEN.parse::<Invite>().unwrap(), sample());
    }

    #[test]
    fn broken_lines_are_mended_and_garbled_ones_refused() {
        let line = sample().to_string();
        let (a, b) = line.split_at(50);
        assert_eq!(
            format!("  {a}\r\n  {b}\n").parse::<Invite>().unwrap(),
            sample()
        );
        for cut in 0..line.len() {
            assert!(line[..cut].parse::<Invite>().is_err(), "cut at {cut}");
        }
        for at in PREFIX.len()..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let garbled = String::from_utf8(bytes).unwrap();
            assert_eq!(
                garbled.parse::<Invite>(),
                Err(BadInvite::Damaged),
                "at {at}"
            );
        }
        assert_eq!("farwrite2:AAAA".parse::<Invite>(), Err(BadInvite::Newer));
        assert_eq!("hello".parse::<Invite>(), Err(BadInvite::NotAnInvite));
    }
}
