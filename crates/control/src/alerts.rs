//! Where alerts go, as the API shows and changes it. No password and no token is ever among what it shows.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where alerts go. What is empty is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertChannels {
    /// `command`: run when an alert begins or ends. Only the file changes it: who gets hold of a browser must not be able
    /// to run programs.
    pub command: String,
    /// `webhook`: gets a POST with JSON.
    pub webhook: String,
    /// There is a `webhook_token`.
    pub webhook_token_set: bool,
    /// `mail.server`: HOST or HOST:PORT.
    pub mail_server: String,
    /// `mail.security`.
    pub mail_security: String,
    /// What `mail.security` may be.
    pub mail_securities: Vec<String>,
    /// `mail.user`.
    pub mail_user: String,
    /// There is a `mail.password`.
    pub mail_password_set: bool,
    /// `mail.from`.
    pub mail_from: String,
    /// `mail.to`.
    pub mail_to: Vec<String>,
}

/// Changes where alerts go; what is left out stays as it is.
///
/// A token or password belongs to the server that it was given for: with another address, it has to be given again.
/// Field names of a [`crate::Fault`] are these with `alert_` in front.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AlertChannelsChange {
    /// See [`AlertChannels::webhook`].
    pub webhook: Option<String>,
    /// `webhook_token`; an empty one is taken away.
    pub webhook_token: Option<String>,
    /// See [`AlertChannels::mail_server`].
    pub mail_server: Option<String>,
    /// See [`AlertChannels::mail_security`].
    pub mail_security: Option<String>,
    /// See [`AlertChannels::mail_user`].
    pub mail_user: Option<String>,
    /// `mail.password`; an empty one is taken away.
    pub mail_password: Option<String>,
    /// See [`AlertChannels::mail_from`].
    pub mail_from: Option<String>,
    /// See [`AlertChannels::mail_to`].
    pub mail_to: Option<Vec<String>>,
}

impl std::fmt::Debug for AlertChannelsChange {
    /// Says what is changed, not to what: there are passwords among it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let given = [
            ("webhook", self.webhook.is_some()),
            ("webhook_token", self.webhook_token.is_some()),
            ("mail_server", self.mail_server.is_some()),
            ("mail_security", self.mail_security.is_some()),
            ("mail_user", self.mail_user.is_some()),
            ("mail_password", self.mail_password.is_some()),
            ("mail_from", self.mail_from.is_some()),
            ("mail_to", self.mail_to.is_some()),
        ];
        let given = given.iter().filter(|(_, is)| *is).map(|(name, _)| name);
        f.debug_set().entries(given).finish()
    }
}

/// How a test of the channels went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TestedAlerts {
    /// One for each channel that is configured; none: nobody would be told of anything.
    pub channels: Vec<TestedChannel>,
}

/// How a test of one channel went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TestedChannel {
    /// "command", "webhook" or "mail".
    pub channel: String,
    /// Where it goes, in words.
    pub target: String,
    /// Why it did not get there; none: it did.
    pub error: Option<String>,
}
