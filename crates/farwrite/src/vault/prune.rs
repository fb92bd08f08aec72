//! `farwrite vault prune` and `farwrite vault retention`: what of the past is kept, and taking away the rest. A source that is being
//! written is pruned by the process that writes it.
//!
//! With `--json`, `prune` prints an array, an object per source:
//!
//! ```text
//! name              string
//! policy            as in `retention`
//! dry_run           bool
//! moments_kept      moments that can be asked for afterwards
//! moments_dropped   moments that cannot any more
//! oldest            time of the oldest that can, RFC 3339, or null
//! every_since       every moment from this one on is kept, RFC 3339, or null
//! blocks            blocks of content that were freed
//! bytes_freed       bytes given back to the filesystem
//! bytes_left        bytes that nothing needs but that stay, in pieces smaller than 4096 bytes
//! stopped           it was interrupted, and will be gone on with
//! error             null, or why nothing was pruned
//! ```
//!
//! and `retention` an array of `name` (null: what counts for sources without their own), `own` (not the vault's), `keep_all`, `hourly`,
//! `daily`, `weekly`, `monthly` (null or a time such as "30d"), `keeps_everything`.

use super::init;
use crate::bytes;
use crate::cli::PolicyArgs;
use anyhow::{Context, bail};
use farwrite_core::{SourceName, Timestamp};
use farwrite_vault::retention::{
    Brake, POLICY_FILE, Policy, PruneOptions, PruneReport, Span, preview,
};
use farwrite_vault::{Options, PruneRequest, SourceVault, Vault};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A process that has a source open takes a request within this time, if it knows requests at all.
const TAKEN_WITHIN: Duration = Duration::from_secs(120);
/// Between two looks for its answer.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `prune` is to do.
pub(super) struct Wanted<'a> {
    pub(super) vault_dir: &'a Path,
    pub(super) only: Option<&'a SourceName>,
    pub(super) policy: &'a PolicyArgs,
    pub(super) dry_run: bool,
    pub(super) json: bool,
}

/// One source, and what became of it.
struct Row {
    name: SourceName,
    policy: Policy,
    done: anyhow::Result<PruneReport>,
}

/// Prunes, or says what pruning would do.
pub(super) fn run(wanted: &Wanted<'_>) -> anyhow::Result<()> {
    let vault = init::open(wanted.vault_dir)?;
    let mut rows = Vec::new();
    for name in names(&vault, wanted.only)? {
        let policy = change(vault.policy(&name)?.0, wanted.policy)?;
        let options = PruneOptions {
            policy: Some(policy),
            now: SystemTime::now().into(),
        };
        let done = match () {
            () if wanted.dry_run => preview(&vault, &name, &options).map_err(Into::into),
            () if policy.keeps_everything() => Ok(PruneReport::default()),
            () => prune(&vault, &name, policy),
        };
        rows.push(Row { name, policy, done });
    }
    if wanted.json {
        let all: Vec<Value> = rows.iter().map(|r| to_json(r, wanted.dry_run)).collect();
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        rows.iter().for_each(|r| print(r, wanted.dry_run));
    }
    let failed = rows.iter().filter(|r| r.done.is_err()).count();
    match rows.into_iter().find_map(|r| r.done.err()) {
        Some(e) if failed == 1 => Err(e),
        Some(_) => bail!("{failed} sources could not be pruned"),
        None => Ok(()),
    }
}

fn names(vault: &Vault, only: Option<&SourceName>) -> anyhow::Result<Vec<SourceName>> {
    match only {
        Some(name) if !vault.source_dir(name).is_dir() => bail!("the vault has no source {name}"),
        Some(name) => Ok(vec![name.clone()]),
        None => Ok(vault.sources()?.into_iter().map(|s| s.name).collect()),
    }
}

/// Prunes here, or has it done by the process that has the source open.
fn prune(vault: &Vault, name: &SourceName, policy: Policy) -> anyhow::Result<PruneReport> {
    let options = Options {
        mirror: vault.info().mirror,
        events: Arc::new(|_| {}),
    };
    match SourceVault::open_alone(vault, name, options) {
        Ok(source) => {
            let done = source.prune(Some(policy));
            source.close()?;
            Ok(done?)
        }
        Err(e) if e.is_busy() => ask(vault, name, policy),
        Err(e) => Err(e.into()),
    }
}

fn ask(vault: &Vault, name: &SourceName, policy: Policy) -> anyhow::Result<PruneReport> {
    let dir = vault.source_dir(name);
    let alone = match PruneRequest::alone(&dir) {
        Err(e) if e.is_busy() => {
            bail!("{name}: somebody else is having it pruned: try again when that has ended")
        }
        other => other?,
    };
    let request = PruneRequest::send(&dir, Some(&policy))?;
    let begun = Instant::now();
    loop {
        if let Some(answer) = request.answer(&dir) {
            return match answer.error {
                Some(e) => bail!("{name}: {e}"),
                None => Ok(answer.report),
            };
        }
        std::thread::sleep(LOOK_EVERY);
        if !SourceVault::is_open(vault, name) {
            if request.withdraw(&dir) {
                drop(alone);
                return prune(vault, name, policy);
            }
            if request.answer(&dir).is_none() {
                bail!("{name}: the process that wrote it ended before it had answered: try again");
            }
        }
        if begun.elapsed() > TAKEN_WITHIN && request.withdraw(&dir) {
            bail!("{name}: the process that writes it does not answer; is it an older Farwrite?");
        }
    }
}

fn rfc3339(t: Timestamp) -> Option<String> {
    jiff::Timestamp::new(t.sec, t.nsec as i32)
        .ok()
        .map(|t| t.to_string())
}

fn to_json(row: &Row, dry_run: bool) -> Value {
    let empty = PruneReport::default();
    let (r, error) = match &row.done {
        Ok(r) => (r, None),
        Err(e) => (&empty, Some(crate::one_line(e))),
    };
    json!({
        "name": row.name,
        "policy": policy_json(&row.policy),
        "dry_run": dry_run,
        "moments_kept": r.moments_kept,
        "moments_dropped": r.moments_dropped,
        "oldest": r.oldest.and_then(rfc3339),
        "every_since": r.every_since.and_then(rfc3339),
        "blocks": r.blocks,
        "bytes_freed": r.bytes_freed,
        "bytes_left": r.bytes_left,
        "stopped": r.stopped,
        "error": error,
    })
}

fn print(row: &Row, dry_run: bool) {
    let name = &row.name;
    let r = match &row.done {
        Ok(_) if row.policy.keeps_everything() => {
            return println!("{name}: everything is kept (farwrite vault retention sets how long)");
        }
        Ok(r) => r,
        Err(e) => return println!("{name}: {}", crate::one_line(e)),
    };
    let (kept, dropped) = (
        bytes::grouped(r.moments_kept),
        bytes::grouped(r.moments_dropped),
    );
    let freed = bytes::show(r.bytes_freed);
    match dry_run {
        true => println!("{name}: would drop {dropped} moments and free {freed}, keeping {kept}"),
        false => println!("{name}: dropped {dropped} moments and freed {freed}, {kept} are kept"),
    }
    if let Some(t) = r.oldest.and_then(rfc3339) {
        println!("{name}: the oldest is of {t}");
    }
    if r.bytes_left > 0 {
        println!(
            "{name}: {} that nothing needs stay, in pieces too small to be freed",
            bytes::show(r.bytes_left)
        );
    }
    if r.strangers > 0 {
        println!(
            "{name}: {} blocks were left alone: the log does not have there what the catalog says; farwrite vault verify says more",
            bytes::grouped(r.strangers)
        );
    }
    if r.stopped {
        println!("{name}: it was interrupted, and will be gone on with");
    }
}

/// A policy with what the command line says instead.
fn change(mut policy: Policy, args: &PolicyArgs) -> anyhow::Result<Policy> {
    let set = |to: &mut Option<Span>, arg: &Option<String>, what: &str| -> anyhow::Result<()> {
        match arg.as_deref() {
            None => {}
            Some("none") => *to = None,
            Some(text) => *to = Some(text.parse().with_context(|| format!("--{what}"))?),
        }
        Ok(())
    };
    set(&mut policy.keep_all, &args.keep_all, "keep-all")?;
    set(&mut policy.hourly, &args.hourly, "hourly")?;
    set(&mut policy.daily, &args.daily, "daily")?;
    set(&mut policy.weekly, &args.weekly, "weekly")?;
    set(&mut policy.monthly, &args.monthly, "monthly")?;
    policy.check()?;
    Ok(policy)
}

fn policy_json(policy: &Policy) -> Value {
    let text = |span: Option<Span>| span.map(|s| s.to_string());
    json!({
        "keep_all": text(policy.keep_all),
        "hourly": text(policy.hourly),
        "daily": text(policy.daily),
        "weekly": text(policy.weekly),
        "monthly": text(policy.monthly),
        "keeps_everything": policy.keeps_everything(),
    })
}

/// `farwrite vault release`: lets go of the ransomware brake.
pub(super) fn release(vault_dir: &Path, source: &SourceName) -> anyhow::Result<()> {
    let vault = init::open(vault_dir)?;
    let dir = vault.source_dir(source);
    if !dir.is_dir() {
        bail!("the vault has no source {source}");
    }
    let mark = Brake::load(&dir).and_then(|b| b.mark);
    if !Brake::release(&dir)? {
        println!("{source}: the brake is not set");
        return Ok(());
    }
    println!("{source}: released, and pruned again as its policy says");
    if let Some(mark) = mark {
        println!(
            "{source}: the mark {mark} stays until it is taken away: farwrite vault mark {} {source} {mark} --remove",
            vault_dir.display()
        );
    }
    Ok(())
}

/// Shows the policy of the vault and its sources, or sets one.
pub(super) fn retention(
    vault_dir: &Path,
    only: Option<&SourceName>,
    args: &PolicyArgs,
    inherit: bool,
    json: bool,
) -> anyhow::Result<()> {
    let vault = init::open(vault_dir)?;
    let known = names(&vault, only)?;
    let dir = match only {
        Some(name) => vault.source_dir(name),
        None => vault.dir().to_owned(),
    };
    if inherit {
        match std::fs::remove_file(dir.join(POLICY_FILE)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| dir.join(POLICY_FILE).display().to_string());
            }
            _ => {}
        }
    } else if args.is_any() {
        let before = match only {
            Some(name) => vault.policy(name)?.0,
            None => Policy::load(&dir)?.unwrap_or_default(),
        };
        change(before, args)?.save(&dir)?;
    }
    let mut rows: Vec<(Option<SourceName>, Policy, bool)> = Vec::new();
    if only.is_none() {
        rows.push((None, Policy::load(vault.dir())?.unwrap_or_default(), false));
    }
    for name in known {
        let (policy, own) = vault.policy(&name)?;
        rows.push((Some(name), policy, own));
    }
    if json {
        let all = rows.iter().map(|(name, p, own)| {
            let mut value = policy_json(p);
            value["name"] = json!(name);
            value["own"] = json!(own);
            value
        });
        let all: Vec<Value> = all.collect();
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    for (name, policy, own) in &rows {
        match (name, own) {
            (None, _) => println!("every source without its own: {}", words(policy)),
            (Some(n), true) => println!("{n}: {}", words(policy)),
            (Some(n), false) => println!("{n}: {} (the vault's)", words(policy)),
        }
    }
    Ok(())
}

fn words(policy: &Policy) -> String {
    if policy.keeps_everything() {
        return "everything is kept".into();
    }
    let tiers = [
        ("every change", policy.keep_all),
        ("hourly", policy.hourly),
        ("daily", policy.daily),
        ("weekly", policy.weekly),
        ("monthly", policy.monthly),
    ];
    let said: Vec<String> = tiers
        .iter()
        .filter_map(|(what, span)| span.map(|s| format!("{what} {s}")))
        .collect();
    said.join(", ")
}
