//! `farwrite vault init`: makes a vault where nothing else is. It must never put a vault among somebody's files.

use anyhow::{Context, bail};
use farwrite_transfer::net::tls::Identity;
use farwrite_vault::{Vault, VaultError};
use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

/// What a directory may hold and still count as empty: a fresh ext4 has it.
const NOTHING: &str = "lost+found";

/// Makes the vault and says what to do next.
pub(super) fn run(dir: &Path, mirror: bool) -> anyhow::Result<()> {
    let vault = create(dir, mirror)?;
    let at = vault.dir().display();
    let what = if mirror {
        "history and a live mirror of every source"
    } else {
        "history only, no mirrors"
    };
    println!("made a vault in {at} ({what})");
    println!("next, on this machine:");
    println!("  farwrite vault serve {at}");
    println!("  farwrite vault invite {at} --name SOURCE     (once for every machine to protect)");
    Ok(())
}

/// Makes a vault in an empty or new directory.
pub(crate) fn create(dir: &Path, mirror: bool) -> anyhow::Result<Vault> {
    let dir = std::path::absolute(dir)?;
    match std::fs::read_dir(&dir) {
        Ok(entries) => {
            if dir.join("vault.toml").exists() {
                bail!(
                    "{} is a vault already: serve it with `farwrite vault serve {}`",
                    dir.display(),
                    dir.display()
                );
            }
            for entry in entries {
                let entry = entry.with_context(|| dir.display().to_string())?;
                if entry.file_name() != NOTHING {
                    bail!(
                        "{} is not empty: a vault needs a new or empty directory",
                        dir.display()
                    );
                }
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| dir.display().to_string()),
    }
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    let vault = Vault::init(&dir, mirror, SystemTime::now().into())?;
    Identity::load_or_create(&dir).context("this vault's key")?;
    Ok(vault)
}

/// Opens a vault, with words for who mistook the directory.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Vault> {
    let dir = std::path::absolute(dir)?;
    match Vault::open(&dir) {
        Ok(vault) => Ok(vault),
        Err(VaultError::Missing(_)) => bail!(
            "{} is not a vault: make one with `farwrite vault init {}`",
            dir.display(),
            dir.display()
        ),
        Err(e) => Err(e.into()),
    }
}
