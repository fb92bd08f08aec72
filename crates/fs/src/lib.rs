//! File trees through directory handles, for both ends: the source reads with it, the mirror and the restore
//! write with it.
//!
//! Every access is a name relative to an open directory and never follows a symbolic link, so nothing that
//! another process plants in a tree leads outside, and paths longer than `PATH_MAX` work.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod attrs;
mod cache;
mod data;
mod dir;
mod direct;
mod mounts;
mod stat;
mod xattr;

pub use attrs::{
    Skipped, apply_meta, apply_meta_fd, mode_to_create, read_meta, read_meta_with, set_mtime,
};
pub use cache::{HandleCache, raise_open_files};
pub use data::{
    SHARED_UNIT_BYTES, Segment, Segments, data_segments, expect_reads, forget_cached, punch_hole,
    read_range, share_range, shares_extents,
};
pub use dir::{Dir, DirEntry, OpenMode, RemovedTree, check_openat2};
pub use direct::{
    DIRECT_LEAST_BYTES, DirectFile, Scratch, is_cached, open_direct, overwrites_in_place,
    read_direct, write_pieces_at,
};
pub use mounts::mount_points;
pub use stat::Stat;
pub use xattr::{list_file_xattrs, list_xattrs, set_xattrs};

use rustix::io::Errno;
use std::io;

/// Is it "there is nothing of that name"? Also a path through something that is not a directory.
pub fn is_absent(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOENT | Errno::NOTDIR))
}
