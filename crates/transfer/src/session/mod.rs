//! The session as two state machines without I/O: bytes and time go in, bytes, events and actions come out.
//!
//! No socket, no clock, no thread in here: `net` drives these over a stream, tests drive them by hand.
//! `docs/protocol.md` has the states and what is allowed in each.

mod frame;
mod source;
mod vault;

pub use frame::Framer;
pub use source::{PushError, SourceError, SourceEvent, SourceOptions, SourceSession};
pub use vault::{SessionCounters, SessionEnd, VaultAction, VaultSession};

use std::time::Duration;

/// The source sends a ping this often.
pub const PING_EVERY: Duration = Duration::from_secs(10);
/// The vault sends an `Alive` when it has said nothing for so long: only if it did not even answer a ping.
pub const ALIVE_EVERY: Duration = Duration::from_secs(13);
/// A source tells how far behind it is at most this often.
pub const BEHIND_EVERY: Duration = Duration::from_secs(1);
/// A connection on which no byte has come for this long is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(30);
/// A connection must have brought a whole hello (and, with TLS, its handshake) by then.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Most payload bytes of a record before the peer is known.
pub const HELLO_BYTES: usize = 16 << 10;
/// Most bytes that one batch may hold when it is alone on its way. Such a batch may be larger than the window, since the ack
/// that would make room comes only after its commit.
pub const LONE_BATCH_BYTES: u64 = 256 << 20;
/// Most requests of one history session that may be unanswered.
pub const REQUESTS_IN_FLIGHT: usize = 16;
/// Bytes for a peer that are so many, or more, are not copied behind others.
pub(crate) const UNCOPIED_BYTES: usize = 64 << 10;
/// Output is handed to a driver in pieces of about this size.
pub const OUTPUT_BYTES: usize = 256 << 10;
