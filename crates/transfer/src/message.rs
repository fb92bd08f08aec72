//! The protocol's messages: what the two ends of a session say to each other beside the batch records.
//!
//! A message travels as one record of kind `Message`, encoded with postcard. `docs/protocol.md` describes the states in
//! which each is allowed. Nothing here does I/O or keeps state. Variants and fields are never reordered or
//! removed: a new one goes to the end and needs a new protocol version.

use farwrite_core::history::Request;
use farwrite_core::record::{BadRecord, Record, RecordKind};
use farwrite_core::{BatchSeq, Epoch, SourceName, codec, path};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Protocol version 1: hello, batches with cumulative acks, replay, history, pairing.
pub const PROTOCOL_V1: u16 = 1;
/// Protocol version 2: [`Message::Behind`].
pub const PROTOCOL_V2: u16 = 2;
/// Protocol version 3: [`Message::Blocks`].
pub const PROTOCOL_V3: u16 = 3;
/// Oldest protocol version that this software speaks.
pub const PROTOCOL_MIN: u16 = PROTOCOL_V1;
/// Newest protocol version that this software speaks.
pub const PROTOCOL_MAX: u16 = PROTOCOL_V3;

/// Most bytes of text from the other side that are kept or shown.
pub const TEXT_BYTES: usize = 1024;
/// Most bytes of a hello's software string that are kept.
pub const SOFTWARE_BYTES: usize = 64;
/// Bytes of a pairing token.
pub const TOKEN_BYTES: usize = 32;
/// Most bytes of an encoded [`farwrite_core::history::Response`] that one [`Message::Response`] carries.
pub const RESPONSE_PART_BYTES: usize = 1 << 20;
/// Most bytes of a whole encoded [`farwrite_core::history::Response`].
pub const RESPONSE_BYTES: usize = 32 << 20;

/// One message. S: source to vault, V: vault to source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// S, first and only once: who speaks, which versions, what for.
    Hello(Hello),
    /// V: the session is open.
    Welcome(Welcome),
    /// V: the session is not (or no longer) wanted; the vault closes after it.
    Refused(Refusal),
    /// S: a question about the history. Up to [`crate::session::REQUESTS_IN_FLIGHT`] may be unanswered.
    Request {
        /// Chosen by the asker, different from every unanswered one.
        id: u32,
        /// The question.
        request: Request,
    },
    /// V: a part of the answer to a request. Parts of one answer come in order; answers come in any order.
    Response {
        /// Which request.
        id: u32,
        /// More parts follow.
        more: bool,
        /// Bytes of the [`farwrite_core::history::Response`] in postcard's encoding, at most [`RESPONSE_PART_BYTES`].
        part: ByteBuf,
    },
    /// S, before the first batch record: send the `Ops` and `Commit` records of the batches behind this one.
    ReplayFrom(BatchSeq),
    /// V: the replay is complete.
    ReplayEnd {
        /// The last batch of the replay; the asked-for one if there was none behind it.
        last: BatchSeq,
    },
    /// V: every batch up to this one is on stable storage in the vault's log.
    Ack {
        /// The last of them.
        seq: BatchSeq,
    },
    /// V: every batch up to this one is in the mirror.
    Mirrored {
        /// The last of them.
        seq: BatchSeq,
    },
    /// S: are you there? Answered by [`Message::Pong`] with the same id.
    Ping {
        /// Echoed.
        id: u32,
    },
    /// V: answer to [`Message::Ping`].
    Pong {
        /// Of the ping.
        id: u32,
    },
    /// V: nothing to say, still working. Keeps a source from giving up while the vault is slow.
    Alive,
    /// V: the pairing is done; the vault closes after it.
    Paired {
        /// What the vault calls itself.
        vault: String,
        /// The name under which it keeps the source.
        name: SourceName,
    },
    /// V: the vault itself failed (disk full, shutting down); it closes after it. Nothing unacked is lost: the source
    /// still has it.
    Failed {
        /// What happened.
        text: String,
        /// Come back after this many milliseconds.
        retry_after_ms: u32,
    },
    /// S: the source is done and closes.
    Bye,
    /// S, in a backup session, from version 2 on: what it has still to send or to see acked. For people at the vault; nothing
    /// is decided by it.
    Behind(Behind),
    /// V, in a history session, from version 3 on: the answer to a [`Request::Blocks`] that could be answered. The records of the
    /// blocks follow as they are stored, in the order of this list, with no other record between them but of messages.
    Blocks {
        /// Which request.
        id: u32,
        /// Each block of the answer and, if its record does not follow, what is wrong with it.
        blocks: Vec<(u64, Option<String>)>,
    },
}

/// How far a source is behind its own files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Changes that are not durable at the vault.
    pub changes: u64,
    /// Age of the oldest of them in milliseconds; 0 if there is none.
    pub lag_ms: u64,
}

/// The first message of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version that the source speaks.
    pub version_min: u16,
    /// Newest protocol version that the source speaks.
    pub version_max: u16,
    /// Name and version of the software, for logs.
    pub software: String,
    /// What the session is for.
    pub purpose: Purpose,
}

/// What a session is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To send batches.
    Backup {
        /// The source's index; `None` if it has none yet. For the vault's log messages only: what counts is in each commit.
        epoch: Option<Epoch>,
        /// The first batch that the source still holds or would make next; 0 if it does not know yet.
        next: BatchSeq,
    },
    /// To ask about the past.
    History,
    /// To become known to the vault.
    Pair {
        /// From the invite, [`TOKEN_BYTES`] long.
        token: ByteBuf,
    },
}

/// The vault's answer to a hello for backup or history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version of this session.
    pub version: u16,
    /// The name under which the vault keeps this source.
    pub name: SourceName,
    /// The last batch on stable storage and its chain value; `None` for an empty log, and in a history session.
    pub last: Option<(BatchSeq, [u8; 32])>,
    /// Epoch of that batch.
    pub epoch: Option<Epoch>,
    /// Bytes of batch records that may be unacked.
    pub window_bytes: u64,
    /// The vault keeps a mirror, so [`Message::Mirrored`] will come.
    pub mirror: bool,
}

/// Why a session is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub text: String,
}

impl Refusal {
    /// A refusal with this text.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Refusal {
            code,
            text: text.into(),
        }
    }
}

/// Kinds of [`Refusal`]. A number on the wire, so that a later version's code is still readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
pub enum RefusalCode {
    /// No protocol version in common.
    Version,
    /// The other side broke the protocol.
    Protocol,
    /// The key is not known to the vault.
    NotPaired,
    /// The invite is unknown, used or expired.
    Invite,
    /// The vault cannot take the session now; later it may.
    Busy,
    /// A newer session of the same source took this one's place.
    TakenOver,
    /// A batch that the vault cannot apply.
    BadBatch,
    /// Not allowed, whatever the key.
    Denied,
    /// Never sent, made by the source: the vault no longer has what it once acked.
    VaultWentBack,
    /// Never sent, made by the source: the vault's log is not the one that this source wrote.
    Diverged,
    /// Of a later version.
    Other(u16),
}

const CODES: [(RefusalCode, u16); 10] = [
    (RefusalCode::Version, 1),
    (RefusalCode::Protocol, 2),
    (RefusalCode::NotPaired, 3),
    (RefusalCode::Invite, 4),
    (RefusalCode::Busy, 5),
    (RefusalCode::TakenOver, 6),
    (RefusalCode::BadBatch, 7),
    (RefusalCode::Denied, 8),
    (RefusalCode::VaultWentBack, 9),
    (RefusalCode::Diverged, 10),
];

impl From<u16> for RefusalCode {
    fn from(n: u16) -> Self {
        let known = CODES.iter().find(|(_, m)| *m == n);
        known.map_or(RefusalCode::Other(n), |(code, _)| *code)
    }
}

impl From<RefusalCode> for u16 {
    fn from(code: RefusalCode) -> u16 {
        match code {
            RefusalCode::Other(n) => n,
            _ => CODES
                .iter()
                .find(|(c, _)| *c == code)
                .map_or(0, |(_, n)| *n),
        }
    }
}

impl Message {
    /// As a record. Panics if the message is over a record's bound: those that can grow are cut by who makes them.
    pub fn to_record(&self) -> Record {
        codec::encode(RecordKind::Message, BatchSeq(0), self)
    }

    /// Out of a record; trailing bytes are an error.
    pub fn from_record(record: &Record) -> Result<Message, BadRecord> {
        codec::decode(record)
    }
}

/// Text from the other side, made safe to show and cut at `max` bytes.
pub fn printable(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    path::lossy(&text.as_bytes()[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The encodings of version 1, frozen: a change of any of these breaks every deployed peer.
    #[test]
    fn version_1_is_frozen() {
        let name = SourceName::new("web").unwrap();
        let samples = [
            (
                Message::Hello(Hello {
                    version_min: 1,
                    version_max: 3,
                    software: "f/1".into(),
                    purpose: Purpose::Backup {
                        epoch: None,
                        next: BatchSeq(300),
                    },
                }),
                "00010303662f310000ac02",
            ),
            (
                Message::Hello(Hello {
                    version_min: 1,
                    version_max: 1,
                    software: String::new(),
                    purpose: Purpose::Pair {
                        token: ByteBuf::from(vec![7; 2]),
                    },
                }),
                "0001010002020707",
            ),
            (
                Message::Welcome(Welcome {
                    version: 1,
                    name: name.clone(),
                    last: None,
                    epoch: None,
                    window_bytes: 1 << 20,
                    mirror: true,
                }),
                "010103776562000080804001",
            ),
            (
                Message::Refused(Refusal::new(RefusalCode::NotPaired, "no")),
                "0203026e6f",
            ),
            (Message::Ack { seq: BatchSeq(5) }, "0705"),
            (Message::Mirrored { seq: BatchSeq(5) }, "0805"),
            (Message::Ping { id: 1 }, "0901"),
            (Message::Pong { id: 1 }, "0a01"),
            (Message::Alive, "0b"),
            (
                Message::Paired {
                    vault: "v".into(),
                    name,
                },
                "0c017603776562",
            ),
            (
                Message::Failed {
                    text: "x".into(),
                    retry_after_ms: 9,
                },
                "0d017809",
            ),
            (Message::Bye, "0e"),
            (
                Message::Behind(Behind {
                    changes: 300,
                    lag_ms: 5,
                }),
                "0fac0205",
            ),
            (
                Message::Blocks {
                    id: 2,
                    blocks: vec![(300, None), (1, Some("x".into()))],
                },
                "100202ac020001010178",
            ),
        ];
        for (message, want) in samples {
            let raw = postcard::to_stdvec(&message).unwrap();
            assert_eq!(hex(&raw), want, "{message:?}");
            assert_eq!(Message::from_record(&message.to_record()).unwrap(), message);
        }
    }

    #[test]
    fn refusal_codes_survive_the_wire_even_unknown_ones() {
        for (code, n) in CODES {
            assert_eq!(RefusalCode::from(n), code);
            assert_eq!(u16::from(code), n);
        }
        assert_eq!(RefusalCode::from(900), RefusalCode::Other(900));
        assert_eq!(u16::from(RefusalCode::Other(900)), 900);
    }

    #[test]
    fn text_is_cut_at_a_character_and_made_safe() {
        assert_eq!(printable("aü\x1b", 2), "a");
        assert_eq!(printable("a\x1b[2J", 100), "a\\x1b[2J");
    }
}
