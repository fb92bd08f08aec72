//! What a vault's daemon tells and does: sources by name and in numbers, never a path or a content of one.

use crate::alerts::{AlertChannels, AlertChannelsChange, TestedAlerts};
use crate::fault::{Answer, Fault};
use crate::history::MarkedMoment;
use crate::settings::UiPlace;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Version of these types; goes up when an old client could misread a new daemon.
pub const VAULT_API_VERSION: u32 = 1;

/// The state of a vault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VaultStatus {
    /// [`VAULT_API_VERSION`] of the daemon.
    pub api: u32,
    /// Of the daemon.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// The vault's directory.
    pub directory: String,
    /// Where sources reach it.
    pub listen: String,
    /// Room on its filesystem, if that can be told.
    pub free_bytes: Option<u64>,
    /// Size of its filesystem, if that can be told.
    pub total_bytes: Option<u64>,
    /// By name.
    pub sources: Vec<VaultSource>,
    /// Alerts that are on.
    pub alerts: Vec<VaultAlert>,
}

/// A source as its vault sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VaultSource {
    /// Its name here.
    pub name: String,
    /// It has a session now: with this daemon, or (where the kernel's list of locks shows it) through ssh.
    pub connected: bool,
    /// When it last was, or else when its last batch was made; RFC 3339. While it is connected, this stays behind.
    pub last_seen: Option<String>,
    /// Time of the last batch at the source, RFC 3339.
    pub last_backup: Option<String>,
    /// The tree at that batch is exactly the source's.
    pub clean: bool,
    /// Batches.
    pub batches: u64,
    /// Versions of files, directories and special files.
    pub versions: u64,
    /// Age in milliseconds of the oldest change at the source that is not durable here, as the source says, at most a second
    /// ago; none: it does not say (it is not connected, comes by ssh, or is of an older version).
    #[serde(default)]
    pub lag_ms: Option<u64>,
    /// How many such changes there are.
    #[serde(default)]
    pub pending_changes: Option<u64>,
    /// Batches that are durable and not in the mirror yet.
    pub behind_batches: u64,
    /// It has a mirror.
    pub mirror: bool,
    /// What it takes on the disk.
    pub space: Space,
    /// By how much that has grown in a day, in bytes; none while it is not known for long enough.
    pub growth_per_day: Option<i64>,
    /// The last whole verification.
    pub verified: Option<Verified>,
    /// The one that runs.
    pub verifying: Option<Verifying>,
    /// Batches of which something is known to be damaged.
    pub damaged: u64,
    /// The ransomware brake, if it is set: nothing of this source is pruned until somebody releases it.
    pub brake: Option<Brake>,
    /// What went wrong last and has not been well since.
    pub failure: Option<String>,
    /// Why nothing more is known.
    pub error: Option<String>,
}

/// What set the ransomware brake.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Brake {
    /// When, at the vault; RFC 3339.
    pub since: String,
    /// What was seen.
    pub why: String,
    /// The mark at the last moment before it, if there is one.
    pub mark: Option<String>,
}

/// Bytes on the disk, as allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Space {
    /// Segments.
    pub log_bytes: u64,
    /// The catalog.
    pub catalog_bytes: u64,
    /// The mirror; none until it has been counted, or if there is none.
    pub mirror_bytes: Option<u64>,
}

/// What a source took on the disk at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpaceSample {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// How much.
    pub space: Space,
}

/// How a verification ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// When, RFC 3339.
    pub ended: String,
    /// Bytes read.
    pub bytes: u64,
    /// Things that are wrong.
    pub findings: u64,
    /// The first of them, in words; or why it could not be read.
    pub what: Option<String>,
}

impl Verified {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings == 0 && self.what.is_none()
    }
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verifying {
    /// Bytes read.
    pub bytes: u64,
    /// Of so many, about.
    pub of_bytes: u64,
}

/// One source and its past.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VaultSourceDetail {
    /// As in the status.
    pub source: VaultSource,
    /// What it took on the disk, oldest first.
    pub samples: Vec<SpaceSample>,
    /// Where its files are.
    pub directory: String,
    /// What of its past is kept.
    pub retention: Retention,
    /// When it was last pruned and what that did, in words; none: never.
    pub last_prune: Option<String>,
    /// Names for moments, which are kept as long as they have one.
    pub marks: Vec<MarkedMoment>,
}

/// How long history is kept: texts such as "30d", "8w", "12mo", "2y" or "forever"; empty: not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionPolicy {
    /// `keep_all`: every change of this time is kept. Not set: of all time, and nothing is pruned.
    pub keep_all: String,
    /// `hourly`: one moment of each hour is kept for this long.
    pub hourly: String,
    /// `daily`.
    pub daily: String,
    /// `weekly`.
    pub weekly: String,
    /// `monthly`.
    pub monthly: String,
}

/// The policy of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Retention {
    /// It is the source's own, not the vault's.
    pub own: bool,
    /// How long.
    pub policy: RetentionPolicy,
    /// Nothing is pruned.
    pub keeps_everything: bool,
}

/// What pruning by a policy would do now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunePreview {
    /// Moments that could be asked for afterwards.
    pub moments_kept: u64,
    /// Moments that could not any more.
    pub moments_dropped: u64,
    /// The oldest that could, RFC 3339.
    pub oldest: Option<String>,
    /// Every moment from this one on would be kept, RFC 3339.
    pub every_since: Option<String>,
    /// Bytes given back to the filesystem.
    pub bytes_freed: u64,
    /// Bytes that nothing would need but that would stay, in pieces too small to be freed.
    pub bytes_left: u64,
}

/// An alert that is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VaultAlert {
    /// "disk", "silent", "brake", "failed", "damaged" or "verify".
    pub kind: String,
    /// Which source; empty: the vault itself.
    pub about: String,
    /// In words.
    pub message: String,
    /// RFC 3339.
    pub since: String,
}

/// `alerts.toml` of a vault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VaultSettings {
    /// Where the file is.
    pub file: String,
    /// `silent`: an alert begins when a source has not been seen for this long; empty: never.
    pub silent: String,
    /// `disk`: an alert begins when there is less room than this, such as "5 GB"; empty: never.
    pub disk: String,
    /// Where alerts go.
    pub channels: AlertChannels,
}

/// Changes them; what is left out stays as it is. Fields of a fault have `alert_` in front.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VaultSettingsChange {
    /// See [`VaultSettings::silent`].
    pub silent: Option<String>,
    /// See [`VaultSettings::disk`].
    pub disk: Option<String>,
    /// Where alerts go.
    pub channels: AlertChannelsChange,
}

/// What the vault's daemon does for the API. All of it may block.
pub trait VaultHandler: Send + Sync + 'static {
    /// All sources, and what is wrong.
    fn status(&self) -> VaultStatus;
    /// One source.
    fn source(&self, name: &str) -> Answer<VaultSourceDetail>;
    /// Begins to read everything of a source and compare it with its checksums. If that is under way, it goes on.
    fn verify(&self, name: &str) -> Answer<VaultSource>;
    /// Lets go of the ransomware brake: the source is pruned again.
    fn release(&self, name: &str) -> Answer<VaultSource>;
    /// Sets a source's own policy. What it drops goes at the next daily prune, not at once.
    fn set_retention(&self, name: &str, policy: RetentionPolicy) -> Answer<Retention>;
    /// What pruning by a policy would do now. Nothing is changed.
    fn preview_prune(&self, name: &str, policy: RetentionPolicy) -> Answer<PrunePreview>;
    /// Alerts: when and where to.
    fn settings(&self) -> Answer<VaultSettings>;
    /// Changes them, in the file and in effect.
    fn change_settings(&self, change: VaultSettingsChange) -> Answer<VaultSettings>;
    /// Sends a test alert by every channel, and waits for the outcome.
    fn test_alerts(&self) -> Answer<TestedAlerts>;
    /// Numbers in the OpenMetrics text format.
    fn metrics(&self) -> Answer<String>;
    /// Makes sure that the GUI is served, and lets one browser in.
    fn open_ui(&self) -> Answer<UiPlace> {
        Err(Fault::not_offered())
    }
}
