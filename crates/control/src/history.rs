//! Questions about the past and their answers, as the GUI and other programs ask them. Names may be any bytes: where a text
//! cannot hold them, `..._bytes` has them as base64.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A batch and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moment {
    /// Number of the batch.
    pub batch: u64,
    /// Its commit time, RFC 3339.
    pub time: String,
    /// The tree was exactly the source's at this point.
    pub clean: bool,
}

/// The history's extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moments {
    /// Which vault was asked.
    pub vault: String,
    /// The directories that it protects, in the order of the configuration.
    pub directories: Vec<String>,
    /// The first moment; none while nothing has been backed up.
    pub first: Option<Moment>,
    /// The last one.
    pub last: Option<Moment>,
}

/// Which vault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct MomentsQuery {
    /// Its name here; may be left out if there is one only.
    pub vault: Option<String>,
}

/// A name for a moment, which the vault keeps as long as it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MarkedMoment {
    /// Its name; `mark:NAME` stands for the moment wherever a time does.
    pub name: String,
    /// The moment.
    pub moment: Moment,
    /// Who marked it: "source", "vault", or "brake".
    pub by: String,
}

/// Names a moment. No source can take a mark away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SetMark {
    /// At which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Letters, digits, '.', '_' and '-'.
    pub name: String,
    /// When: the last kept moment at or before this time is marked; the last there is if left out.
    pub at: Option<String>,
}

/// One page of a directory as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct ListQuery {
    /// Which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Absolute path at the source.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    pub path_bytes: Option<String>,
    /// When: RFC 3339, "10 minutes ago", "yesterday 14:00"; now if left out.
    pub at: Option<String>,
    /// Continue behind this name, as base64.
    pub after: Option<String>,
    /// Most entries, up to 1000.
    pub limit: Option<u32>,
}

/// A directory's entries, or the one thing that is at the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    /// When.
    pub moment: Moment,
    /// Where.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// What is at the path itself: "directory", "file" ...
    pub kind: String,
    /// In byte order of their names.
    pub entries: Vec<Entry>,
    /// There are more: ask again with this as `after`.
    pub next: Option<String>,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The name as base64, where text cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_bytes: Option<String>,
    /// "file", "directory", "symlink", "fifo", "socket", "char", "block".
    pub kind: String,
    /// Bytes, of a file.
    pub size: Option<u64>,
    /// As in `ls -l`.
    pub mode: String,
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Modification time, RFC 3339.
    pub mtime: String,
    /// What a symbolic link points to.
    pub target: Option<String>,
}

/// Versions of what has been at a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct VersionsQuery {
    /// Which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Absolute path at the source.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    pub path_bytes: Option<String>,
    /// Most versions, newest first.
    pub limit: Option<u32>,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// When it came to be.
    pub moment: Moment,
    /// "created", "renamed-here", "replaced", "content", "attributes", "removed".
    pub change: String,
    /// Bytes of content that it brought to the log.
    pub bytes_new: u64,
    /// What it is; none once removed.
    pub kind: Option<String>,
    /// Bytes, of a file.
    pub size: Option<u64>,
}

/// What differs below a path between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct DiffQuery {
    /// Which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Absolute path at the source.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    pub path_bytes: Option<String>,
    /// The earlier moment.
    pub from: String,
    /// The later one; now if left out.
    pub to: Option<String>,
}

/// Differences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Differences {
    /// The earlier moment.
    pub from: Moment,
    /// The later moment.
    pub to: Moment,
    /// In byte order of paths.
    pub changes: Vec<Difference>,
    /// The list was cut at a bound.
    pub truncated: bool,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Where.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// What it is.
    pub kind: String,
    /// "added", "removed", "content", "attributes".
    pub change: String,
    /// Size before, of a file.
    pub size_from: Option<u64>,
    /// Size after, of a file.
    pub size_to: Option<u64>,
}

/// How much changed when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct TimelineQuery {
    /// Which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Begin; the first moment if left out.
    pub from: Option<String>,
    /// End; the last moment if left out.
    pub to: Option<String>,
    /// Into how many equal parts, up to 500.
    pub buckets: Option<u32>,
}

/// A histogram over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// Begin, RFC 3339.
    pub from: String,
    /// End, RFC 3339.
    pub to: String,
    /// Length of one part.
    pub bucket_ms: u64,
    /// In order of time; parts in which nothing happened are there too.
    pub buckets: Vec<Bucket>,
}

/// What was committed in one part of a timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// Batches.
    pub batches: u64,
    /// Operations.
    pub changes: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// A file's bytes as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct ContentQuery {
    /// Which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Absolute path at the source.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    pub path_bytes: Option<String>,
    /// When; now if left out.
    pub at: Option<String>,
}

/// Brings something back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreRequest {
    /// Which vault; may be left out if there is one only.
    pub vault: Option<String>,
    /// Absolute path at the source.
    pub path: String,
    /// The path as base64, where text cannot hold it.
    pub path_bytes: Option<String>,
    /// When; now if left out.
    pub at: Option<String>,
    /// Into this directory; made if it is not there.
    pub to: String,
    /// Replace what is there. Directories are merged.
    pub overwrite: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// A restore: under way, done or failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreJob {
    /// Its number.
    pub id: u64,
    /// "running", "done", "failed".
    pub state: String,
    /// Nothing is written.
    pub dry_run: bool,
    /// What.
    pub path: String,
    /// Where to.
    pub to: String,
    /// The moment, RFC 3339.
    pub time: String,
    /// Files of all kinds but directories, so far.
    pub files: u64,
    /// Directories, so far.
    pub directories: u64,
    /// Bytes, so far.
    pub bytes: u64,
    /// Names that exist where it would go and that `overwrite` would replace or merge, the first of them.
    pub in_the_way: Vec<String>,
    /// What could not be restored, the first of them, each with why.
    pub failed: Vec<String>,
    /// How many could not.
    pub failed_count: u64,
    /// Why all of it failed.
    pub error: Option<String>,
}
