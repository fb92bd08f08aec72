//! The state of a source, what happens there, and the switches.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Version of these types; goes up when an old client could misread a new daemon.
pub const API_VERSION: u32 = 3;

/// Waits until every change made before is durable in every vault and stands in its mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Flush {
    /// Give up after this time; none: never.
    pub timeout_ms: Option<u64>,
}

/// The automatic-backup switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// On or off. Off makes the sensor let go of the kernel.
    pub on: bool,
    /// These protected directories only, each by itself; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<String>,
}

/// Changes the scheduling interval until the daemon ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetInterval {
    /// "auto" or a time.
    pub interval: String,
}

/// It is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {}

/// The state of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// [`API_VERSION`] of the daemon.
    pub api: u32,
    /// Of the daemon.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// Automatic backup is switched on.
    pub on: bool,
    /// What listens to the kernel.
    pub sensor: Sensor,
    /// The two scheduling units.
    pub schedule: Schedule,
    /// One for each directory in each vault.
    pub protections: Vec<Protection>,
    /// One for each vault.
    pub vaults: Vec<Vault>,
}

/// What listens to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sensor {
    /// "fanotify", "inotify", "scan"; none while off.
    pub kind: Option<String>,
    /// Why this one.
    pub why: String,
    /// In words.
    pub guarantees: String,
    /// Something to be done about, if there is.
    pub warning: Option<String>,
    /// Marks or watches in the kernel now.
    pub marks: u64,
    /// Events read from the kernel.
    pub events: u64,
    /// Times that the kernel's queue overflowed.
    pub overflows: u64,
    /// System calls that the kernel module has put others in place of now.
    #[serde(default)]
    pub replaced: u64,
    /// Other kernel functions hooked now.
    #[serde(default)]
    pub hooked: u64,
}

/// The scheduling module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// "auto" or a time.
    pub interval: String,
    /// The daemon was started with `nice`: under load it waits longer, up to 5 s for a file that has to be read whole.
    #[serde(default)]
    pub applications_first: bool,
    /// What the managing unit waits now between two rounds.
    pub managing_interval_ms: f64,
    /// Messages that the managing unit has queued.
    pub messages: u64,
    /// Messages that a filter dropped.
    pub filtered: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Last message in the journal.
    pub journal_last: u64,
    /// All messages up to this one are durable in every vault.
    pub journal_checkpoint: u64,
}

/// How safe something is, worst first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Cannot go on without a person.
    Error,
    /// Automatic backup is switched off.
    Off,
    /// No connection to the vault; changes are noted.
    #[default]
    Offline,
    /// Some files cannot be read.
    Incomplete,
    /// The tree is being compared: first backup, or catching up.
    Comparing,
    /// Changes are on their way.
    Behind,
    /// Every change is durable in the vault.
    Safe,
}

/// One directory in one vault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Protection {
    /// Absolute path.
    pub directory: String,
    /// Which vault.
    pub vault: String,
    /// `false`: it is switched off by itself.
    pub enabled: bool,
    /// How safe it is.
    pub state: State,
    /// In words: what is wrong and what to do.
    pub message: String,
    /// "fanotify", "inotify", "scan"; none while off.
    pub sensor: Option<String>,
    /// What the sensor guarantees, in words.
    pub guarantees: String,
    /// Age of the oldest change that is not durable yet; 0 if there is none.
    pub lag_ms: u64,
    /// Changes waiting.
    pub pending_changes: u64,
    /// Bytes known to be waiting.
    pub pending_bytes: u64,
    /// Times that changes were lost and everything that they could concern was compared.
    pub lost: u64,
    /// How many of those compares are done.
    pub repaired: u64,
    /// Time of the vault's last ack, RFC 3339.
    pub last_ack: Option<String>,
    /// Other filesystems below it, not backed up.
    pub not_covered: Vec<String>,
}

/// One vault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vault {
    /// What it is called here.
    pub name: String,
    /// What it calls this source.
    pub source: String,
    /// How safe all that goes there is.
    pub state: State,
    /// In words.
    pub message: String,
    /// Connected now.
    pub connected: bool,
    /// Age of the oldest change that is not durable yet; 0 if there is none.
    pub lag_ms: u64,
    /// Changes waiting.
    pub pending_changes: u64,
    /// Bytes known to be waiting.
    pub pending_bytes: u64,
    /// Bytes sent and not acked.
    pub in_flight_bytes: u64,
    /// Last batch acked.
    pub acked: u64,
    /// All messages up to this one are durable there.
    #[serde(default)]
    pub durable_through: u64,
    /// Last batch in the mirror; none if the vault keeps none.
    pub mirrored: Option<u64>,
    /// Time of the last ack, RFC 3339.
    pub last_ack: Option<String>,
    /// What the processing unit waits now between two rounds.
    pub processing_interval_ms: f64,
    /// From closing a batch to its ack, the last measured.
    #[serde(default)]
    pub ack_ms: f64,
    /// Round trip, if measured.
    pub rtt_ms: Option<u64>,
    /// Bytes sent over the wire.
    pub wire_bytes: u64,
    /// Connections lost.
    pub reconnects: u64,
    /// Counters of the backup unit.
    pub backup: Backup,
    /// What cannot be backed up, at most 20.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problem_count: u64,
}

/// Counters of a backup unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// Backup commands carried out.
    pub commands: u64,
    /// Names looked at.
    pub entries: u64,
    /// Files read.
    pub files_read: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes that were new.
    pub bytes_new: u64,
    /// Bytes of all records.
    pub bytes_sent: u64,
    /// Batches.
    pub batches: u64,
    /// Renames found.
    pub renames: u64,
    /// Directories still to be compared.
    pub compares_open: u64,
    /// Commands put off.
    pub put_back: u64,
}

/// Something that cannot be backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Where.
    pub path: String,
    /// What the system said.
    pub why: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Activity {
    /// A file modification message of the sensor.
    Change {
        /// Its number in the journal.
        seq: u64,
        /// When it was seen, in milliseconds since 1970.
        time_ms: u64,
        /// "write", "rename" ...
        operation: String,
        /// Where.
        path: String,
        /// Where to, of a rename.
        to: Option<String>,
        /// First byte and the byte behind the last, where they are known.
        extent: Option<(u64, u64)>,
        /// All that in words.
        text: String,
    },
    /// A file's content was sent. In a storm, not all are told of.
    File {
        /// To which vault.
        vault: String,
        /// Which file.
        path: String,
        /// Bytes of its content that were new, before compression.
        bytes: u64,
    },
    /// A batch was closed.
    Sent {
        /// To which vault.
        vault: String,
        /// Which.
        batch: u64,
        /// Bytes of its records.
        bytes: u64,
    },
    /// A batch is durable.
    Durable {
        /// In which vault.
        vault: String,
        /// Which.
        batch: u64,
        /// Time since it was closed.
        after_ms: u64,
        /// All messages up to this one are durable in that vault.
        through: u64,
        /// When, in milliseconds since 1970.
        time_ms: u64,
    },
    /// A vault was reached or lost.
    Link {
        /// Which vault.
        vault: String,
        /// In words.
        text: String,
    },
    /// So many were left out because the reader did not keep up.
    Skipped {
        /// How many.
        count: u64,
    },
}
