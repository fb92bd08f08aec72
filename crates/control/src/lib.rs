//! The control API of a running source daemon: typed once, used by the commands and the GUI alike.
//!
//! A unix socket of mode 0600; the peer must be the daemon's user or root. One request and one answer, each a line of
//! JSON; [`Request::Watch`] is answered by a stream of lines.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod client;
mod server;
mod types;

pub use client::{Client, ClientError};
pub use server::{Handler, Server};
pub use types::*;
