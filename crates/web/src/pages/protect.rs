//! What is protected, and forms to protect more or less.

use super::{Errors, Frame, Page, Posted, html};
use crate::gate::Session;
use crate::server::Site;
use crate::words::grouped;
use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use farwrite_control::{
    ClientError, ExcludePreview, PreviewExcludes, Protect, Settings, Unprotect,
};
use serde::Deserialize;

/// Fields at which an error is shown.
const FIELDS: &[&str] = &["directory", "to", "vault_name", "exclude"];

/// What was typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProtectForm {
    directory: String,
    known: String,
    invite: String,
    vault_name: String,
    exclude: String,
    #[serde(skip)]
    typed: bool,
}

impl ProtectForm {
    fn patterns(&self) -> Vec<String> {
        self.exclude.lines().map(str::to_owned).collect()
    }

    fn request(&self) -> Protect {
        let invite = self.invite.trim();
        Protect {
            directory: self.directory.clone(),
            to: if invite.is_empty() {
                self.known.clone()
            } else {
                invite.into()
            },
            exclude: self.patterns(),
            vault_name: Some(self.vault_name.clone())
                .filter(|n| !n.trim().is_empty() && !invite.is_empty()),
        }
    }
}

#[derive(Template)]
#[template(path = "protect.html")]
struct ProtectPage<'a> {
    frame: Frame,
    s: Settings,
    f: ProtectForm,
    csrf: &'a str,
    errors: Errors,
    remove_error: String,
    notice: String,
    preview: String,
}

async fn show(
    site: &Site,
    session: &Session,
    fill: impl FnOnce(&mut ProtectPage<'_>),
) -> Result<String, ClientError> {
    let mut page = ProtectPage {
        frame: Frame::new("Protect"),
        s: site.control.get("settings").await?,
        f: ProtectForm::default(),
        csrf: &session.csrf,
        errors: Errors::default(),
        remove_error: String::new(),
        notice: String::new(),
        preview: String::new(),
    };
    fill(&mut page);
    Ok(html(&page).0)
}

#[derive(Deserialize)]
pub(crate) struct Told {
    done: Option<String>,
}

/// `GET /protect`.
pub(crate) async fn page(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Query(told): Query<Told>,
) -> Page {
    let text = show(&site, &session, |page| {
        page.notice = match told.done.as_deref() {
            Some("added") => {
                "It is protected now. The first backup is under way: see the overview.".into()
            }
            Some("removed") => {
                "It is protected no more. What the vaults have of it stays there.".into()
            }
            _ => String::new(),
        };
    })
    .await?;
    Ok(axum::response::Html(text).into_response())
}

/// `POST /protect`.
pub(crate) async fn add(State(site): State<Site>, posted: Posted<ProtectForm>) -> Page {
    let mut form = posted.form;
    form.typed = true;
    match site
        .control
        .post::<Settings>("protect", &form.request())
        .await
    {
        Ok(_) => Ok(super::go("/protect?done=added")),
        Err(ClientError::Failed(f)) => {
            let text = show(&site, &posted.session, |page| {
                page.f = form;
                page.errors = Errors::of(&f);
            })
            .await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, axum::response::Html(text)).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

#[derive(Template)]
#[template(path = "part_preview.html")]
struct PreviewPart {
    found: Option<ExcludePreview>,
    matching: String,
    looked_at: String,
    error: String,
}

/// `POST /protect/preview`.
pub(crate) async fn preview(State(site): State<Site>, posted: Posted<ProtectForm>) -> Page {
    let mut form = posted.form;
    form.typed = true;
    let request = PreviewExcludes {
        directory: form.directory.clone(),
        exclude: form.patterns(),
    };
    let (found, errors) = match site
        .control
        .post::<ExcludePreview>("excludes/preview", &request)
        .await
    {
        Ok(found) => (Some(found), Errors::default()),
        Err(ClientError::Failed(f)) => (None, Errors::of(&f)),
        Err(e) => return Err(e.into()),
    };
    let count = |f: fn(&ExcludePreview) -> u64| grouped(found.as_ref().map_or(0, f));
    let part = html(&PreviewPart {
        matching: count(|p| p.matching),
        looked_at: count(|p| p.looked_at),
        found,
        error: errors.elsewhere(&[]).to_owned(),
    });
    if posted.part {
        return Ok(part.into_response());
    }
    let text = show(&site, &posted.session, |page| {
        page.f = form;
        page.errors = errors;
        page.preview = part.0;
    })
    .await?;
    Ok(axum::response::Html(text).into_response())
}

/// `POST /protect/remove`.
pub(crate) async fn remove(State(site): State<Site>, posted: Posted<RemoveForm>) -> Page {
    let request = Unprotect {
        directory: posted.form.directory,
        vault: None,
    };
    match site.control.post::<Settings>("unprotect", &request).await {
        Ok(_) => Ok(super::go("/protect?done=removed")),
        Err(ClientError::Failed(f)) => {
            let text = show(&site, &posted.session, |page| {
                page.remove_error = format!("{}: {}", request.directory, f.why);
            })
            .await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, axum::response::Html(text)).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

#[derive(Deserialize)]
pub(crate) struct RemoveForm {
    directory: String,
}
