//! The GUI: pages over the control API, for a browser on this machine.
//!
//! It holds no state of the backup: whatever it shows it has asked for, whatever it does it has asked to be done. Must
//! never answer a browser that was not let in, a page of another origin, or a name that is not this machine's; must never
//! load anything from elsewhere, and never hand a name or a content from the history to the browser as HTML or script.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod assets;
mod gate;
mod live;
mod metrics;
mod pages;
mod server;
mod vault;
mod words;

pub use metrics::Metrics;
pub use server::Ui;
