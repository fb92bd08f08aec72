//! Settings, each under its name in the configuration file.

use super::{Errors, Frame, Page, Posted, html};
use crate::gate::Session;
use crate::server::Site;
use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use farwrite_control::{ClientError, Settings, SettingsChange};
use serde::Deserialize;

/// Fields at which an error is shown.
const FIELDS: &[&str] = &[
    "interval",
    "sensor",
    "bandwidth",
    "alert_lag",
    "alert_offline",
];

/// What was typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SettingsForm {
    interval: String,
    sensor: String,
    bandwidth: String,
    alert_lag: String,
    alert_offline: String,
}

struct Field {
    name: &'static str,
    key: &'static str,
    label: &'static str,
    hint: &'static str,
    value: String,
    choices: Vec<String>,
}

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage<'a> {
    frame: Frame,
    s: Settings,
    fields: Vec<Field>,
    csrf: &'a str,
    errors: Errors,
    notice: &'a str,
}

fn fields(f: SettingsForm, sensors: Vec<String>) -> Vec<Field> {
    let field = |name, key, label, hint, value| Field {
        name,
        key,
        label,
        hint,
        value,
        choices: Vec::new(),
    };
    vec![
        field(
            "interval",
            "interval",
            "Scheduling interval",
            "“auto” sends at once and spaces out under load; or a time such as 200ms or 5s. Takes effect at once.",
            f.interval,
        ),
        field(
            "bandwidth",
            "bandwidth",
            "Bandwidth to each vault",
            "Bytes a second such as “10 MB”; empty for no limit. The daemon reconnects.",
            f.bandwidth,
        ),
        Field {
            choices: sensors,
            ..field(
                "sensor",
                "sensor",
                "Sensor",
                "“auto” takes the best that this machine allows. A change compares everything once.",
                f.sensor,
            )
        },
        field(
            "alert_lag",
            "alert.lag",
            "Alert when changes wait for",
            "A time such as 5m.",
            f.alert_lag,
        ),
        field(
            "alert_offline",
            "alert.offline",
            "Alert when a vault is away for",
            "A time such as 1m.",
            f.alert_offline,
        ),
    ]
}

fn of(s: &Settings) -> SettingsForm {
    SettingsForm {
        interval: s.interval.clone(),
        sensor: s.sensor.clone(),
        bandwidth: s.bandwidth.clone(),
        alert_lag: s.alert_lag.clone(),
        alert_offline: s.alert_offline.clone(),
    }
}

#[derive(Deserialize)]
pub(crate) struct Told {
    done: Option<String>,
}

/// `GET /settings`.
pub(crate) async fn page(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
    Query(told): Query<Told>,
) -> Page {
    let s: Settings = site.control.get("settings").await?;
    Ok(html(&SettingsPage {
        frame: Frame::new("Settings"),
        fields: fields(of(&s), s.sensors.clone()),
        s,
        csrf: &session.csrf,
        errors: Errors::default(),
        notice: if told.done.is_some() {
            "Saved, and in effect."
        } else {
            ""
        },
    })
    .into_response())
}

/// `POST /settings`.
pub(crate) async fn change(State(site): State<Site>, posted: Posted<SettingsForm>) -> Page {
    let form = posted.form;
    let some = |t: &String| Some(t.clone());
    let change = SettingsChange {
        interval: some(&form.interval),
        sensor: some(&form.sensor),
        bandwidth: some(&form.bandwidth),
        alert_lag: some(&form.alert_lag),
        alert_offline: some(&form.alert_offline),
    };
    match site.control.post::<Settings>("settings", &change).await {
        Ok(_) => Ok(super::go("/settings?done=saved")),
        Err(ClientError::Failed(f)) => {
            let s: Settings = site.control.get("settings").await?;
            let page = SettingsPage {
                frame: Frame::new("Settings"),
                fields: fields(form, s.sensors.clone()),
                s,
                csrf: &posted.session.csrf,
                errors: Errors::of(&f),
                notice: "",
            };
            Ok((StatusCode::UNPROCESSABLE_ENTITY, html(&page)).into_response())
        }
        Err(e) => Err(e.into()),
    }
}
