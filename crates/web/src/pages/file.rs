//! One file (or directory) of the past: its versions, what it held, what a version changed, a form to bring it back.
//!
//! Content goes to the browser as text that is escaped, as an image of four kinds that are told by their first bytes, or as a
//! download; never as something that a browser would run.

use super::history::{Crumb, Place, crumbs};
use super::restore::{RestoreForm, form_part};
use super::{Errors, Frame, Page, html};
use crate::gate::Session;
use crate::server::Site;
use crate::words::{bytes, local};
use askama::Template;
use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use farwrite_control::{
    ClientError, ContentQuery, Entry, ListQuery, Listing, Moments, MomentsQuery, Version,
    VersionsQuery,
};
use http_body_util::BodyExt;
use similar::{ChangeTag, TextDiff};
use std::time::Duration;

/// Text that is shown.
const TEXT_BYTES: u64 = 256 << 10;
/// Images that are shown.
const IMAGE_BYTES: u64 = 16 << 20;
/// Text that is compared.
const DIFF_BYTES: u64 = 256 << 10;
/// Lines of a comparison that are shown.
const DIFF_LINES: usize = 400;
/// Time for a comparison; what is not compared by then is shown as wholly changed.
const DIFF_TIME: Duration = Duration::from_millis(500);
/// Versions that are listed.
const VERSIONS: u32 = 200;

struct Row {
    time: String,
    change: String,
    size: String,
    address: String,
    here: bool,
    gone: bool,
}

pub(crate) struct DiffLine {
    mark: &'static str,
    text: String,
}

#[derive(Template)]
#[template(path = "file.html")]
struct FilePage {
    frame: Frame,
    name: String,
    crumbs: Vec<Crumb>,
    moment: String,
    is_file: bool,
    size: String,
    download: String,
    image: Option<String>,
    text: Option<String>,
    cut: bool,
    no_preview: &'static str,
    diff: Option<Vec<DiffLine>>,
    /// What the differences are from.
    since: String,
    versions: Vec<Row>,
    restore: String,
}

/// `GET /history/file`.
pub(crate) async fn page(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Query(mut here): Query<Place>,
) -> Page {
    let control = &site.control;
    let query = MomentsQuery {
        vault: Some(here.vault.clone()),
    };
    let moments: Moments = control.query("history/moments", &query).await?;
    here.vault.clone_from(&moments.vault);
    let vault = Some(here.vault.clone());
    let listing: Listing = control
        .query(
            "history/list",
            &ListQuery {
                vault: vault.clone(),
                path: here.path.clone(),
                path_bytes: here.path_bytes.clone(),
                at: Some(here.at.clone()),
                limit: Some(1),
                ..ListQuery::default()
            },
        )
        .await?;
    let versions: Vec<Version> = control
        .query(
            "history/versions",
            &VersionsQuery {
                vault,
                path: here.path.clone(),
                path_bytes: here.path_bytes.clone(),
                limit: Some(VERSIONS),
            },
        )
        .await?;
    let is_file = listing.kind == "file";
    // All that this page leads to is of the moment that it shows.
    let shown = Place {
        at: listing.moment.time.clone(),
        ..here.clone()
    };
    let current = versions
        .iter()
        .position(|v| v.moment.batch <= listing.moment.batch);
    let name = here.path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut page = FilePage {
        frame: Frame {
            title: name.clone(),
            ..Frame::new("History")
        },
        name,
        crumbs: crumbs(&here, &moments.directories),
        moment: format!("As of {}", local(&listing.moment.time)),
        is_file,
        size: listing
            .entries
            .first()
            .and_then(|e| e.size)
            .filter(|_| is_file)
            .map(bytes)
            .unwrap_or_default(),
        download: shown.on("/history/download"),
        image: None,
        text: None,
        cut: false,
        no_preview: "This is neither text nor an image that can be shown here.",
        diff: None,
        since: String::new(),
        versions: versions
            .iter()
            .enumerate()
            .map(|(i, v)| row(&shown, v, Some(i) == current))
            .collect(),
        restore: form_part(&RestoreForm::of(&shown), &session, Errors::default(), ""),
    };
    if is_file {
        // A write is a truncation first: an empty version between two is no one's draft.
        let text = |v: &&Version| v.kind.as_deref() == Some("file") && v.size != Some(0);
        let before = current.and_then(|i| versions[i + 1..].iter().find(text));
        page.since = before.map_or(String::new(), |v| local(&v.moment.time));
        fill(&site, &shown, before, &mut page).await?;
    }
    Ok(html(&page).into_response())
}

fn row(here: &Place, v: &Version, shown: bool) -> Row {
    let new = match v.bytes_new {
        0 => String::new(),
        n => format!(" +{}", bytes(n)),
    };
    Row {
        time: local(&v.moment.time),
        change: format!("{}{new}", v.change.replace('-', " ")),
        size: v.size.map(bytes).unwrap_or_default(),
        address: here.at("/history/file", &v.moment.time),
        here: shown,
        gone: v.kind.is_none(),
    }
}

async fn fill(
    site: &Site,
    shown: &Place,
    before: Option<&Version>,
    page: &mut FilePage,
) -> Result<(), ClientError> {
    let start = beginning(site, shown, TEXT_BYTES).await?;
    if image_kind(&start.bytes).is_some() {
        match start.size <= IMAGE_BYTES {
            true => page.image = Some(shown.on("/history/image")),
            false => page.no_preview = "This image is too large to be shown here.",
        }
        return Ok(());
    }
    let Some(text) = as_text(&start.bytes) else {
        return Ok(());
    };
    page.cut = start.size > TEXT_BYTES;
    if let Some(before) = before.filter(|_| start.size <= DIFF_BYTES) {
        let place = Place {
            at: before.moment.time.clone(),
            ..shown.clone()
        };
        let old = beginning(site, &place, DIFF_BYTES).await?;
        if old.size <= DIFF_BYTES
            && let Some(old) = as_text(&old.bytes)
        {
            page.diff = differences(&old, &text);
        }
    }
    page.text = Some(text);
    Ok(())
}

/// Lines that differ, with some around them; `None` if none do.
fn differences(old: &str, new: &str) -> Option<Vec<DiffLine>> {
    let diff = TextDiff::configure()
        .timeout(DIFF_TIME)
        .diff_lines(old, new);
    let mut lines = Vec::new();
    for group in diff.grouped_ops(3) {
        if !lines.is_empty() {
            lines.push(DiffLine {
                mark: "…",
                text: String::new(),
            });
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            if lines.len() >= DIFF_LINES {
                lines.push(DiffLine {
                    mark: "…",
                    text: "and more".into(),
                });
                return Some(lines);
            }
            lines.push(DiffLine {
                mark: match change.tag() {
                    ChangeTag::Insert => "+",
                    ChangeTag::Delete => "-",
                    ChangeTag::Equal => " ",
                },
                text: change.value().trim_end_matches(['\n', '\r']).to_owned(),
            });
        }
    }
    (!lines.is_empty()).then_some(lines)
}

/// The first bytes of a file.
struct Start {
    bytes: Vec<u8>,
    size: u64,
}

fn content_query(place: &Place) -> ContentQuery {
    ContentQuery {
        vault: Some(place.vault.clone()),
        path: place.path.clone(),
        path_bytes: place.path_bytes.clone(),
        at: Some(place.at.clone()),
    }
}

async fn beginning(site: &Site, place: &Place, most: u64) -> Result<Start, ClientError> {
    let (length, mut body) = site
        .control
        .raw("history/content", &content_query(place))
        .await?;
    let mut all = Vec::new();
    while (all.len() as u64) < most {
        let Some(frame) = body.frame().await else {
            break;
        };
        let frame = frame.map_err(|e| ClientError::Io(std::io::Error::other(e)))?;
        if let Ok(data) = frame.into_data() {
            all.extend_from_slice(&data);
        }
    }
    all.truncate(most as usize);
    Ok(Start {
        size: length.unwrap_or(all.len() as u64),
        bytes: all,
    })
}

/// Text, if it is: UTF-8 without control characters but those of text. The last character may be cut.
fn as_text(bytes: &[u8]) -> Option<String> {
    let text = match std::str::from_utf8(bytes) {
        Ok(t) => t,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&bytes[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let odd = |c: char| c.is_control() && !['\n', '\r', '\t', '\u{c}', '\u{1b}'].contains(&c);
    (!text.contains(odd)).then(|| text.to_owned())
}

/// What kind of image begins so.
fn image_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some("image/webp"),
        _ => None,
    }
}

/// `GET /history/image`.
pub(crate) async fn image(State(site): State<Site>, Query(place): Query<Place>) -> Page {
    let whole = beginning(&site, &place, IMAGE_BYTES).await?;
    let Some(kind) = image_kind(&whole.bytes).filter(|_| whole.size <= IMAGE_BYTES) else {
        return Ok(StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response());
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; sandbox",
        ),
    ];
    Ok((headers, whole.bytes).into_response())
}

/// `GET /history/download`.
pub(crate) async fn download(State(site): State<Site>, Query(place): Query<Place>) -> Page {
    let (length, body) = site
        .control
        .raw("history/content", &content_query(&place))
        .await?;
    let name = place.path.rsplit('/').next().unwrap_or("file");
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, disposition(name)),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; sandbox".to_owned(),
        ),
    ];
    let mut response: Response = (headers, Body::new(body)).into_response();
    if let Some(n) = length {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, n.into());
    }
    Ok(response)
}

/// RFC 6266: the name in percent-encoded UTF-8, so that no character of it means anything in the header.
fn disposition(name: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let encoded: String = name
        .bytes()
        .map(|b| {
            if keep(b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    format!("attachment; filename*=UTF-8''{encoded}")
}

/// The bytes of an entry's path, as base64.
pub(crate) fn join_bytes(here: &Place, e: &Entry) -> String {
    let mut path = match here.path_bytes.as_deref().and_then(decode) {
        Some(bytes) => bytes,
        None => here.path.clone().into_bytes(),
    };
    path.push(b'/');
    match e.name_bytes.as_deref().and_then(decode) {
        Some(bytes) => path.extend(bytes),
        None => path.extend(e.name.as_bytes()),
    }
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, path)
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_and_four_kinds_of_image_are_shown() {
        assert_eq!(as_text("ä\n".as_bytes()).unwrap(), "ä\n");
        assert_eq!(as_text(&"aä".as_bytes()[..2]).unwrap(), "a");
        assert!(as_text(b"a\0b").is_none() && as_text(b"\xff\xfe").is_none());
        assert_eq!(image_kind(b"GIF89a..."), Some("image/gif"));
        assert_eq!(image_kind(b"<svg xmlns="), None);
    }

    #[test]
    fn a_name_means_nothing_in_the_header() {
        let d = disposition("a\"; filename=x\r\n.html");
        assert_eq!(
            d,
            "attachment; filename*=UTF-8''a%22%3B%20filename%3Dx%0D%0A.html"
        );
    }

    #[test]
    fn differences_are_lines() {
        let d = differences("a\nb\nc\n", "a\nB\nc\n").unwrap();
        let shown: Vec<_> = d.iter().map(|l| format!("{}{}", l.mark, l.text)).collect();
        assert_eq!(shown, [" a", "-b", "+B", " c"]);
        assert!(differences("a", "a").is_none());
    }
}
