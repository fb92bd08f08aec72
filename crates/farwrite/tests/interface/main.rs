//! End-to-end tests of what people and programs see of a running daemon: the control API and the GUI in a real browser.

mod alerts;
mod api;
mod browser;
mod fuzz;
mod gui;
mod pages;
#[path = "../e2e/rig.rs"]
#[expect(dead_code, reason = "shared with the other end-to-end tests")]
mod rig;
mod security;
mod sinks;
mod vault;
