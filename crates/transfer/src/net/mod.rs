//! Drives the sessions over streams: TLS over TCP, ssh's standard input and output, or anything else that is
//! `AsyncRead + AsyncWrite`.
//!
//! Sockets are async; whatever blocks (the log, the index, the caller's threads) stays in plain threads behind bounded
//! channels. Nothing here looks into a batch.

mod destination;
mod dialer;
mod history;
mod link;
mod outgoing;
mod pair;
mod rate;
mod serve;
mod ssh;
pub mod tls;
mod worker;

pub use destination::{
    Destination, EventReceiver, EventSender, HistoryAnswers, Peer, SinkError, SinkEvents,
    SinkFailure, SourceSink,
};
pub use dialer::{BoxStream, CustomDial, Dialer, IoStream, TlsTarget};
pub use history::{HistoryClient, HistoryError};
pub use link::{
    LinkClosed, LinkEvent, LinkOptions, LinkStats, Replay, ReplayError, SendError, SourceLink,
};
pub use pair::{PairError, Paired, pair, pair_blocking};
pub use rate::TokenBucket;
pub use serve::{
    HISTORIES, Server, ServerOptions, Service, ServiceCounters, serve_connection, serve_stdio,
};
pub use ssh::{SshTarget, remote_command};

use std::time::Duration;

/// A connection attempt, with its TLS handshake, must be done by then.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A write that makes no progress for this long means a dead connection.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Bytes read from a stream at once.
const READ_BYTES: usize = 128 << 10;
