//! The form that brings something back, and how far a restore is.

use super::history::Place;
use super::{Errors, Frame, Page, Posted, html, is_part};
use crate::gate::Session;
use crate::server::Site;
use crate::words::{bytes, grouped};
use askama::Template;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use farwrite_control::{ClientError, RestoreJob, RestoreRequest};
use serde::Deserialize;

/// What was typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RestoreForm {
    vault: String,
    path: String,
    path_bytes: String,
    at: String,
    /// "here" or "elsewhere".
    place: String,
    to: String,
    overwrite: bool,
    dry_run: bool,
}

impl RestoreForm {
    /// Nothing typed yet.
    pub(crate) fn of(place: &Place) -> RestoreForm {
        RestoreForm {
            vault: place.vault.clone(),
            path: place.path.clone(),
            path_bytes: place.path_bytes.clone().unwrap_or_default(),
            at: place.at.clone(),
            ..RestoreForm::default()
        }
    }

    fn parent(&self) -> &str {
        match self.path.rsplit_once('/') {
            Some(("", _)) | None => "/",
            Some((dir, _)) => dir,
        }
    }

    fn request(&self) -> RestoreRequest {
        let to = if self.place == "here" {
            self.parent()
        } else {
            self.to.trim()
        };
        RestoreRequest {
            vault: Some(self.vault.clone()),
            path: self.path.clone(),
            path_bytes: Some(self.path_bytes.clone()).filter(|b| !b.is_empty()),
            at: Some(self.at.clone()),
            to: to.into(),
            overwrite: self.overwrite,
            dry_run: self.dry_run,
        }
    }

    fn place(&self) -> Place {
        Place {
            vault: self.vault.clone(),
            path: self.path.clone(),
            path_bytes: Some(self.path_bytes.clone()).filter(|b| !b.is_empty()),
            at: self.at.clone(),
            after: String::new(),
        }
    }
}

#[derive(Template)]
#[template(path = "part_restore.html")]
struct FormPart<'a> {
    f: &'a RestoreForm,
    csrf: &'a str,
    parent: &'a str,
    errors: Errors,
    result: &'a str,
}

pub(crate) fn form_part(
    f: &RestoreForm,
    session: &Session,
    errors: Errors,
    result: &str,
) -> String {
    html(&FormPart {
        f,
        csrf: &session.csrf,
        parent: f.parent(),
        errors,
        result,
    })
    .0
}

#[derive(Template)]
#[template(path = "part_job.html")]
struct JobPart {
    job: Option<RestoreJob>,
    counts: String,
    /// What does the same in a shell.
    command: String,
    error: String,
}

fn job_part(job: RestoreJob) -> String {
    let plural = |n: u64, one: &str, many: &str| {
        format!("{} {}", grouped(n), if n == 1 { one } else { many })
    };
    let counts = format!(
        "{}, {}, {}",
        plural(job.files, "file", "files"),
        plural(job.directories, "directory", "directories"),
        bytes(job.bytes)
    );
    html(&JobPart {
        command: command(&job),
        job: Some(job),
        counts,
        error: String::new(),
    })
    .0
}

fn command(job: &RestoreJob) -> String {
    let quoted = |t: &str| format!("'{}'", t.replace('\'', r"'\''"));
    let (path, to) = (quoted(&job.path), quoted(&job.to));
    format!("farwrite restore {path} --at {} --to {to}", job.time)
}

#[derive(Template)]
#[template(path = "restore.html")]
struct RestorePage {
    frame: Frame,
    body: String,
    back: String,
}

fn whole(body: String, back: String, refresh: Option<u32>) -> impl IntoResponse {
    html(&RestorePage {
        frame: Frame {
            title: "Restore".into(),
            refresh,
            ..Frame::new("History")
        },
        body,
        back,
    })
}

/// `POST /history/restore`.
pub(crate) async fn begin(State(site): State<Site>, posted: Posted<RestoreForm>) -> Page {
    let Posted {
        form,
        session,
        part,
    } = posted;
    let back = form.place().on("/history/file");
    match site
        .control
        .post::<RestoreJob>("restore", &form.request())
        .await
    {
        Ok(job) => {
            let running = (job.state == "running").then_some(1);
            let id = job.id;
            let body = job_part(job);
            Ok(match (part, running) {
                (true, _) => axum::response::Html(body).into_response(),
                (false, Some(_)) => super::go(&format!("/history/restore/{id}")),
                (false, None) => whole(
                    form_part(&form, &session, Errors::default(), &body),
                    back,
                    None,
                )
                .into_response(),
            })
        }
        Err(ClientError::Failed(f)) => {
            let errors = Errors::of(&f);
            if part {
                let text = match f.field.as_deref() {
                    Some("overwrite") => {
                        format!("{}: tick “Replace what is there” to replace it", f.why)
                    }
                    Some("to") => format!("Directory: {}", f.why),
                    _ => f.why.clone(),
                };
                let body = html(&JobPart {
                    job: None,
                    counts: String::new(),
                    command: String::new(),
                    error: text,
                });
                // htmx shows an answer only if it is a success.
                return Ok(body.into_response());
            }
            let elsewhere = errors.elsewhere(&["to", "overwrite"]).to_owned();
            let result = html(&JobPart {
                job: None,
                counts: String::new(),
                command: String::new(),
                error: elsewhere,
            });
            let body = form_part(&form, &session, errors, &result.0);
            Ok((StatusCode::UNPROCESSABLE_ENTITY, whole(body, back, None)).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

/// `GET /history/restore/{id}`.
pub(crate) async fn progress(
    State(site): State<Site>,
    headers: HeaderMap,
    Path(id): Path<u64>,
) -> Page {
    let job: RestoreJob = site.control.get(&format!("restore/{id}")).await?;
    let refresh = (job.state == "running").then_some(1);
    let body = job_part(job);
    Ok(match is_part(&headers) {
        true => axum::response::Html(body).into_response(),
        false => whole(body, "/history".into(), refresh).into_response(),
    })
}
