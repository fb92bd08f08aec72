//! The overview: one sentence, the switch and what it does in the kernel, numbers.

use super::{Frame, Page, Posted, Trouble, address, go, html};
use crate::gate::Session;
use crate::server::Site;
use crate::words::{self, Sentence, bytes, grouped, local, span_ms};
use askama::Template;
use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use farwrite_control::{Done, Problem, State as Safety, Status, Switch};
use serde::Deserialize;
use std::collections::BTreeSet;

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    sentence: String,
    switch: String,
    details: String,
}

/// `GET /`.
pub(crate) async fn page(State(site): State<Site>, Extension(session): Extension<Session>) -> Page {
    let status: Status = site.control.get("status").await?;
    let mut frame = Frame::new("Overview");
    frame.refresh = Some(5);
    Ok(html(&Overview {
        frame,
        sentence: sentence_part(&status),
        switch: switch_part(&status, &session),
        details: details_part(&status, &session),
    })
    .into_response())
}

#[derive(Deserialize)]
pub(crate) struct SwitchForm {
    on: bool,
    /// This one only; empty: all.
    #[serde(default)]
    directory: String,
}

/// `POST /switch`.
pub(crate) async fn switch(State(site): State<Site>, posted: Posted<SwitchForm>) -> Page {
    let switch = Switch {
        on: posted.form.on,
        directories: Some(posted.form.directory)
            .filter(|d| !d.is_empty())
            .into_iter()
            .collect(),
    };
    let Done {} = site
        .control
        .post("switch", &switch)
        .await
        .map_err(Trouble)?;
    Ok(go("/"))
}

#[derive(Template)]
#[template(path = "part_sentence.html")]
struct SentencePart {
    s: Sentence,
}

pub(crate) fn sentence_part(status: &Status) -> String {
    html(&SentencePart {
        s: words::sentence(status),
    })
    .0
}

#[derive(Template)]
#[template(path = "part_switch.html")]
struct SwitchPart<'a> {
    s: &'a Status,
    csrf: &'a str,
    kind: &'a str,
    in_kernel: String,
    restored: &'static str,
}

pub(crate) fn switch_part(s: &Status, session: &Session) -> String {
    let kind = s.sensor.kind.as_deref().unwrap_or("none");
    html(&SwitchPart {
        s,
        csrf: &session.csrf,
        kind,
        in_kernel: in_kernel(s),
        restored: "the original system calls are in place, no marks, no watches, no hooks. Changes are not seen.",
    })
    .0
}

/// What the sensor holds in the kernel.
fn in_kernel(s: &Status) -> String {
    let plural = |n: u64, one: &str, many: &str| {
        format!("{} {}", grouped(n), if n == 1 { one } else { many })
    };
    let mut parts = Vec::new();
    if s.sensor.replaced > 0 {
        parts.push(plural(
            s.sensor.replaced,
            "system call replaced",
            "system calls replaced",
        ));
    }
    if s.sensor.hooked > 0 {
        parts.push(plural(
            s.sensor.hooked,
            "function hooked",
            "functions hooked",
        ));
    }
    if s.sensor.marks > 0 {
        parts.push(match s.sensor.kind.as_deref() {
            Some("inotify") => plural(s.sensor.marks, "watch", "watches"),
            _ => plural(s.sensor.marks, "filesystem mark", "filesystem marks"),
        });
    }
    if s.sensor.replaced == 0 {
        parts.push("no system call replaced".into());
    }
    parts.join(", ")
}

struct VaultRow {
    name: String,
    mood: &'static str,
    state: &'static str,
    message: String,
    lag: String,
    waiting: String,
    ack: String,
    sent: String,
    last_ack: String,
}

struct ProtectionRow {
    directory: String,
    vault: String,
    mood: &'static str,
    state: &'static str,
    not_covered: Vec<String>,
    history: String,
    enabled: bool,
}

#[derive(Template)]
#[template(path = "part_details.html")]
struct Details<'a> {
    csrf: &'a str,
    /// Each directory has a switch of its own.
    switches: bool,
    vaults: Vec<VaultRow>,
    protections: Vec<ProtectionRow>,
    problems: Vec<&'a Problem>,
    messages: String,
    lost: String,
    repaired: String,
    overflows: String,
    interval: &'a str,
    applications_first: bool,
    managing: String,
    processing: String,
    journal: String,
    version: &'a str,
    pid: u32,
}

pub(crate) fn details_part(s: &Status, session: &Session) -> String {
    let lost = s.protections.iter().map(|p| p.lost).max().unwrap_or(0);
    let repaired = s.protections.iter().map(|p| p.repaired).max().unwrap_or(0);
    let processing = s.vaults.iter().map(|v| v.processing_interval_ms);
    let directories: BTreeSet<&str> = s.protections.iter().map(|p| &*p.directory).collect();
    html(&Details {
        csrf: &session.csrf,
        switches: directories.len() > 1,
        vaults: s.vaults.iter().map(vault_row).collect(),
        protections: s
            .protections
            .iter()
            .map(|p| ProtectionRow {
                directory: p.directory.clone(),
                vault: p.vault.clone(),
                mood: mood(p.state),
                state: state(p.state),
                not_covered: p.not_covered.clone(),
                enabled: p.enabled,
                history: address("/history", &[("vault", &p.vault), ("path", &p.directory)]),
            })
            .collect(),
        problems: s.vaults.iter().flat_map(|v| &v.problems).collect(),
        messages: grouped(s.schedule.messages),
        lost: grouped(lost),
        repaired: grouped(repaired),
        overflows: grouped(s.sensor.overflows),
        interval: &s.schedule.interval,
        applications_first: s.schedule.applications_first,
        managing: format!("{:.0} ms", s.schedule.managing_interval_ms),
        processing: format!("{:.0} ms", processing.fold(0.0, f64::max)),
        journal: format!(
            "{}, {} of {} messages done",
            bytes(s.schedule.journal_bytes),
            grouped(s.schedule.journal_checkpoint),
            grouped(s.schedule.journal_last)
        ),
        version: &s.version,
        pid: s.pid,
    })
    .0
}

fn vault_row(v: &farwrite_control::Vault) -> VaultRow {
    VaultRow {
        name: v.name.clone(),
        mood: mood(v.state),
        state: state(v.state),
        // Where all is well, the word for the state says it.
        message: if v.state == Safety::Safe {
            String::new()
        } else {
            v.message.clone()
        },
        lag: span_ms(v.lag_ms),
        waiting: match v.pending_bytes {
            0 => grouped(v.pending_changes),
            b => format!("{} ({})", grouped(v.pending_changes), bytes(b)),
        },
        ack: if v.ack_ms > 0.0 {
            format!("{:.0} ms", v.ack_ms)
        } else {
            "none yet".into()
        },
        sent: bytes(v.wire_bytes),
        last_ack: v.last_ack.as_deref().map_or("none yet".into(), local),
    }
}

fn mood(s: Safety) -> &'static str {
    match s {
        Safety::Safe => "good",
        Safety::Comparing | Safety::Behind => "work",
        _ => "bad",
    }
}

fn state(s: Safety) -> &'static str {
    match s {
        Safety::Safe => "safe",
        Safety::Behind => "behind",
        Safety::Comparing => "comparing",
        Safety::Incomplete => "incomplete",
        Safety::Offline => "not connected",
        Safety::Off => "off",
        Safety::Error => "stopped",
    }
}
