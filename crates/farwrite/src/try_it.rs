//! placeholder
/// placeholder
pub fn run(_a: &crate::cli::TryArgs) -> anyhow::Result<()> { anyhow::bail!("not yet") }
