//! Questions about a vault's history and their answers. The vault answers them the same way to a local
//! caller and over a session; a restore is made of nothing else.

use crate::{BatchSeq, BytePath, Kind, Meta, Name, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

/// A question. `at` is a batch: every answer shows the tree exactly as it stood after that batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First and last batch. Answer: [`Response::Moments`].
    Moments,
    /// The last batch with a time not after this one. Answer: [`Response::Moment`].
    Resolve(Timestamp),
    /// One path. Answer: [`Response::Stat`].
    Stat {
        /// Absolute path on the source.
        path: BytePath,
        /// When.
        at: BatchSeq,
    },
    /// A directory's entries in byte order of their names. Answer: [`Response::List`].
    List {
        /// Which directory node.
        dir: NodeId,
        /// When.
        at: BatchSeq,
        /// Continue behind this name.
        after: Option<Name>,
        /// Most entries; capped by [`crate::limits::HISTORY_PAGE`].
        limit: u32,
    },
    /// Where a file's bytes are. Answer: [`Response::Extents`].
    Extents {
        /// Which file.
        node: NodeId,
        /// When.
        at: BatchSeq,
        /// Extents that end behind this offset.
        from: u64,
    },
    /// Content blocks by id, in this order; the answer may hold only the first of them (at least one).
    /// Answer: [`Response::Blocks`].
    Blocks(Vec<u64>),
    /// Every version of what has been at a path, newest first. Answer: [`Response::Versions`].
    Versions {
        /// Absolute path on the source.
        path: BytePath,
        /// Most versions.
        limit: u32,
    },
    /// What differs below a path between two moments. Answer: [`Response::Diff`].
    Diff {
        /// Absolute path on the source.
        path: BytePath,
        /// Earlier moment.
        from: BatchSeq,
        /// Later moment.
        to: BatchSeq,
    },
    /// How much was committed when. Answer: [`Response::Timeline`].
    Timeline {
        /// Begin.
        from: Timestamp,
        /// End; not before `from`.
        to: Timestamp,
        /// Into how many equal parts; 1 to [`crate::limits::HISTORY_PAGE`].
        parts: u32,
    },
    /// All marks. Answer: [`Response::Marks`].
    Marks,
    /// Marks the last kept moment at or before a time (`None`: the last there is). Answer: [`Response::Moment`]. It is no question, and
    /// nothing but a vault answers it; no source can take a mark away.
    SetMark {
        /// Its name, which no other mark may have.
        name: String,
        /// When.
        at: Option<Timestamp>,
    },
}

/// A name for a moment, which is kept as long as it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its name.
    pub name: String,
    /// The moment.
    pub moment: Moment,
    /// When it was marked, at the vault.
    pub created: Timestamp,
    /// Who marked it: `source`, `vault` or `brake`.
    pub by: String,
}

/// What was committed in one part of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Batches.
    pub batches: u64,
    /// Operations.
    pub ops: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Moments`]; `None` while there is no batch.
    Moments(Option<(Moment, Moment)>),
    /// To [`Request::Resolve`]; `None` if the time is before the first batch.
    Moment(Option<Moment>),
    /// To [`Request::Stat`]; `None` if nothing was there.
    Stat(Option<Entry>),
    /// To [`Request::List`].
    List {
        /// In byte order of names.
        entries: Vec<Entry>,
        /// There are more behind the last.
        more: bool,
    },
    /// To [`Request::Extents`].
    Extents {
        /// In order of offset, disjoint; what lies between them is a hole.
        extents: Vec<BlockExtent>,
        /// There are more behind the last.
        more: bool,
    },
    /// To [`Request::Blocks`].
    Blocks(Vec<BlockBytes>),
    /// To [`Request::Versions`].
    Versions(Vec<Version>),
    /// To [`Request::Diff`].
    Diff {
        /// In byte order of paths.
        changes: Vec<Difference>,
        /// The list was cut at a bound.
        truncated: bool,
    },
    /// The question could not be answered.
    Error(String),
    /// To [`Request::Timeline`]: as many as were asked for, in order of time.
    Timeline(Vec<Part>),
    /// To [`Request::Marks`], in the order in which they were set.
    Marks(Vec<Mark>),
}

/// A batch and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Which batch.
    pub seq: BatchSeq,
    /// Its commit time at the source.
    pub time: Timestamp,
    /// The tree was exactly the source's at this point.
    pub clean: bool,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name; `None` for the root.
    pub name: Option<Name>,
    /// What it names. Entries with one node are hard links of each other.
    pub node: NodeId,
    /// Its attributes.
    pub meta: Meta,
    /// Names that the node had at that moment.
    pub links: u32,
    /// Batch of the node's last change of content or attributes.
    pub changed: BatchSeq,
    /// Where a file's bytes are, if they are few; else ask with [`Request::Extents`].
    pub extents: Option<Vec<BlockExtent>>,
}

impl Entry {
    /// May this be the answer to what is at `path`? It is written under this name, so a vault that is not trusted must not choose it.
    pub fn can_be_at(&self, path: &BytePath) -> bool {
        self.name == path.file_name()
    }
}

/// A run of a file's bytes inside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockExtent {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Which block.
    pub block: u64,
    /// First byte in the raw block.
    pub block_offset: u32,
}

/// A content block as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockBytes {
    /// Its id.
    pub block: u64,
    /// The whole record, header included; `Err` says what is wrong with it.
    pub record: Result<bytes::Bytes, String>,
}

/// One version of what was at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// When it came to be.
    pub moment: Moment,
    /// What it is; `None`: from here on nothing was at the path.
    pub meta: Option<Meta>,
    /// What made it.
    pub what: VersionChange,
    /// Bytes of content that this version brought to the log.
    pub bytes_new: u64,
}

/// What distinguishes a version from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionChange {
    /// First appeared at this path.
    Created,
    /// Came from another path.
    RenamedHere,
    /// Took the place of another file.
    Replaced,
    /// Content changed.
    Content,
    /// Only attributes changed.
    Attributes,
    /// Gone from this path.
    Removed,
}

/// One difference between two moments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where.
    pub path: BytePath,
    /// What it is, at the later moment where it still exists.
    pub kind: Kind,
    /// How it differs.
    pub what: DifferenceKind,
    /// Size before, if it was a file then.
    pub size_from: Option<u64>,
    /// Size after, if it is a file now.
    pub size_to: Option<u64>,
}

/// How two moments differ at one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DifferenceKind {
    /// Only at the later moment.
    Added,
    /// Only at the earlier moment.
    Removed,
    /// Other content, or another kind of file.
    Content,
    /// Same content, other attributes.
    Attributes,
}
