//! Retention as the control API shows, sets and previews it. Prunes nothing: the daemon's own schedule and `farwrite vault
//! prune` do.

use super::status::rfc3339;
use crate::bytes;
use farwrite_control::{
    Answer, Brake, Fault, MarkedMoment, Moment, PrunePreview, Retention, RetentionPolicy,
};
use farwrite_core::{SourceName, path};
use farwrite_vault::retention::{self, Marks, Policy, PruneOptions, Span, preview};
use farwrite_vault::{LastPrune, Vault};
use std::path::Path;
use std::time::SystemTime;

/// The policy of a source.
pub(super) fn of(vault: &Vault, name: &SourceName) -> Answer<Retention> {
    let (policy, own) = vault
        .policy(name)
        .map_err(|e| Fault::failed(e.to_string()))?;
    Ok(show(&policy, own))
}

fn show(p: &Policy, own: bool) -> Retention {
    let text = |span: Option<Span>| span.map_or(String::new(), |s| s.to_string());
    Retention {
        own,
        keeps_everything: p.keeps_everything(),
        policy: RetentionPolicy {
            keep_all: text(p.keep_all),
            hourly: text(p.hourly),
            daily: text(p.daily),
            weekly: text(p.weekly),
            monthly: text(p.monthly),
        },
    }
}

fn read(p: &RetentionPolicy) -> Answer<Policy> {
    let span = |field: &str, text: &str| match text.trim() {
        "" => Ok(None),
        text => text
            .parse::<Span>()
            .map(Some)
            .map_err(|e| Fault::field(field, e.to_string())),
    };
    let policy = Policy {
        keep_all: span("keep_all", &p.keep_all)?,
        hourly: span("hourly", &p.hourly)?,
        daily: span("daily", &p.daily)?,
        weekly: span("weekly", &p.weekly)?,
        monthly: span("monthly", &p.monthly)?,
        brake_percent: None,
    };
    policy
        .check()
        .map_err(|e| Fault::field("keep_all", e.to_string()))?;
    Ok(policy)
}

/// Sets a source's own policy.
pub(super) fn set(vault: &Vault, name: &SourceName, p: &RetentionPolicy) -> Answer<Retention> {
    // Not on the page: it stays as it is.
    let brake_percent = vault
        .policy(name)
        .map_err(|e| Fault::failed(e.to_string()))?
        .0
        .brake_percent;
    let policy = Policy {
        brake_percent,
        ..read(p)?
    };
    policy
        .save(&vault.source_dir(name))
        .map_err(|e| Fault::failed(e.to_string()))?;
    of(vault, name)
}

/// What pruning by a policy would do now.
pub(super) fn look_ahead(
    vault: &Vault,
    name: &SourceName,
    p: &RetentionPolicy,
) -> Answer<PrunePreview> {
    let options = PruneOptions {
        policy: Some(read(p)?),
        now: SystemTime::now().into(),
    };
    let r = preview(vault, name, &options).map_err(|e| Fault::failed(e.to_string()))?;
    Ok(PrunePreview {
        moments_kept: r.moments_kept,
        moments_dropped: r.moments_dropped,
        oldest: r.oldest.and_then(rfc3339),
        every_since: r.every_since.and_then(rfc3339),
        bytes_freed: r.bytes_freed,
        bytes_left: r.bytes_left,
    })
}

/// The last prune in words.
pub(super) fn last_prune(source_dir: &Path) -> Option<String> {
    let last = LastPrune::load(source_dir)?;
    let when = rfc3339(last.time)?;
    Some(match last.error {
        Some(e) => format!("{when}: {e}"),
        None => format!(
            "{when}: {} moments dropped, {} freed",
            bytes::grouped(last.report.moments_dropped),
            bytes::show(last.report.bytes_freed)
        ),
    })
}

/// The ransomware brake, if it is set.
pub(super) fn brake(source_dir: &Path) -> Option<Brake> {
    if !retention::Brake::is_set(source_dir) {
        return None;
    }
    let unreadable = || Brake {
        why: "what set it cannot be read".into(),
        ..Brake::default()
    };
    let set = |b: retention::Brake| Brake {
        since: rfc3339(b.time).unwrap_or_default(),
        why: path::lossy(b.why.as_bytes()),
        mark: b.mark,
    };
    Some(retention::Brake::load(source_dir).map_or_else(unreadable, set))
}

/// Lets go of it.
pub(super) fn release(source_dir: &Path) -> Answer<()> {
    retention::Brake::release(source_dir)
        .map(drop)
        .map_err(|e| Fault::failed(e.to_string()))
}

/// Names for moments.
pub(super) fn marks(source_dir: &Path) -> Vec<MarkedMoment> {
    let marks = Marks::load(source_dir).unwrap_or_default();
    let one = |m: &farwrite_core::history::Mark| {
        Some(MarkedMoment {
            name: m.name.clone(),
            by: m.by.clone(),
            moment: Moment {
                batch: m.moment.seq.0,
                time: rfc3339(m.moment.time)?,
                clean: m.moment.clean,
            },
        })
    };
    marks.list.iter().filter_map(one).collect()
}
