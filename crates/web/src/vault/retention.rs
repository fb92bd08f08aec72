//! How long the history of a source is kept: a form, and what it would do.

use super::Page;
use super::source::{Shown, address, whole};
use crate::pages::fields::{self, Field};
use crate::pages::{Errors, Posted, go, html};
use crate::server::Site;
use crate::words::{bytes, grouped, local};
use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use farwrite_control::{ClientError, PrunePreview, Retention, RetentionPolicy};

const FIELDS: [(&str, &str, &str); 5] = [
    (
        "keep_all",
        "Every change is kept for",
        "Such as 30d, 8w, 12mo or 2y; empty: for ever, and nothing is pruned.",
    ),
    (
        "hourly",
        "Behind that, one moment of each hour for",
        "Empty: none.",
    ),
    ("daily", "One of each day for", "Empty: none."),
    ("weekly", "One of each week for", "Empty: none."),
    (
        "monthly",
        "One of each month for",
        "Such as 2y or forever; empty: none.",
    ),
];

/// The fields with what was typed.
pub(super) fn fields_part(p: &RetentionPolicy, errors: &Errors) -> String {
    let values = [&p.keep_all, &p.hourly, &p.daily, &p.weekly, &p.monthly];
    let all: Vec<Field> = FIELDS
        .into_iter()
        .zip(values)
        .map(|((name, label, hint), value)| Field {
            name,
            key: name,
            label,
            hint,
            value: value.clone(),
            ..Field::default()
        })
        .collect();
    fields::part(&all, errors)
}

/// What is wrong, if it is about none of the fields.
pub(super) fn elsewhere(errors: &Errors) -> String {
    let names: Vec<&str> = FIELDS.iter().map(|(name, _, _)| *name).collect();
    errors.elsewhere(&names).to_owned()
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct RetentionForm {
    keep_all: String,
    hourly: String,
    daily: String,
    weekly: String,
    monthly: String,
}

impl RetentionForm {
    fn policy(&self) -> RetentionPolicy {
        RetentionPolicy {
            keep_all: self.keep_all.clone(),
            hourly: self.hourly.clone(),
            daily: self.daily.clone(),
            weekly: self.weekly.clone(),
            monthly: self.monthly.clone(),
        }
    }
}

/// `POST /source/{name}/retention`.
pub(super) async fn set(
    State(site): State<Site>,
    Path(name): Path<String>,
    posted: Posted<RetentionForm>,
) -> Page {
    let name = address(&name);
    let policy = posted.form.policy();
    let path = format!("sources/{name}/retention");
    match site.control.post::<Retention>(&path, &policy).await {
        Ok(_) => Ok(go(&format!("/source/{name}?done=saved"))),
        Err(ClientError::Failed(f)) => {
            let shown = Shown {
                typed: Some(policy),
                errors: Errors::of(&f),
                ..Shown::default()
            };
            let page = whole(&site, &posted.session, &name, shown).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

#[derive(Template)]
#[template(path = "part_vault_preview.html")]
struct PreviewPart {
    found: Option<PrunePreview>,
    kept: String,
    dropped: String,
    freed: String,
    left: String,
    oldest: String,
    error: String,
}

fn preview_part(found: Option<PrunePreview>, error: String) -> String {
    let p = found.clone().unwrap_or_default();
    html(&PreviewPart {
        found,
        kept: grouped(p.moments_kept),
        dropped: grouped(p.moments_dropped),
        freed: bytes(p.bytes_freed),
        left: match p.bytes_left {
            0 => String::new(),
            n => bytes(n),
        },
        oldest: p.oldest.as_deref().map_or(String::new(), local),
        error,
    })
    .0
}

/// `POST /source/{name}/preview`.
pub(super) async fn preview(
    State(site): State<Site>,
    Path(name): Path<String>,
    posted: Posted<RetentionForm>,
) -> Page {
    let name = address(&name);
    let policy = posted.form.policy();
    let path = format!("sources/{name}/prune/preview");
    let (part, errors) = match site.control.post::<PrunePreview>(&path, &policy).await {
        Ok(found) => (preview_part(Some(found), String::new()), Errors::default()),
        Err(ClientError::Failed(f)) => {
            let field = FIELDS
                .iter()
                .find(|(n, _, _)| Some(*n) == f.field.as_deref());
            let text = match field {
                Some((name, _, _)) if posted.part => format!("{name}: {}", f.why),
                Some(_) => String::new(),
                None => f.why.clone(),
            };
            (preview_part(None, text), Errors::of(&f))
        }
        Err(e) => return Err(e.into()),
    };
    if posted.part {
        return Ok(Html(part).into_response());
    }
    let shown = Shown {
        typed: Some(policy),
        errors,
        preview: part,
        ..Shown::default()
    };
    let page = whole(&site, &posted.session, &name, shown).await?;
    Ok(page.into_response())
}
