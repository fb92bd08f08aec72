//! The configuration as the API shows and changes it. Field names are those of the configuration file.

use crate::alerts::{AlertChannels, AlertChannelsChange};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the configuration file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settings {
    /// Where the file is.
    pub file: String,
    /// `interval`: "auto" or a time.
    pub interval: String,
    /// `sensor`: "auto" or one by name.
    pub sensor: String,
    /// What `sensor` may be.
    pub sensors: Vec<String>,
    /// `bandwidth`: bytes a second to each vault, such as "10 MB"; empty: no limit.
    pub bandwidth: String,
    /// `[alert] lag`: an alert begins when the oldest change waits for this long.
    pub alert_lag: String,
    /// `[alert] offline`: an alert begins when a vault is away for this long.
    pub alert_offline: String,
    /// `[alert] disk`: an alert begins when the state directory has less room than this, such as "500 MB"; empty: never.
    pub alert_disk: String,
    /// `[alert]`: where alerts go.
    pub alert_channels: AlertChannels,
    /// `[[directory]]`.
    pub directories: Vec<Directory>,
    /// `[[vault]]`.
    pub vaults: Vec<VaultPlace>,
}

/// A protected directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Directory {
    /// Absolute path.
    pub path: String,
    /// Patterns as in .gitignore.
    pub exclude: Vec<String>,
    /// Vaults that protect it.
    pub vaults: Vec<String>,
    /// `enabled`: `false`, and it is not watched.
    pub enabled: bool,
}

/// A vault of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VaultPlace {
    /// What it is called here.
    pub name: String,
    /// What it calls this source.
    pub source: String,
    /// Where it is reached, in words.
    pub reached_at: String,
}

/// Changes settings; what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsChange {
    /// See [`Settings::interval`].
    pub interval: Option<String>,
    /// See [`Settings::sensor`].
    pub sensor: Option<String>,
    /// See [`Settings::bandwidth`].
    pub bandwidth: Option<String>,
    /// See [`Settings::alert_lag`].
    pub alert_lag: Option<String>,
    /// See [`Settings::alert_offline`].
    pub alert_offline: Option<String>,
    /// See [`Settings::alert_disk`].
    pub alert_disk: Option<String>,
    /// Where alerts go.
    pub alert_channels: AlertChannelsChange,
}

/// Protects a directory, or changes its excludes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Protect {
    /// Absolute path.
    pub directory: String,
    /// A known vault's name, an invite, or an `ssh://` address.
    pub to: String,
    /// Patterns as in .gitignore.
    pub exclude: Vec<String>,
    /// What to call a new vault here; its host name if left out.
    pub vault_name: Option<String>,
}

/// Protects a directory no more. What the vault has of it stays there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Unprotect {
    /// Absolute path.
    pub directory: String,
    /// In this vault only; in all if left out.
    pub vault: Option<String>,
}

/// Asks what patterns would leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PreviewExcludes {
    /// Absolute path.
    pub directory: String,
    /// Patterns as in .gitignore.
    pub exclude: Vec<String>,
}

/// What patterns would leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExcludePreview {
    /// Entries looked at.
    pub looked_at: u64,
    /// Entries that match; what is below a directory that matches is not looked at and not counted.
    pub matching: u64,
    /// The first of them, relative to the directory; directories end in a slash.
    pub paths: Vec<String>,
    /// There was more than is looked at for a preview.
    pub truncated: bool,
}

/// Where the GUI is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UiPlace {
    /// With a token that lets one browser in, once, for some minutes.
    pub url: String,
    /// Without it.
    pub address: String,
}
