//! One source: what it takes and how that has grown, verification.

use super::retention::{elsewhere, fields_part};
use super::sources::{behind, growth, lag, space, state, verified};
use super::{Page, frame};
use crate::gate::Session;
use crate::live::{stream, tell};
use crate::pages::{Errors, Frame, Posted, go, html};
use crate::server::Site;
use crate::words::{ago, bytes, grouped, local};
use askama::Template;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{Html, IntoResponse, Response};
use farwrite_control::{
    ClientError, Done, Retention, RetentionPolicy, Space, SpaceSample, VaultSource,
    VaultSourceDetail,
};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// How often an open page is brought up to date.
const EVERY: Duration = Duration::from_millis(500);
/// Points of the chart.
const POINTS: usize = 200;

#[derive(Template)]
#[template(path = "vault_source.html")]
struct SourcePage<'a> {
    frame: Frame,
    name: String,
    state: String,
    verify: String,
    space: String,
    notice: &'static str,
    retention: &'a Retention,
    last_prune: String,
    marks: Vec<(String, String)>,
    fields: String,
    elsewhere: String,
    preview: String,
    csrf: &'a str,
}

/// What is shown besides what is.
#[derive(Default)]
pub(super) struct Shown {
    /// What was typed about retention.
    pub(super) typed: Option<RetentionPolicy>,
    pub(super) errors: Errors,
    /// What pruning would do.
    pub(super) preview: String,
    pub(super) notice: &'static str,
}

/// A name as a part of an address.
pub(super) fn address(name: &str) -> String {
    // Names are from a narrow alphabet; whatever else comes here is refused by the daemon.
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    let kept: Vec<u8> = name.bytes().filter(plain).collect();
    String::from_utf8_lossy(&kept).into_owned()
}

/// `GET /source/{name}`.
pub(super) async fn page(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
    Query(told): Query<Told>,
) -> Page {
    let shown = Shown {
        notice: match told.done {
            Some(_) => "Saved. It takes effect at the next daily prune.",
            None => "",
        },
        ..Shown::default()
    };
    Ok(whole(&site, &session, &name, shown).await?.into_response())
}

#[derive(Deserialize)]
pub(super) struct Told {
    done: Option<String>,
}

/// The page.
pub(super) async fn whole(
    site: &Site,
    session: &Session,
    name: &str,
    shown: Shown,
) -> Result<Html<String>, ClientError> {
    let detail = get(site, name).await?;
    let kept = &detail.retention;
    let mut frame = frame("Sources");
    frame.title.clone_from(&detail.source.name);
    Ok(html(&SourcePage {
        frame,
        name: detail.source.name.clone(),
        state: state_part(&detail, session),
        verify: verify_part(&detail.source, session),
        space: space_part(&detail),
        notice: shown.notice,
        retention: kept,
        last_prune: detail.last_prune.clone().unwrap_or_else(|| "never".into()),
        marks: detail
            .marks
            .iter()
            .map(|m| {
                (
                    m.name.clone(),
                    format!("{}, by the {}", local(&m.moment.time), m.by),
                )
            })
            .collect(),
        fields: fields_part(shown.typed.as_ref().unwrap_or(&kept.policy), &shown.errors),
        elsewhere: elsewhere(&shown.errors),
        preview: shown.preview,
        csrf: &session.csrf,
    }))
}

async fn get(site: &Site, name: &str) -> Result<VaultSourceDetail, ClientError> {
    site.control
        .get(&format!("sources/{}", address(name)))
        .await
}

/// `GET /live/source/{name}`.
pub(super) async fn live(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
) -> Response {
    let mine = site.clone();
    stream(&site, move |sender| async move {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Ok(detail) = get(&mine, &name).await else {
                return;
            };
            let parts = json!({
                "state": state_part(&detail, &session),
                "verify": verify_part(&detail.source, &session),
                "space": space_part(&detail),
            });
            if !tell(&sender, &parts).await {
                return;
            }
        }
    })
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

/// `POST /source/{name}/verify`.
pub(super) async fn verify(
    State(site): State<Site>,
    Path(name): Path<String>,
    _posted: Posted<Nothing>,
) -> Page {
    ask(&site, &name, "verify").await
}

/// `POST /source/{name}/release`.
pub(super) async fn release(
    State(site): State<Site>,
    Path(name): Path<String>,
    _posted: Posted<Nothing>,
) -> Page {
    ask(&site, &name, "release").await
}

/// Has the daemon do something with a source, and shows that source again.
async fn ask(site: &Site, name: &str, what: &str) -> Page {
    let name = address(name);
    let path = format!("sources/{name}/{what}");
    let _: VaultSource = site.control.post(&path, &Done {}).await?;
    Ok(go(&format!("/source/{name}")))
}

#[derive(Template)]
#[template(path = "part_vault_state.html")]
struct StatePart<'a> {
    s: &'a VaultSource,
    mood: &'static str,
    state: &'static str,
    seen: String,
    last: String,
    lag: String,
    behind: String,
    versions: String,
    batches: String,
    directory: &'a str,
    csrf: &'a str,
    braked: String,
}

fn state_part(d: &VaultSourceDetail, session: &Session) -> String {
    let s = &d.source;
    let (mood, state) = state(s);
    let when = |t: &String| format!("{} ({})", local(t), ago(t));
    html(&StatePart {
        s,
        mood,
        state,
        seen: match s.connected {
            true => "now".into(),
            false => s.last_seen.as_ref().map_or("never".into(), when),
        },
        last: s.last_backup.as_ref().map_or("never".into(), when),
        lag: lag(s),
        behind: behind(s),
        versions: grouped(s.versions),
        batches: grouped(s.batches),
        directory: &d.directory,
        csrf: &session.csrf,
        braked: s.brake.as_ref().map_or(String::new(), |b| local(&b.since)),
    })
    .0
}

#[derive(Template)]
#[template(path = "part_vault_verify.html")]
struct VerifyPart<'a> {
    s: &'a VaultSource,
    csrf: &'a str,
    mood: &'static str,
    words: String,
    read: String,
}

fn verify_part(s: &VaultSource, session: &Session) -> String {
    let (mood, words) = verified(s);
    let read = match (&s.verifying, &s.verified) {
        (Some(v), _) => format!("{} of {} read", bytes(v.bytes), bytes(v.of_bytes)),
        (None, Some(v)) => format!("{} read, ended {}", bytes(v.bytes), local(&v.ended)),
        (None, None) => String::new(),
    };
    html(&VerifyPart {
        s,
        csrf: &session.csrf,
        mood,
        words,
        read,
    })
    .0
}

#[derive(Template)]
#[template(path = "part_vault_space.html")]
struct SpacePart {
    total: String,
    log: String,
    catalog: String,
    mirror: String,
    growth: String,
    /// Of the chart, if there is something to show.
    line: Option<String>,
    words: String,
    from: String,
    most: String,
}

fn space_part(d: &VaultSourceDetail) -> String {
    let s = &d.source;
    let (line, most) = line(&d.samples).map_or((None, 0), |(l, m)| (Some(l), m));
    let from = d
        .samples
        .first()
        .map(|s| time(s.time_ms))
        .unwrap_or_default();
    html(&SpacePart {
        total: bytes(space(s)),
        log: bytes(s.space.log_bytes),
        catalog: bytes(s.space.catalog_bytes),
        mirror: match (s.mirror, s.space.mirror_bytes) {
            (false, _) => "none".into(),
            (true, None) => "being counted".into(),
            (true, Some(n)) => bytes(n),
        },
        growth: growth(s.growth_per_day),
        line,
        words: format!(
            "Space taken since {from}: at most {}, now {}",
            bytes(most),
            bytes(space(s))
        ),
        from,
        most: bytes(most),
    })
    .0
}

fn time(ms: u64) -> String {
    let t = jiff::Timestamp::from_millisecond(ms as i64);
    t.map_or(String::new(), |t| local(&t.to_string()))
}

fn total(s: &Space) -> u64 {
    s.log_bytes + s.catalog_bytes + s.mirror_bytes.unwrap_or(0)
}

/// The path of the chart in a field of 1000 by 60, and the most that it shows.
fn line(samples: &[SpaceSample]) -> Option<(String, u64)> {
    let (first, last) = (samples.first()?, samples.last()?);
    if first.time_ms >= last.time_ms {
        return None;
    }
    let most = samples.iter().map(|s| total(&s.space)).max()?.max(1);
    let over = (last.time_ms - first.time_ms) as f64;
    let step = samples.len().div_ceil(POINTS);
    let ends = |i: usize| i == 0 || i + 1 == samples.len() || i.is_multiple_of(step);
    let points = samples
        .iter()
        .enumerate()
        .filter(|(i, _)| ends(*i))
        .map(|(_, s)| {
            let x = (s.time_ms - first.time_ms) as f64 / over * 1000.0;
            let y = 57.0 - total(&s.space) as f64 / most as f64 * 52.0;
            format!("{x:.1} {y:.1}")
        });
    let points: Vec<String> = points.collect();
    Some((format!("M0 60L{}L1000 60Z", points.join("L")), most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_needs_two_times_and_stays_small() {
        let sample = |time_ms| SpaceSample {
            time_ms,
            space: Space {
                log_bytes: time_ms,
                ..Space::default()
            },
        };
        assert!(line(&[]).is_none() && line(&[sample(5)]).is_none());
        let many: Vec<_> = (0..1000).map(sample).collect();
        let (path, most) = line(&many).unwrap();
        assert_eq!(most, 999);
        assert!(path.matches('L').count() <= POINTS + 3, "{path}");
        assert!(
            path.starts_with("M0 60L0.0 57.0L") && path.ends_with("L1000.0 5.0L1000 60Z"),
            "{path}"
        );
    }
}
