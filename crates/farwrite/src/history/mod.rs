//! placeholder
use crate::cli::*;
use crate::state::State;
/// placeholder
pub fn versions(_s: &State, _a: &VersionsArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
/// placeholder
pub fn ls(_s: &State, _a: &LsArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
/// placeholder
pub fn diff(_s: &State, _a: &DiffArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
/// placeholder
pub fn restore(_s: &State, _a: &RestoreArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
