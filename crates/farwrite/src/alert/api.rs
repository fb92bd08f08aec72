//! Channels as the control API shows, changes and tests them.

use super::{Channels, Secret, Security, Wrong, test};
use farwrite_control::{
    AlertChannels, AlertChannelsChange, Answer, Fault, TestedAlerts, TestedChannel,
};

/// Without passwords.
pub fn show(c: &Channels) -> AlertChannels {
    AlertChannels {
        command: c.command.clone(),
        webhook: c.webhook.clone(),
        webhook_token_set: !c.webhook_token.is_empty(),
        mail_server: c.mail.server.clone(),
        mail_security: c.mail.security.name().into(),
        mail_securities: Security::NAMES.map(str::to_owned).into(),
        mail_user: c.mail.user.clone(),
        mail_password_set: !c.mail.password.is_empty(),
        mail_from: c.mail.from.clone(),
        mail_to: c.mail.to.clone(),
    }
}

/// The changed channels, if nothing is wrong with them.
pub fn change(mut c: Channels, change: &AlertChannelsChange) -> Answer<Channels> {
    let before = c.clone();
    let put = |at: &mut String, text: &Option<String>| {
        if let Some(text) = text {
            *at = text.trim().to_owned();
        }
    };
    put(&mut c.webhook, &change.webhook);
    put(&mut c.mail.server, &change.mail_server);
    put(&mut c.mail.user, &change.mail_user);
    put(&mut c.mail.from, &change.mail_from);
    if let Some(name) = &change.mail_security {
        c.mail.security = Security::named(name.trim()).ok_or_else(|| {
            Fault::field(
                "alert_mail_security",
                "this is none of starttls, tls and none",
            )
        })?;
    }
    if let Some(to) = &change.mail_to {
        let some = to.iter().map(|a| a.trim().to_owned());
        c.mail.to = some.filter(|a| !a.is_empty()).collect();
    }
    secrets(&mut c, &before, change)?;
    c.check().map_err(fault)?;
    Ok(c)
}

/// A secret goes to the server that it was given for, and to no other: else whoever gets hold of a browser could have it
/// sent to himself.
fn secrets(c: &mut Channels, before: &Channels, change: &AlertChannelsChange) -> Answer<()> {
    if let Some(token) = &change.webhook_token {
        c.webhook_token = Secret::new(token.trim());
    } else if c.webhook.is_empty() {
        c.webhook_token = Secret::default();
    } else if c.webhook != before.webhook && !c.webhook_token.is_empty() {
        let why = "the address has changed: give the token for it, or take it away";
        return Err(Fault::field("alert_webhook_token", why));
    }
    let (now, was) = (&c.mail, &before.mail);
    let same = (&now.server, now.security, &now.user) == (&was.server, was.security, &was.user);
    if let Some(password) = &change.mail_password {
        c.mail.password = Secret::new(password.as_str());
    } else if c.mail.server.is_empty() || c.mail.user.is_empty() {
        c.mail.password = Secret::default();
    } else if !same && !c.mail.password.is_empty() {
        let why = "server, security or user have changed: give the password again";
        return Err(Fault::field("alert_mail_password", why));
    }
    Ok(())
}

fn fault(w: Wrong) -> Fault {
    let field = format!("alert_{}", w.field.replace('.', "_"));
    Fault::field(&field, w.why)
}

/// Sends a test alert everywhere, once.
pub fn tested(c: &Channels) -> TestedAlerts {
    let one = |t: super::Tested| TestedChannel {
        channel: t.channel.into(),
        target: t.target,
        error: t.error,
    };
    TestedAlerts {
        channels: test(c).into_iter().map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_go_to_another_server() {
        let some = |t: &str| Some(t.to_owned());
        let first = AlertChannelsChange {
            webhook: some("https://a.example/"),
            webhook_token: some("t0ken"),
            mail_server: some("a.example"),
            mail_user: some("me"),
            mail_password: some("hunter2"),
            mail_from: some("me@a.example"),
            mail_to: Some(vec!["you@a.example".into(), " ".into()]),
            ..AlertChannelsChange::default()
        };
        let c = change(Channels::default(), &first).unwrap();
        assert_eq!(c.mail.to, ["you@a.example"]);
        let shown = format!("{:?} {first:?}", show(&c));
        assert!(
            !shown.contains("hunter2") && !shown.contains("t0ken"),
            "{shown}"
        );
        let refused = |field: &str, wanted: AlertChannelsChange| {
            let fault = change(c.clone(), &wanted).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some(field));
        };
        let empty = AlertChannelsChange::default;
        refused(
            "alert_webhook_token",
            AlertChannelsChange {
                webhook: some("https://b.example/"),
                ..empty()
            },
        );
        for wanted in [
            AlertChannelsChange {
                mail_server: some("b.example"),
                ..empty()
            },
            AlertChannelsChange {
                mail_security: some("tls"),
                ..empty()
            },
            AlertChannelsChange {
                mail_user: some("you"),
                ..empty()
            },
        ] {
            refused("alert_mail_password", wanted);
        }
        // Other fields leave it, an emptied one takes it away.
        let wanted = AlertChannelsChange {
            mail_from: some("x@a.example"),
            ..empty()
        };
        assert_eq!(
            change(c.clone(), &wanted).unwrap().mail.password.reveal(),
            "hunter2"
        );
        let wanted = AlertChannelsChange {
            mail_server: some(""),
            webhook: some(""),
            ..empty()
        };
        let none = change(c.clone(), &wanted).unwrap();
        assert!(none.mail.password.is_empty() && none.webhook_token.is_empty());
    }
}
