//! When and where the GUI is served: from the start if the configuration says so, else when somebody asks for it. Nothing
//! listens before, and nothing but loopback unless the configuration names another address.

use super::supervisor::Supervisor;
use crate::config::Config;
use anyhow::Context;
use farwrite_control::{Answer, Fault, UiPlace};
use farwrite_web::{Metrics, Ui};
use std::net::TcpListener;

/// Where it is unless told otherwise; another port if this one is taken.
const USUAL: &str = "127.0.0.1:9874";
const ANY_PORT: &str = "127.0.0.1:0";

impl Supervisor {
    /// Serves the GUI and the metrics if the configuration wants them.
    pub fn start_ui(&self) -> anyhow::Result<()> {
        let config = Config::load(&self.state)?;
        if !config.metrics.trim().is_empty() {
            let address = config.metrics.trim();
            let told = || format!("metrics = {address:?}");
            let listener = TcpListener::bind(address).with_context(told)?;
            *self.metrics.lock() =
                Some(Metrics::start(listener, &self.state.socket_path()).with_context(told)?);
        }
        if config.ui.trim().is_empty() {
            return Ok(());
        }
        let place = self.ui_place()?;
        tracing::info!(address = %place.address, "the GUI is served");
        Ok(())
    }

    /// Makes sure that the GUI is served, and lets one browser in.
    pub fn ui_place(&self) -> anyhow::Result<UiPlace> {
        let mut slot = self.ui.lock();
        if slot.is_none() {
            let wanted = Config::load(&self.state)?.ui;
            let listener = match wanted.trim() {
                "" => TcpListener::bind(USUAL)
                    .or_else(|_| TcpListener::bind(ANY_PORT))
                    .context("a port on loopback for the GUI")?,
                address => {
                    TcpListener::bind(address).with_context(|| format!("ui = {address:?}"))?
                }
            };
            *slot = Some(Ui::start(listener, &self.state.socket_path()).context("the GUI")?);
        }
        let ui = slot.as_ref().context("the GUI was just started")?;
        Ok(UiPlace {
            url: ui.entrance(),
            address: ui.address(),
        })
    }

    pub(super) fn open_the_ui(&self) -> Answer<UiPlace> {
        self.ui_place()
            .map_err(|e| Fault::failed(crate::one_line(&e)))
    }
}
