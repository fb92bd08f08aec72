//! The pages of a vault: its sources in numbers, one of them, alerts. They stand behind the same gate as those of a source, and
//! show no path and no content of any.

mod alerts;
mod retention;
mod source;
mod sources;

use crate::gate::Kind;
use crate::pages::{Frame, trouble};
use crate::server::Site;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use farwrite_control::ClientError;

/// Which address is which page.
pub(crate) fn pages() -> Router<Site> {
    Router::new()
        .route("/", get(sources::page))
        .route("/live/sources", get(sources::live))
        .route("/source/{name}", get(source::page))
        .route("/live/source/{name}", get(source::live))
        .route("/source/{name}/verify", post(source::verify))
        .route("/source/{name}/release", post(source::release))
        .route("/source/{name}/retention", post(retention::set))
        .route("/source/{name}/preview", post(retention::preview))
        .route("/alerts", get(alerts::page).post(alerts::change))
        .route("/alerts/test", post(alerts::test))
}

fn frame(page: &'static str) -> Frame {
    Frame::of(Kind::Vault, page)
}

/// A request that the vault's daemon did not answer as hoped, as a page.
struct Trouble(ClientError);

impl From<ClientError> for Trouble {
    fn from(e: ClientError) -> Trouble {
        Trouble(e)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        trouble(Kind::Vault, &self.0)
    }
}

type Page = Result<Response, Trouble>;
