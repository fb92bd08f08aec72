//! Alerts of the vault: those that are on, when there are any, and where they go.

use super::{Page, frame};
use crate::gate::Session;
use crate::pages::fields::{self, CHANNEL_FIELDS, ChannelsForm, Field};
use crate::pages::settings::tested_part;
use crate::pages::{Errors, Frame, Posted, go, html};
use crate::server::Site;
use crate::words::{ago, local};
use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use farwrite_control::{ClientError, VaultSettings, VaultSettingsChange, VaultStatus};
use serde::Deserialize;

/// As the configuration has them.
const CHANNEL_KEYS: [&str; 8] = [
    "webhook",
    "webhook_token",
    "mail.server",
    "mail.security",
    "mail.user",
    "mail.password",
    "mail.from",
    "mail.to",
];

/// What was typed.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AlertsForm {
    alert_silent: String,
    alert_disk: String,
    #[serde(flatten)]
    channels: ChannelsForm,
}

struct On {
    about: String,
    message: String,
    since: String,
}

#[derive(Template)]
#[template(path = "vault_alerts.html")]
struct AlertsPage<'a> {
    frame: Frame,
    s: VaultSettings,
    on: Vec<On>,
    fields: String,
    csrf: &'a str,
    elsewhere: String,
    notice: &'a str,
    tested: String,
}

fn all_fields(f: &AlertsForm, s: &VaultSettings) -> Vec<Field> {
    let field = |name, key, label, hint, value: &String| Field {
        name,
        key,
        label,
        hint,
        value: value.clone(),
        ..Field::default()
    };
    let mut all = vec![
        field(
            "alert_silent",
            "silent",
            "Alert when a source has not been seen for",
            "A time such as 1d; empty for never.",
            &f.alert_silent,
        ),
        field(
            "alert_disk",
            "disk",
            "Alert when there is less room on the disk than",
            "Such as 5 GB; empty for never.",
            &f.alert_disk,
        ),
    ];
    all.extend(f.channels.fields(&s.channels, &CHANNEL_KEYS));
    all
}

async fn whole(
    site: &Site,
    typed: Option<AlertsForm>,
    session: &Session,
    errors: &Errors,
    notice: &str,
    tested: String,
) -> Result<Html<String>, ClientError> {
    let s: VaultSettings = site.control.get("alerts").await?;
    let status: VaultStatus = site.control.get("vault").await?;
    let form = typed.unwrap_or_else(|| AlertsForm {
        alert_silent: s.silent.clone(),
        alert_disk: s.disk.clone(),
        channels: ChannelsForm::of(&s.channels),
    });
    let known: Vec<&str> = ["alert_silent", "alert_disk"]
        .into_iter()
        .chain(CHANNEL_FIELDS)
        .collect();
    let on = status.alerts.into_iter().map(|a| On {
        about: a.about,
        message: a.message,
        since: format!("{} ({})", local(&a.since), ago(&a.since)),
    });
    Ok(html(&AlertsPage {
        frame: frame("Alerts"),
        on: on.collect(),
        fields: fields::part(&all_fields(&form, &s), errors),
        s,
        csrf: &session.csrf,
        elsewhere: errors.elsewhere(&known).to_owned(),
        notice,
        tested,
    }))
}

#[derive(Deserialize)]
pub(super) struct Told {
    done: Option<String>,
}

/// `GET /alerts`.
pub(super) async fn page(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Query(told): Query<Told>,
) -> Page {
    let notice = match told.done {
        Some(_) => "Saved, and in effect.",
        None => "",
    };
    let none = Errors::default();
    let page = whole(&site, None, &session, &none, notice, String::new()).await?;
    Ok(page.into_response())
}

/// `POST /alerts`.
pub(super) async fn change(State(site): State<Site>, posted: Posted<AlertsForm>) -> Page {
    let form = posted.form;
    let change = VaultSettingsChange {
        silent: Some(form.alert_silent.clone()),
        disk: Some(form.alert_disk.clone()),
        channels: form.channels.change(),
    };
    match site.control.post::<VaultSettings>("alerts", &change).await {
        Ok(_) => Ok(go("/alerts?done=saved")),
        Err(ClientError::Failed(f)) => {
            let (errors, none) = (Errors::of(&f), String::new());
            let page = whole(&site, Some(form), &posted.session, &errors, "", none).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

/// `POST /alerts/test`.
pub(super) async fn test(State(site): State<Site>, posted: Posted<Nothing>) -> Page {
    let part = tested_part(&site.control).await?;
    if posted.part {
        return Ok(Html(part).into_response());
    }
    let none = Errors::default();
    let page = whole(&site, None, &posted.session, &none, "", part).await?;
    Ok(page.into_response())
}
