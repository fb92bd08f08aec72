//! Fields of a form about settings: each under its name in the configuration, with what is wrong with it beside it.

use super::{Errors, html};
use askama::Template;
use farwrite_control::{AlertChannels, AlertChannelsChange};
use serde::Deserialize;

/// One field.
#[derive(Default)]
pub(crate) struct Field {
    /// In the form, and in a fault.
    pub(crate) name: &'static str,
    /// In the configuration.
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    pub(crate) hint: &'static str,
    pub(crate) value: String,
    /// What it may be, if only some things.
    pub(crate) choices: Vec<String>,
    /// Never shown; is there one?
    pub(crate) secret: Option<bool>,
    /// Several lines.
    pub(crate) many: bool,
}

#[derive(Template)]
#[template(path = "part_fields.html")]
struct Part<'a> {
    fields: &'a [Field],
    errors: &'a Errors,
}

/// The fields as a part of a form.
pub(crate) fn part(fields: &[Field], errors: &Errors) -> String {
    html(&Part { fields, errors }).0
}

/// What was typed about the channels of alerts.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ChannelsForm {
    alert_webhook: String,
    alert_webhook_token: String,
    alert_webhook_token_forget: bool,
    alert_mail_server: String,
    alert_mail_security: String,
    alert_mail_user: String,
    alert_mail_password: String,
    alert_mail_password_forget: bool,
    alert_mail_from: String,
    alert_mail_to: String,
}

/// Fields of [`ChannelsForm`].
pub(crate) const CHANNEL_FIELDS: [&str; 8] = [
    "alert_webhook",
    "alert_webhook_token",
    "alert_mail_server",
    "alert_mail_security",
    "alert_mail_user",
    "alert_mail_password",
    "alert_mail_from",
    "alert_mail_to",
];

impl ChannelsForm {
    /// As it is now.
    pub(crate) fn of(c: &AlertChannels) -> ChannelsForm {
        ChannelsForm {
            alert_webhook: c.webhook.clone(),
            alert_mail_server: c.mail_server.clone(),
            alert_mail_security: c.mail_security.clone(),
            alert_mail_user: c.mail_user.clone(),
            alert_mail_from: c.mail_from.clone(),
            alert_mail_to: c.mail_to.join("\n"),
            ..ChannelsForm::default()
        }
    }

    /// A secret that is left empty stays as it is.
    pub(crate) fn change(&self) -> AlertChannelsChange {
        let some = |t: &String| Some(t.clone());
        let secret = |typed: &String, forget: bool| match forget {
            true => Some(String::new()),
            false => Some(typed.clone()).filter(|t| !t.is_empty()),
        };
        let to = self.alert_mail_to.split([',', '\n', '\r']);
        AlertChannelsChange {
            webhook: some(&self.alert_webhook),
            webhook_token: secret(&self.alert_webhook_token, self.alert_webhook_token_forget),
            mail_server: some(&self.alert_mail_server),
            mail_security: some(&self.alert_mail_security).filter(|t| !t.is_empty()),
            mail_user: some(&self.alert_mail_user),
            mail_password: secret(&self.alert_mail_password, self.alert_mail_password_forget),
            mail_from: some(&self.alert_mail_from),
            mail_to: Some(to.map(str::to_owned).collect()),
        }
    }

    /// The fields; `keys` are their names in the configuration.
    pub(crate) fn fields(&self, now: &AlertChannels, keys: &[&'static str; 8]) -> Vec<Field> {
        let labels: [(&str, &str, &str); 8] = [
            (
                "Webhook",
                "An address that gets a POST with JSON when an alert begins or ends; empty for none.",
                &self.alert_webhook,
            ),
            (
                "Token for the webhook",
                "Sent along as a bearer token. It is never shown; left empty it stays as it is.",
                "",
            ),
            (
                "Mail server",
                "HOST or HOST:PORT; empty for no mail.",
                &self.alert_mail_server,
            ),
            (
                "Its security",
                "“starttls” (port 587), “tls” (port 465), or “none” (port 25): readable on its way.",
                &self.alert_mail_security,
            ),
            (
                "User at the mail server",
                "Empty if it wants none.",
                &self.alert_mail_user,
            ),
            (
                "Password",
                "It is never shown; left empty it stays as it is.",
                "",
            ),
            (
                "Sender",
                "Such as farwrite@example.org.",
                &self.alert_mail_from,
            ),
            ("Recipients", "One a line.", &self.alert_mail_to),
        ];
        let secret = |name| match name {
            "alert_webhook_token" => Some(now.webhook_token_set),
            "alert_mail_password" => Some(now.mail_password_set),
            _ => None,
        };
        let names = CHANNEL_FIELDS.into_iter().zip(keys);
        names
            .zip(labels)
            .map(|((name, key), (label, hint, value))| Field {
                name,
                key,
                label,
                hint,
                value: value.into(),
                choices: match name {
                    "alert_mail_security" => now.mail_securities.clone(),
                    _ => Vec::new(),
                },
                secret: secret(name),
                many: name == "alert_mail_to",
            })
            .collect()
    }
}
