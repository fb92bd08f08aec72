//! What all pages have: the frame around them, forms that are checked, and words for what goes wrong.

pub(crate) mod activity;
pub(crate) mod fields;
pub(crate) mod file;
pub(crate) mod history;
pub(crate) mod overview;
pub(crate) mod protect;
pub(crate) mod restore;
pub(crate) mod settings;

use crate::gate::{Kind, Session, refusal};
use crate::server::Site;
use askama::Template;
use axum::body::to_bytes;
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use farwrite_control::{ClientError, Fault, FaultKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Longest form.
const FORM_BYTES: usize = 256 << 10;
/// A browser that does not send its form in this time is dropped.
const FORM_WITHIN: Duration = Duration::from_secs(15);

/// What is around every page.
pub(crate) struct Frame {
    pub(crate) title: String,
    /// Which entry of the navigation it is.
    pub(crate) page: &'static str,
    /// Is the browser let in?
    pub(crate) inside: bool,
    /// Without JavaScript, load it again after this many seconds.
    pub(crate) refresh: Option<u32>,
    pub(crate) version: &'static str,
    kind: Kind,
}

impl Frame {
    /// Of a source's page.
    pub(crate) fn new(page: &'static str) -> Frame {
        Frame::of(Kind::Source, page)
    }

    pub(crate) fn of(kind: Kind, page: &'static str) -> Frame {
        Frame {
            kind,
            title: page.into(),
            page,
            inside: true,
            refresh: None,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Around a page that says what is not there, or not possible.
    fn about(kind: Kind, title: &str, inside: bool) -> Frame {
        Frame {
            title: title.into(),
            inside,
            ..Frame::of(kind, "")
        }
    }

    /// Addresses and names of the navigation.
    pub(crate) fn pages(&self) -> &'static [(&'static str, &'static str)] {
        match self.kind {
            Kind::Source => &[
                ("/", "Overview"),
                ("/activity", "Activity"),
                ("/protect", "Protect"),
                ("/history", "History"),
                ("/settings", "Settings"),
            ],
            Kind::Vault => &[("/", "Sources"), ("/alerts", "Alerts")],
        }
    }

    /// What is in front of the pages' names.
    pub(crate) fn brand(&self) -> &'static str {
        match self.kind {
            Kind::Source => "Farwrite",
            Kind::Vault => "Farwrite vault",
        }
    }
}

#[derive(Template)]
#[template(path = "refused.html")]
struct Refused<'a> {
    frame: Frame,
    title: &'a str,
    why: &'a str,
    advice: &'a str,
}

/// Renders a template.
pub(crate) fn html(template: &impl Template) -> Html<String> {
    Html(template.render().expect("a template with plain data"))
}

/// A page for a request that is not admitted.
pub(crate) fn refused(kind: Kind, why: &str) -> Html<String> {
    html(&Refused {
        frame: Frame::about(kind, "Not let in", false),
        title: "Not let in",
        why,
        advice: match kind {
            Kind::Source => {
                "Run `farwrite ui` on this machine: it prints a link that lets this browser in."
            }
            Kind::Vault => {
                "Run `farwrite vault ui VAULT_DIR` on this machine: it prints a link that lets this browser in."
            }
        },
    })
}

#[derive(Deserialize)]
pub(crate) struct Token {
    #[serde(default)]
    token: String,
}

/// `GET /enter`: a token becomes a session.
pub(crate) async fn enter(State(site): State<Site>, Query(t): Query<Token>) -> Response {
    match site.gate.enter(&t.token) {
        Some(cookie) => (
            StatusCode::SEE_OTHER,
            [
                (header::SET_COOKIE, cookie),
                (header::LOCATION, axum::http::HeaderValue::from_static("/")),
            ],
        )
            .into_response(),
        None => refusal(
            site.gate.kind,
            StatusCode::FORBIDDEN,
            "This link has been used already, or is too old.",
        ),
    }
}

/// Anything else.
pub(crate) async fn nothing(State(site): State<Site>) -> Response {
    let title = "There is no such page";
    let page = Refused {
        frame: Frame::about(site.gate.kind, "Not found", true),
        title,
        why: "Nothing is at this address.",
        advice: "",
    };
    (StatusCode::NOT_FOUND, html(&page)).into_response()
}

/// A request that the daemon of a source did not answer as hoped, as a page.
pub(crate) struct Trouble(pub(crate) ClientError);

impl From<ClientError> for Trouble {
    fn from(e: ClientError) -> Trouble {
        Trouble(e)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        trouble(Kind::Source, &self.0)
    }
}

/// A request that the daemon did not answer as hoped, as a page.
pub(crate) fn trouble(kind: Kind, e: &ClientError) -> Response {
    let (code, title, why) = match e {
        ClientError::Failed(f) => {
            let code = StatusCode::from_u16(f.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            let title = match f.kind {
                FaultKind::NotFound => "Not there",
                FaultKind::Invalid => "That is not possible",
                FaultKind::Conflict | FaultKind::Failed => "That did not work",
            };
            (code, title, f.why.clone())
        }
        e => (
            StatusCode::BAD_GATEWAY,
            "The daemon does not answer",
            e.to_string(),
        ),
    };
    let page = Refused {
        frame: Frame::about(kind, title, true),
        title,
        why: &why,
        advice: "",
    };
    (code, html(&page)).into_response()
}

/// What a page gives.
pub(crate) type Page = Result<Response, Trouble>;

/// A form of a page of this session; everything else is refused.
pub(crate) struct Posted<T> {
    pub(crate) form: T,
    pub(crate) session: Session,
    /// By htmx, which wants a part of a page only.
    pub(crate) part: bool,
}

impl<T: DeserializeOwned> FromRequest<Site> for Posted<T> {
    type Rejection = Response;

    async fn from_request(request: Request, site: &Site) -> Result<Self, Response> {
        let refusal = |code, why: &str| refusal(site.gate.kind, code, why);
        let session = request.extensions().get::<Session>().cloned();
        let session = session.ok_or_else(|| {
            refusal(
                StatusCode::UNAUTHORIZED,
                "This browser has not been let in.",
            )
        })?;
        let part = is_part(request.headers());
        let body =
            tokio::time::timeout(FORM_WITHIN, to_bytes(request.into_body(), FORM_BYTES)).await;
        let body = match body {
            Err(_) => {
                return Err(refusal(
                    StatusCode::REQUEST_TIMEOUT,
                    "The form took too long to arrive.",
                ));
            }
            Ok(Err(_)) => {
                return Err(refusal(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "The form is too large.",
                ));
            }
            Ok(Ok(body)) => body,
        };
        let bad = |_| {
            refusal(
                StatusCode::BAD_REQUEST,
                "This is not a form of these pages.",
            )
        };
        let pairs: Vec<(String, String)> = serde_urlencoded::from_bytes(&body).map_err(bad)?;
        let csrf = pairs
            .iter()
            .find(|(k, _)| k == "csrf")
            .map_or("", |(_, v)| v);
        if !session.is_csrf(csrf) {
            return Err(refusal(
                StatusCode::FORBIDDEN,
                "This form is not of this session: load the page again.",
            ));
        }
        let form = serde_urlencoded::from_bytes(&body).map_err(bad)?;
        Ok(Posted {
            form,
            session,
            part,
        })
    }
}

/// Did htmx ask, for a part of a page?
pub(crate) fn is_part(headers: &axum::http::HeaderMap) -> bool {
    headers.get("hx-request").is_some_and(|v| v == "true")
}

/// Which field of a form is wrong, and why; a fault without a field is about the form as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Errors {
    field: String,
    why: String,
}

impl Errors {
    pub(crate) fn of(f: &Fault) -> Errors {
        Errors {
            field: f.field.clone().unwrap_or_default(),
            why: f.why.clone(),
        }
    }

    /// What is wrong with this field; empty if nothing is.
    pub(crate) fn at(&self, field: &str) -> &str {
        if !self.why.is_empty() && self.field == field {
            &self.why
        } else {
            ""
        }
    }

    /// What is wrong, if it is about none of these fields.
    pub(crate) fn elsewhere(&self, fields: &[&str]) -> &str {
        if fields.contains(&self.field.as_str()) {
            ""
        } else {
            &self.why
        }
    }

    /// `aria-invalid` and what describes the field, for its tag.
    pub(crate) fn mark(&self, field: &str) -> String {
        match self.at(field) {
            "" => String::new(),
            _ => format!("aria-invalid=\"true\" aria-describedby=\"error-{field}\""),
        }
    }
}

/// Goes to another page after something was done.
pub(crate) fn go(address: &str) -> Response {
    (
        StatusCode::SEE_OTHER,
        [(header::LOCATION, address.to_owned())],
    )
        .into_response()
}

/// An address with a query; empty values are left out.
pub(crate) fn address(path: &str, query: &[(&str, &str)]) -> String {
    let some: Vec<_> = query.iter().filter(|(_, v)| !v.is_empty()).collect();
    let text = serde_urlencoded::to_string(some).expect("texts");
    if text.is_empty() {
        path.into()
    } else {
        format!("{path}?{text}")
    }
}
