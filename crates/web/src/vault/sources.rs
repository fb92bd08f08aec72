//! All sources of the vault: who is here, how far, what it takes.

use super::{Page, frame};
use crate::live::{stream, tell};
use crate::pages::{Frame, html};
use crate::server::Site;
use crate::words::{ago, bytes, grouped, span_ms};
use askama::Template;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use farwrite_control::{VaultAlert, VaultSource, VaultStatus};
use serde_json::json;

#[derive(Template)]
#[template(path = "vault_sources.html")]
struct Sources {
    frame: Frame,
    sentence: String,
    details: String,
}

/// `GET /`.
pub(super) async fn page(State(site): State<Site>) -> Page {
    let status: VaultStatus = site.control.get("vault").await?;
    let mut frame = frame("Sources");
    frame.refresh = Some(5);
    Ok(html(&Sources {
        frame,
        sentence: sentence_part(&status),
        details: details_part(&status),
    })
    .into_response())
}

/// `GET /live/sources`.
pub(super) async fn live(State(site): State<Site>) -> Response {
    let control = site.control.clone();
    stream(&site, move |sender| async move {
        let Ok(mut events) = control.events::<VaultStatus>("events/vault").await else {
            return;
        };
        // "3 s ago" moves on also when nothing changes.
        let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
        let mut last: Option<VaultStatus> = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(Some(status)) => last = Some(status),
                    _ => return,
                },
                _ = tick.tick() => {}
            }
            let Some(status) = &last else { continue };
            let parts =
                json!({ "sentence": sentence_part(status), "details": details_part(status) });
            if !tell(&sender, &parts).await {
                return;
            }
        }
    })
}

#[derive(Template)]
#[template(path = "part_vault_sentence.html")]
struct SentencePart<'a> {
    mood: &'static str,
    says: String,
    alerts: &'a [VaultAlert],
}

fn sentence_part(s: &VaultStatus) -> String {
    let here = s.sources.iter().filter(|s| s.connected).count();
    let (mood, says) = match (s.alerts.len(), s.sources.len()) {
        (0, 0) => ("work", "No source yet.".to_owned()),
        (0, all) => ("good", format!("All is well. {here} of {all} connected.")),
        (1, _) => ("bad", "One thing is wrong.".to_owned()),
        (n, _) => ("bad", format!("{n} things are wrong.")),
    };
    html(&SentencePart {
        mood,
        says,
        alerts: &s.alerts,
    })
    .0
}

struct Row {
    name: String,
    address: String,
    mood: &'static str,
    state: &'static str,
    seen: String,
    last: String,
    lag: String,
    behind: String,
    space: String,
    growth: String,
    versions: String,
    verified_mood: &'static str,
    verified: String,
}

#[derive(Template)]
#[template(path = "part_vault_sources.html")]
struct Details<'a> {
    rows: Vec<Row>,
    s: &'a VaultStatus,
    room: String,
}

fn details_part(s: &VaultStatus) -> String {
    let room = match (s.free_bytes, s.total_bytes) {
        (Some(free), Some(total)) => format!("{} of {} free", bytes(free), bytes(total)),
        _ => "not known".into(),
    };
    html(&Details {
        rows: s.sources.iter().map(row).collect(),
        s,
        room,
    })
    .0
}

/// How a source stands, in a word.
pub(super) fn state(s: &VaultSource) -> (&'static str, &'static str) {
    match s {
        s if s.error.is_some() || s.failure.is_some() => ("bad", "failed"),
        s if s.damaged > 0 => ("bad", "damaged"),
        s if s.brake.is_some() => ("bad", "brake is set"),
        s if s.connected && s.behind_batches > 0 => ("work", "mirror behind"),
        s if s.connected => ("good", "connected"),
        s if s.batches == 0 => ("work", "nothing yet"),
        _ => ("work", "not connected"),
    }
}

/// How the last verification ended, in words, or how far the one is that runs.
pub(super) fn verified(s: &VaultSource) -> (&'static str, String) {
    if let Some(v) = &s.verifying {
        let part = (v.bytes * 100).checked_div(v.of_bytes).unwrap_or(0);
        return ("work", format!("{} % done", part.min(100)));
    }
    match &s.verified {
        None => ("", "never".into()),
        Some(v) if v.is_clean() => ("good", format!("clean, {}", ago(&v.ended))),
        Some(v) => (
            "bad",
            format!("{} wrong, {}", grouped(v.findings), ago(&v.ended)),
        ),
    }
}

/// What a source takes in all.
pub(super) fn space(s: &VaultSource) -> u64 {
    s.space.log_bytes + s.space.catalog_bytes + s.space.mirror_bytes.unwrap_or(0)
}

/// Growth in a day, in words.
pub(super) fn growth(per_day: Option<i64>) -> String {
    match per_day {
        None => "not known yet".into(),
        Some(n) if n < 0 => format!("−{} a day", bytes(n.unsigned_abs())),
        Some(n) => format!("+{} a day", bytes(n.unsigned_abs())),
    }
}

/// How far the source is behind its own files, as it says.
pub(super) fn lag(s: &VaultSource) -> String {
    match (s.pending_changes, s.lag_ms) {
        (Some(0), _) => "up to date".into(),
        (Some(n), Some(ms)) => format!("{} ({} waiting)", span_ms(ms), grouped(n)),
        _ => "not known".into(),
    }
}

/// How far the mirror is behind the log.
pub(super) fn behind(s: &VaultSource) -> String {
    match (s.mirror, s.behind_batches) {
        (false, _) => "no mirror".into(),
        (true, 0) => "up to date".into(),
        (true, 1) => "1 batch".into(),
        (true, n) => format!("{} batches", grouped(n)),
    }
}

fn row(s: &VaultSource) -> Row {
    let (mood, state) = state(s);
    let (verified_mood, verified) = verified(s);
    let never = || "never".to_owned();
    Row {
        address: format!("/source/{}", s.name),
        name: s.name.clone(),
        mood,
        state,
        seen: match s.connected {
            true => "now".into(),
            false => s.last_seen.as_deref().map_or_else(never, ago),
        },
        last: s.last_backup.as_deref().map_or_else(never, ago),
        lag: lag(s),
        behind: behind(s),
        space: bytes(space(s)),
        growth: growth(s.growth_per_day),
        versions: grouped(s.versions),
        verified_mood,
        verified,
    }
}
