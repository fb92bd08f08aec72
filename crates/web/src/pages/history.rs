//! The tree as it was: a moment is picked on a timeline, then one walks the directories of that moment.

use super::{Errors, Frame, Page, Posted, Trouble, address, html};
use crate::gate::Session;
use crate::server::Site;
use crate::words::{bytes, grouped, local};
use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use farwrite_control::{
    ClientError, Entry, ListQuery, Listing, MarkedMoment, Moments, MomentsQuery, SetMark, Settings,
    Timeline, TimelineQuery,
};
use serde::Deserialize;

/// Entries on a page.
const PAGE: u32 = 500;
/// Fields at which an error is shown.
const FIELDS: &[&str] = &["at"];
/// Marks that are shown, the newest.
const MARKS: usize = 100;
/// Bars of the timeline.
const BARS: u32 = 120;

/// Where one is in the history.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Place {
    pub(crate) vault: String,
    pub(crate) path: String,
    pub(crate) path_bytes: Option<String>,
    pub(crate) at: String,
    /// Continue behind this name.
    pub(crate) after: String,
}

impl Place {
    fn bytes(&self) -> &str {
        self.path_bytes.as_deref().unwrap_or_default()
    }

    /// The same path at the same moment, on another page.
    pub(crate) fn on(&self, page: &str) -> String {
        let all = [
            ("vault", &*self.vault),
            ("path", &self.path),
            ("path_bytes", self.bytes()),
            ("at", &self.at),
        ];
        address(page, &all)
    }

    /// The same path at another moment.
    pub(crate) fn at(&self, page: &str, at: &str) -> String {
        let all = [
            ("vault", &*self.vault),
            ("path", &self.path),
            ("path_bytes", self.bytes()),
            ("at", at),
        ];
        address(page, &all)
    }
}

/// One step of the way to a path.
pub(crate) struct Crumb {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) here: bool,
}

/// The way from the protected directory to the path. A path whose names text cannot hold has only its end.
pub(crate) fn crumbs(here: &Place, directories: &[String]) -> Vec<Crumb> {
    let link = |path: &str, name: &str| {
        let place = Place {
            path: path.into(),
            path_bytes: None,
            ..here.clone()
        };
        Crumb {
            name: name.into(),
            address: place.on("/history"),
            here: path == here.path,
        }
    };
    let mut all = vec![Crumb {
        name: here.vault.clone(),
        address: address("/history", &[("vault", &here.vault), ("at", &here.at)]),
        here: here.path.is_empty(),
    }];
    if here.path.is_empty() {
        return all;
    }
    let inside = |d: &&String| {
        here.path == **d
            || here
                .path
                .strip_prefix(d.as_str())
                .is_some_and(|r| r.starts_with('/'))
    };
    let top = directories.iter().find(inside).map_or("", String::as_str);
    if !top.is_empty() {
        all.push(link(top, top));
    }
    let rest = here.path.strip_prefix(top).unwrap_or(&here.path);
    let mut path = top.to_owned();
    for name in rest.split('/').filter(|n| !n.is_empty()) {
        path = format!("{path}/{name}");
        all.push(link(&path, name));
    }
    all
}

struct Bar {
    x: String,
    y: String,
    width: String,
    height: String,
    words: String,
}

struct Line {
    bars: Vec<Bar>,
    words: String,
    from: String,
    to: String,
    from_ms: i64,
    to_ms: i64,
    /// Of 1000.
    at: i64,
    shown: String,
}

struct Row {
    name: String,
    note: String,
    address: String,
    size: String,
    mtime: String,
    mode: String,
}

struct Tree {
    moment: String,
    clean: &'static str,
    crumbs: Vec<Crumb>,
    entries: Vec<Row>,
    next: Option<String>,
    can_restore: bool,
    restore: String,
}

#[derive(Template)]
#[template(path = "history.html")]
struct History<'a> {
    frame: Frame,
    here: Place,
    vaults: Vec<String>,
    timeline: Option<Line>,
    shortcuts: Vec<(&'static str, String)>,
    /// Names, addresses and times; `None`: the vault knows no marks.
    marks: Option<Vec<Marked>>,
    csrf: &'a str,
    mark: String,
    mark_error: String,
    listing: Option<Tree>,
    errors: Errors,
}

struct Marked {
    name: String,
    address: String,
    time: String,
    here: bool,
}

/// What was typed to name a moment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MarkForm {
    mark: String,
    vault: String,
    path: String,
    path_bytes: String,
    at: String,
}

/// `POST /history/mark`.
pub(crate) async fn mark(State(site): State<Site>, posted: Posted<MarkForm>) -> Page {
    let form = posted.form;
    let here = Place {
        vault: form.vault.clone(),
        path: form.path,
        path_bytes: Some(form.path_bytes).filter(|b| !b.is_empty()),
        at: form.at.trim().to_owned(),
        after: String::new(),
    };
    let request = SetMark {
        vault: Some(form.vault),
        name: form.mark.clone(),
        at: Some(here.at.clone()).filter(|t| !t.is_empty()),
    };
    match site
        .control
        .post::<MarkedMoment>("history/marks", &request)
        .await
    {
        Ok(m) => {
            let at = format!("mark:{}", m.name);
            Ok(super::go(&here.at("/history", &at)))
        }
        Err(ClientError::Failed(f)) => {
            let typed = (form.mark, f.why);
            let (_, page) = show(&site, &posted.session, here, typed).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

/// `GET /history`.
pub(crate) async fn tree(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Query(here): Query<Place>,
) -> Page {
    let (code, page) = show(&site, &session, here, Default::default()).await?;
    Ok((code, page).into_response())
}

/// The page; `typed` is a mark and what is wrong with it.
async fn show(
    site: &Site,
    session: &Session,
    mut here: Place,
    typed: (String, String),
) -> Result<(StatusCode, Html<String>), Trouble> {
    let settings: Settings = site.control.get("settings").await?;
    let vaults: Vec<String> = settings.vaults.into_iter().map(|v| v.name).collect();
    if here.vault.is_empty() {
        here.vault = vaults.first().cloned().unwrap_or_default();
    }
    here.at = here.at.trim().to_owned();
    let mut page = History {
        frame: Frame::new("History"),
        shortcuts: shortcuts(&here),
        marks: None,
        csrf: &session.csrf,
        mark: typed.0,
        mark_error: typed.1,
        vaults,
        timeline: None,
        listing: None,
        errors: Errors::default(),
        here: here.clone(),
    };
    match fill(site, &here, &mut page).await {
        Ok(()) => Ok((StatusCode::OK, html(&page))),
        Err(ClientError::Failed(f)) => {
            page.errors = Errors::of(&f);
            let code = StatusCode::from_u16(f.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            Ok((code, html(&page)))
        }
        Err(e) => Err(e.into()),
    }
}

fn shortcuts(here: &Place) -> Vec<(&'static str, String)> {
    ["now", "10 minutes ago", "1 hour ago", "yesterday"]
        .into_iter()
        .map(|t| (t, here.at("/history", if t == "now" { "" } else { t })))
        .collect()
}

/// The marks as links to their moments.
fn marked(here: &Place, marks: &[MarkedMoment]) -> Vec<Marked> {
    let one = |m: &MarkedMoment| {
        let at = format!("mark:{}", m.name);
        Marked {
            name: m.name.clone(),
            time: local(&m.moment.time),
            here: here.at == at,
            address: here.at("/history", &at),
        }
    };
    marks.iter().rev().take(MARKS).map(one).collect()
}

async fn fill(site: &Site, here: &Place, page: &mut History<'_>) -> Result<(), ClientError> {
    let vault = Some(here.vault.clone());
    let query = MomentsQuery {
        vault: vault.clone(),
    };
    let moments: Moments = site.control.query("history/moments", &query).await?;
    if moments.first.is_none() {
        return Ok(());
    }
    // An older vault knows no marks: the rest works without.
    let marks = site
        .control
        .query::<Vec<MarkedMoment>>("history/marks", &query);
    page.marks = marks.await.ok().map(|m| marked(here, &m));
    let query = TimelineQuery {
        vault: vault.clone(),
        buckets: Some(BARS),
        ..TimelineQuery::default()
    };
    // An older vault has no timeline: the rest works without.
    let timeline: Option<Timeline> = site.control.query("history/timeline", &query).await.ok();
    if here.path.is_empty() {
        page.timeline = timeline.map(|t| line(&t, None));
        page.listing = Some(tops(here, &moments));
        return Ok(());
    }
    let query = ListQuery {
        vault,
        path: here.path.clone(),
        path_bytes: here.path_bytes.clone(),
        at: Some(here.at.clone()),
        after: Some(here.after.clone()),
        limit: Some(PAGE),
    };
    let listed = site.control.query::<Listing>("history/list", &query).await;
    let shown = listed.as_ref().ok().filter(|_| !here.at.is_empty());
    page.timeline = timeline.map(|t| line(&t, shown.map(|l| l.moment.time.as_str())));
    page.listing = Some(listing(here, &moments, listed?));
    Ok(())
}

/// The protected directories, where no path is given.
fn tops(here: &Place, moments: &Moments) -> Tree {
    let row = |d: &String| {
        let place = Place {
            path: d.clone(),
            ..here.clone()
        };
        Row {
            name: d.clone(),
            note: "/".into(),
            address: place.on("/history"),
            size: String::new(),
            mtime: String::new(),
            mode: String::new(),
        }
    };
    Tree {
        moment: "Protected directories".into(),
        clean: "",
        crumbs: crumbs(here, &moments.directories),
        entries: moments.directories.iter().map(row).collect(),
        next: None,
        can_restore: false,
        restore: String::new(),
    }
}

fn listing(here: &Place, moments: &Moments, l: Listing) -> Tree {
    let next = l.next.as_ref().map(|after| {
        let all = [
            ("vault", &*here.vault),
            ("path", &here.path),
            ("path_bytes", here.bytes()),
            // The same moment on every page, even if there is a newer one by then.
            ("at", &l.moment.time),
            ("after", after),
        ];
        address("/history", &all)
    });
    Tree {
        moment: format!("As of {}", local(&l.moment.time)),
        clean: match l.moment.clean {
            true => "A clean point: exactly the tree as it was.",
            false => "Not a clean point: changes were on their way.",
        },
        crumbs: crumbs(here, &moments.directories),
        entries: l.entries.iter().map(|e| row(here, e)).collect(),
        next,
        can_restore: true,
        restore: here.on("/history/file"),
    }
}

fn row(here: &Place, e: &Entry) -> Row {
    let path = format!("{}/{}", here.path.trim_end_matches('/'), e.name);
    // A path with bytes that are no text goes on as bytes.
    let path_bytes = match (&e.name_bytes, &here.path_bytes) {
        (None, None) => None,
        _ => Some(super::file::join_bytes(here, e)),
    };
    let place = Place {
        path,
        path_bytes,
        ..here.clone()
    };
    let (page, note) = match e.kind.as_str() {
        "directory" => ("/history", "/".to_owned()),
        "symlink" => (
            "/history/file",
            format!(" → {}", e.target.as_deref().unwrap_or_default()),
        ),
        "file" => ("/history/file", String::new()),
        kind => ("/history/file", format!(" ({kind})")),
    };
    Row {
        name: e.name.clone(),
        note,
        address: place.on(page),
        size: e.size.map(bytes).unwrap_or_default(),
        mtime: local(&e.mtime),
        mode: e.mode.clone(),
    }
}

fn line(t: &Timeline, at: Option<&str>) -> Line {
    let ms = |text: &str| {
        text.parse::<jiff::Timestamp>()
            .map_or(0, |t| t.as_millisecond())
    };
    let (from_ms, to_ms) = (ms(&t.from), ms(&t.to).max(ms(&t.from) + 1));
    let most = t
        .buckets
        .iter()
        .map(|b| b.changes)
        .max()
        .unwrap_or(0)
        .max(1);
    let width = 1000.0 / t.buckets.len().max(1) as f64;
    let bar = |(i, b): (usize, &farwrite_control::Bucket)| {
        // The root makes a lone change visible beside a first backup.
        let height = (b.changes as f64 / most as f64).sqrt() * 56.0;
        let begin = from_ms + (t.bucket_ms as i64) * i as i64;
        let time = jiff::Timestamp::from_millisecond(begin)
            .map_or(String::new(), |t| local(&t.to_string()));
        Bar {
            x: format!("{:.2}", i as f64 * width),
            y: format!("{:.2}", 60.0 - height),
            width: format!("{:.2}", (width - 0.6).max(0.5)),
            height: format!("{height:.2}"),
            words: format!("{time}: {} changes, {}", grouped(b.changes), bytes(b.bytes)),
        }
    };
    let place = at.map_or(1000, |a| {
        ((ms(a) - from_ms) * 1000 / (to_ms - from_ms)).clamp(0, 1000)
    });
    let total: u64 = t.buckets.iter().map(|b| b.changes).sum();
    Line {
        bars: t
            .buckets
            .iter()
            .enumerate()
            .filter(|(_, b)| b.changes > 0)
            .map(bar)
            .collect(),
        words: format!(
            "{} changes from {} to {}",
            grouped(total),
            local(&t.from),
            local(&t.to)
        ),
        from: local(&t.from),
        to: local(&t.to),
        from_ms,
        to_ms,
        at: place,
        shown: at.map_or("now".into(), local),
    }
}
