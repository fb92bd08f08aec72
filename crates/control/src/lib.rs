//! The control APIs of a running daemon, of a source and of a vault: typed once, used by the commands and the GUI alike.
//!
//! HTTP/1.1 and JSON over a unix socket of mode 0600; the peer must be the daemon's user or root. Everything is below
//! `/v1`; [`openapi`] and [`vault_openapi`] describe it and are made of the same types. What goes on comes as server-sent
//! events. Must never be reachable over a network, and must never do what the daemon's [`Handler`] or [`VaultHandler`] does
//! not.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod alerts;
mod client;
mod connection;
mod fault;
mod handler;
mod history;
mod reply;
mod routes;
mod server;
mod settings;
mod types;
mod vault;
mod vault_routes;

pub use alerts::*;
pub use client::Client;
pub use connection::{ClientError, Connection, Events};
pub use fault::{Answer, Fault, FaultKind};
pub use handler::{Content, Handler, Watch, WriteContent};
pub use history::*;
pub use routes::{openapi, router};
pub use server::Server;
pub use settings::*;
pub use types::*;
pub use vault::*;
pub use vault_routes::{vault_openapi, vault_router};
