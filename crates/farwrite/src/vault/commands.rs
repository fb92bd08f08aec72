//! Commands that talk to the daemon that serves a vault.

use super::alerts::AlertsFile;
use super::{daemon, init};
use farwrite_control::{Client, ClientError, Done, UiPlace};
use std::path::Path;

fn client(vault_dir: &Path) -> anyhow::Result<Client> {
    let vault = init::open(vault_dir)?;
    match Client::connect(&daemon::socket_path(vault.dir())) {
        Ok(client) => Ok(client),
        Err(ClientError::NotRunning { .. }) => anyhow::bail!(
            "{dir} is not being served: start that with `farwrite vault serve {dir}`",
            dir = vault.dir().display()
        ),
        Err(e) => Err(e.into()),
    }
}

/// `farwrite vault ui`: prints a link that lets one browser in.
pub(super) fn ui(vault_dir: &Path) -> anyhow::Result<()> {
    let place: UiPlace = client(vault_dir)?.post("ui", &Done {})?;
    crate::control::show_link(&place);
    Ok(())
}

/// `farwrite vault alert-test`.
pub(super) fn test_alerts(vault_dir: &Path) -> anyhow::Result<()> {
    let tested = client(vault_dir)?.post("alerts/test", &Done {})?;
    let file = AlertsFile::path(vault_dir);
    crate::control::tested(&tested, &file.display().to_string())
}
