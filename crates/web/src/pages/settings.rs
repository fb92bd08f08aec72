//! Settings, each under its name in the configuration file.

use super::fields::{self, CHANNEL_FIELDS, ChannelsForm, Field};
use super::{Errors, Frame, Page, Posted, html};
use crate::gate::Session;
use crate::server::Site;
use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use farwrite_control::{
    ClientError, Connection, Done, Settings, SettingsChange, TestedAlerts, TestedChannel,
};
use serde::Deserialize;

/// Fields at which an error is shown, besides those of the channels.
const FIELDS: &[&str] = &[
    "interval",
    "sensor",
    "bandwidth",
    "alert_lag",
    "alert_offline",
    "alert_disk",
];
/// As the configuration has them.
const CHANNEL_KEYS: [&str; 8] = [
    "alert.webhook",
    "alert.webhook_token",
    "alert.mail.server",
    "alert.mail.security",
    "alert.mail.user",
    "alert.mail.password",
    "alert.mail.from",
    "alert.mail.to",
];

/// What was typed.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SettingsForm {
    interval: String,
    sensor: String,
    bandwidth: String,
    alert_lag: String,
    alert_offline: String,
    alert_disk: String,
    #[serde(flatten)]
    channels: ChannelsForm,
}

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage<'a> {
    frame: Frame,
    s: Settings,
    backup: String,
    alerts: String,
    csrf: &'a str,
    elsewhere: String,
    notice: &'a str,
    tested: String,
}

fn of_backup(f: &SettingsForm, s: &Settings) -> Vec<Field> {
    vec![
        Field {
            name: "interval",
            key: "interval",
            label: "Scheduling interval",
            hint: "“auto” sends at once and spaces out under load; or a time such as 200ms or 5s. Takes effect at once.",
            value: f.interval.clone(),
            ..Field::default()
        },
        Field {
            name: "bandwidth",
            key: "bandwidth",
            label: "Bandwidth to each vault",
            hint: "Bytes a second such as “10 MB”; empty for no limit. The daemon reconnects.",
            value: f.bandwidth.clone(),
            ..Field::default()
        },
        Field {
            name: "sensor",
            key: "sensor",
            label: "Sensor",
            hint: "“auto” takes the best that this machine allows. A change compares everything once.",
            value: f.sensor.clone(),
            choices: s.sensors.clone(),
            ..Field::default()
        },
    ]
}

fn of_alerts(f: &SettingsForm, s: &Settings) -> Vec<Field> {
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
            "alert_lag",
            "alert.lag",
            "Alert when changes wait for",
            "A time such as 5m.",
            &f.alert_lag,
        ),
        field(
            "alert_offline",
            "alert.offline",
            "Alert when a vault is away for",
            "A time such as 1m.",
            &f.alert_offline,
        ),
        field(
            "alert_disk",
            "alert.disk",
            "Alert when there is less room on the disk than",
            "For the daemon’s own files, such as 500 MB; empty for never.",
            &f.alert_disk,
        ),
    ];
    all.extend(f.channels.fields(&s.alert_channels, &CHANNEL_KEYS));
    all
}

fn of(s: &Settings) -> SettingsForm {
    SettingsForm {
        interval: s.interval.clone(),
        sensor: s.sensor.clone(),
        bandwidth: s.bandwidth.clone(),
        alert_lag: s.alert_lag.clone(),
        alert_offline: s.alert_offline.clone(),
        alert_disk: s.alert_disk.clone(),
        channels: ChannelsForm::of(&s.alert_channels),
    }
}

/// The page with what was typed, or as it is.
fn whole(
    s: Settings,
    typed: Option<SettingsForm>,
    session: &Session,
    errors: &Errors,
    notice: &str,
    tested: String,
) -> Html<String> {
    let form = typed.unwrap_or_else(|| of(&s));
    let known: Vec<&str> = FIELDS.iter().copied().chain(CHANNEL_FIELDS).collect();
    html(&SettingsPage {
        frame: Frame::new("Settings"),
        backup: fields::part(&of_backup(&form, &s), errors),
        alerts: fields::part(&of_alerts(&form, &s), errors),
        s,
        csrf: &session.csrf,
        elsewhere: errors.elsewhere(&known).to_owned(),
        notice,
        tested,
    })
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
    let notice = match told.done {
        Some(_) => "Saved, and in effect.",
        None => "",
    };
    let none = Errors::default();
    Ok(whole(s, None, &session, &none, notice, String::new()).into_response())
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
        alert_disk: some(&form.alert_disk),
        alert_channels: form.channels.change(),
    };
    match site.control.post::<Settings>("settings", &change).await {
        Ok(_) => Ok(super::go("/settings?done=saved")),
        Err(ClientError::Failed(f)) => {
            let s: Settings = site.control.get("settings").await?;
            let (errors, none) = (Errors::of(&f), String::new());
            let page = whole(s, Some(form), &posted.session, &errors, "", none);
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
        Err(e) => Err(e.into()),
    }
}

#[derive(Template)]
#[template(path = "part_tested.html")]
struct TestedPart {
    channels: Vec<TestedChannel>,
    error: String,
}

/// Has a test alert sent, and says how that went.
pub(crate) async fn tested_part(control: &Connection) -> Result<String, ClientError> {
    let part = match control.post::<TestedAlerts>("alerts/test", &Done {}).await {
        Ok(tested) => TestedPart {
            channels: tested.channels,
            error: String::new(),
        },
        Err(ClientError::Failed(f)) => TestedPart {
            channels: Vec::new(),
            error: f.why,
        },
        Err(e) => return Err(e),
    };
    Ok(html(&part).0)
}

#[derive(Deserialize)]
pub(crate) struct Nothing {}

/// `POST /settings/test`.
pub(crate) async fn test(State(site): State<Site>, posted: Posted<Nothing>) -> Page {
    let part = tested_part(&site.control).await?;
    if posted.part {
        return Ok(Html(part).into_response());
    }
    let s: Settings = site.control.get("settings").await?;
    let none = Errors::default();
    Ok(whole(s, None, &posted.session, &none, "", part).into_response())
}
