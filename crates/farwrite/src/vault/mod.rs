//! `farwrite vault ...`: makes, serves and inspects a vault. What a vault is stands in the vault crate, how it is spoken
//! to in the transfer crate; here the two meet.

mod address;
mod alerts;
mod commands;
mod daemon;
mod destination;
mod failure;
mod init;
mod invite;
mod mark;
mod metrics;
mod presence;
mod prune;
mod retained;
mod serve;
mod space;
mod status;
mod upkeep;
mod verified;
mod verify;

pub(crate) use init::{create, open};
pub(crate) use mark::{list as list_marks, to_json as mark_json};
pub(crate) use serve::serve;

use crate::cli::VaultCommand;
use anyhow::Context;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes what root makes in a vault belong to whom its sources belong to: it must be readable and writable for the process that
/// serves it. What root may read it still may; to write where that user may not would let them have it write through a link of theirs.
/// To be called before there are other threads.
fn become_owner(vault_dir: &Path) -> anyhow::Result<()> {
    let Ok(owner) = std::fs::metadata(vault_dir.join("sources")) else {
        // Nothing is in it, or it is none: that is said by whoever opens it.
        return Ok(());
    };
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    thread::set_thread_res_gid(Gid::ROOT, gid, Gid::ROOT)
        .and_then(|()| thread::set_thread_res_uid(Uid::ROOT, uid, Uid::ROOT))
        .and_then(|()| thread::capabilities(None))
        // capabilities(7): the effective ones go with the effective user, the permitted ones stay as long as the real one is root.
        .and_then(|mut sets| {
            sets.effective |= sets.permitted & CapabilitySet::DAC_READ_SEARCH;
            thread::set_capabilities(None, sets)
        })
        .with_context(|| format!("acting for user {}, whom the vault belongs to", owner.uid()))
}

/// Does what was asked.
pub fn run(command: VaultCommand) -> anyhow::Result<()> {
    match &command {
        // The process that serves is started as whom it shall be.
        VaultCommand::Init { .. } | VaultCommand::Serve { .. } | VaultCommand::Stdio { .. } => {
            farwrite_fs::check_openat2()?;
        }
        VaultCommand::Ui { vault_dir }
        | VaultCommand::AlertTest { vault_dir }
        | VaultCommand::Invite { vault_dir, .. }
        | VaultCommand::Status { vault_dir, .. }
        | VaultCommand::Verify { vault_dir, .. }
        | VaultCommand::Prune { vault_dir, .. }
        | VaultCommand::Retention { vault_dir, .. }
        | VaultCommand::Release { vault_dir, .. }
        | VaultCommand::Mark { vault_dir, .. } => become_owner(vault_dir)?,
    }
    match command {
        VaultCommand::Init {
            vault_dir,
            no_mirror,
        } => init::run(&vault_dir, !no_mirror),
        VaultCommand::Serve {
            vault_dir,
            listen,
            ui,
            metrics,
            verify_every,
        } => serve::run(&vault_dir, &listen, ui, metrics.as_deref(), verify_every),
        VaultCommand::Ui { vault_dir } => commands::ui(&vault_dir),
        VaultCommand::AlertTest { vault_dir } => commands::test_alerts(&vault_dir),
        VaultCommand::Invite {
            vault_dir,
            name,
            address,
            expires,
        } => invite::run(&vault_dir, &name, address, expires),
        VaultCommand::Status { vault_dir, json } => status::run(&vault_dir, json),
        VaultCommand::Verify {
            vault_dir,
            name,
            json,
        } => verify::run(&vault_dir, name.as_ref(), json),
        VaultCommand::Prune {
            vault_dir,
            source,
            dry_run,
            json,
            policy,
        } => prune::run(&prune::Wanted {
            vault_dir: &vault_dir,
            only: source.as_ref(),
            policy: &policy,
            dry_run,
            json,
        }),
        VaultCommand::Retention {
            vault_dir,
            source,
            inherit,
            json,
            policy,
        } => prune::retention(&vault_dir, source.as_ref(), &policy, inherit, json),
        VaultCommand::Release { vault_dir, source } => prune::release(&vault_dir, &source),
        VaultCommand::Mark {
            vault_dir,
            source,
            name,
            at,
            remove,
            json,
        } => mark::run(
            &vault_dir,
            &source,
            name.as_deref(),
            at.as_deref(),
            remove,
            json,
        ),
        VaultCommand::Stdio { vault_dir, name } => serve::stdio(&vault_dir, name),
    }
}
