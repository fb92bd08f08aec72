//! Every bound of the system, by name. Lengths that come from the wire, the disk or the kernel are
//! checked against these before anything is allocated.

/// Most bytes of one path component (Linux `NAME_MAX`).
pub const NAME_BYTES: usize = 255;
/// Most bytes of a whole path, far beyond `PATH_MAX`: deep trees are reached through directory handles.
pub const PATH_BYTES: usize = 1 << 20;
/// Most bytes of a symbolic link's target (Linux `PATH_MAX`).
pub const TARGET_BYTES: usize = 4096;
/// Most bytes of the extended attributes of one node, names and values together.
pub const XATTR_BYTES: usize = 512 << 10;
/// Most bytes of the names of one node's extended attributes, each with its zero: the kernel lists no more (Linux
/// `XATTR_LIST_MAX`).
pub const XATTR_LIST_BYTES: usize = 64 << 10;
/// Most bytes that a data block holds before compression.
pub const BLOCK_RAW_BYTES: usize = 1 << 20;
/// Most bytes that one record's payload holds, stored or raw.
pub const RECORD_BYTES: usize = 2 << 20;
/// An `Ops` record is closed once its raw payload has reached this size.
pub const OPS_TARGET_BYTES: usize = 512 << 10;
/// The backup unit closes a batch once it holds this many bytes of data, extended attributes among them.
pub const BATCH_DATA_BYTES: u64 = 16 << 20;
/// The backup unit closes a batch once it holds this many operations.
pub const BATCH_OPS: usize = 20_000;
/// Most operations that a vault accepts in one batch.
pub const BATCH_OPS_MAX: u64 = 2_000_000;
/// Most data blocks that a vault accepts in one batch.
pub const BATCH_BLOCKS_MAX: u64 = 100_000;
/// Bytes that may be on their way to a vault without an ack: the largest credit a vault grants.
pub const WINDOW_BYTES: u64 = 64 << 20;
/// Size of the blocks whose checksums the source keeps, to find the variant part of a file.
pub const SUM_BLOCK_BYTES: u64 = 8 << 10;
/// Most extents that one dirty file holds before it becomes "unknown: compare the file".
pub const DIRTY_EXTENTS: usize = 256;
/// Most entries of the dirty set before it collapses names into directories.
pub const DIRTY_ENTRIES: usize = 200_000;
/// Most extents that one history answer carries for one file.
pub const HISTORY_EXTENTS: usize = 4096;
/// Most entries in one page of a history answer.
pub const HISTORY_PAGE: usize = 4096;
/// Most bytes of data blocks in one history answer.
pub const HISTORY_BLOCK_BYTES: usize = 8 << 20;
/// Depth of directories beyond which a tree is refused.
pub const TREE_DEPTH: usize = 16_384;
