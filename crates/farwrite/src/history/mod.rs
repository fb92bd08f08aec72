//! The commands that look into the past and bring it back. All they know comes from the history's answers, so that they do
//! the same over the network and beside a vault's directory. Only `restore` writes, and only where it was told to.

mod ask;
mod diff;
mod jobs;
mod ls;
mod mark;
mod past;
mod place;
mod restore;
mod show;
mod versions;
mod when;

use crate::cli::{DiffArgs, LsArgs, MarkArgs, RestoreArgs, VersionsArgs};
use crate::state::State;
pub use past::Past;

/// `farwrite versions`.
pub fn versions(state: &State, args: &VersionsArgs) -> anyhow::Result<()> {
    versions::run(state, args)
}

/// `farwrite ls`.
pub fn ls(state: &State, args: &LsArgs) -> anyhow::Result<()> {
    ls::run(state, args)
}

/// `farwrite mark`.
pub fn mark(state: &State, args: &MarkArgs) -> anyhow::Result<()> {
    mark::run(state, args)
}

/// A time as a person wrote it.
pub fn parse_time(text: &str) -> anyhow::Result<farwrite_core::Timestamp> {
    when::parse_now(text)
}

/// A moment in words.
pub fn show_moment(moment: &farwrite_core::history::Moment) -> String {
    show::moment(moment)
}

/// `farwrite diff`.
pub fn diff(state: &State, args: &DiffArgs) -> anyhow::Result<()> {
    diff::run(state, args)
}

/// `farwrite restore`.
pub fn restore(state: &State, args: &RestoreArgs) -> anyhow::Result<()> {
    restore::run(state, args)
}
