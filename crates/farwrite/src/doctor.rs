//! placeholder
use crate::cli::DoctorArgs;
use crate::state::State;
/// placeholder
pub fn run(_state: &State, _args: &DoctorArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
