//! Which request is which function of a vault's handler, and the OpenAPI document of it all.

use crate::alerts::*;
use crate::fault::Fault;
use crate::reply::*;
use crate::settings::UiPlace;
use crate::vault::*;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use utoipa::OpenApi;

type Shared = State<Arc<dyn VaultHandler>>;

/// The OpenAPI document, as JSON.
pub fn vault_openapi() -> String {
    Document::openapi()
        .to_pretty_json()
        .expect("the document is plain data")
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Farwrite vault control API",
        version = "1",
        description = "Of a running vault daemon, on its unix socket. Errors are a `Fault`."
    ),
    paths(
        status,
        status_events,
        source,
        verify,
        release,
        set_retention,
        preview_prune,
        settings,
        change_settings,
        test_alerts,
        metrics,
        open_ui
    ),
    components(schemas(Fault))
)]
struct Document;

/// The API over a handler.
pub fn vault_router(handler: Arc<dyn VaultHandler>) -> Router {
    Router::new()
        .route("/v1/vault", get(status))
        .route("/v1/events/vault", get(status_events))
        .route("/v1/sources/{name}", get(source))
        .route("/v1/sources/{name}/verify", post(verify))
        .route("/v1/sources/{name}/release", post(release))
        .route("/v1/sources/{name}/retention", post(set_retention))
        .route("/v1/sources/{name}/prune/preview", post(preview_prune))
        .route("/v1/alerts", get(settings).post(change_settings))
        .route("/v1/alerts/test", post(test_alerts))
        .route("/v1/metrics", get(metrics))
        .route("/v1/ui", post(open_ui))
        .route("/v1/openapi.json", get(document))
        .fallback(async || Fault::not_found("there is nothing of that name in this API"))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(handler)
}

async fn document() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, vault_openapi()).into_response()
}

#[utoipa::path(get, path = "/v1/vault", responses((status = 200, body = VaultStatus)))]
/// All sources, and what is wrong.
async fn status(State(h): Shared) -> Reply<VaultStatus> {
    reply(h, |h| Ok(h.status())).await
}

#[utoipa::path(get, path = "/v1/events/vault", responses((status = 200, content_type = "text/event-stream", body = VaultStatus)))]
/// The same whenever it changes, as server-sent events; at most four a second.
async fn status_events(State(h): Shared) -> Response {
    changes(h, |h| h.status())
}

#[utoipa::path(get, path = "/v1/sources/{name}", params(("name" = String, Path, description = "The source")), responses((status = 200, body = VaultSourceDetail), (status = 404, body = Fault)))]
/// One source and its past.
async fn source(State(h): Shared, Path(name): Path<String>) -> Reply<VaultSourceDetail> {
    reply(h, move |h| h.source(&name)).await
}

#[utoipa::path(post, path = "/v1/sources/{name}/verify", params(("name" = String, Path, description = "The source")), responses((status = 200, body = VaultSource), (status = 404, body = Fault)))]
/// Begins to read everything of a source and compare it with its checksums; `verifying` says how far it is.
async fn verify(State(h): Shared, Path(name): Path<String>) -> Reply<VaultSource> {
    reply(h, move |h| h.verify(&name)).await
}

#[utoipa::path(post, path = "/v1/sources/{name}/release", params(("name" = String, Path, description = "The source")), responses((status = 200, body = VaultSource), (status = 404, body = Fault)))]
/// Lets go of the ransomware brake: the source is pruned again.
async fn release(State(h): Shared, Path(name): Path<String>) -> Reply<VaultSource> {
    reply(h, move |h| h.release(&name)).await
}

#[utoipa::path(post, path = "/v1/sources/{name}/retention", params(("name" = String, Path, description = "The source")), request_body = RetentionPolicy, responses((status = 200, body = Retention), (status = 422, body = Fault)))]
/// Sets a source's own policy. What it drops goes at the next daily prune, not at once.
async fn set_retention(
    State(h): Shared,
    Path(name): Path<String>,
    Json(p): Json<RetentionPolicy>,
) -> Reply<Retention> {
    reply(h, move |h| h.set_retention(&name, p)).await
}

#[utoipa::path(post, path = "/v1/sources/{name}/prune/preview", params(("name" = String, Path, description = "The source")), request_body = RetentionPolicy, responses((status = 200, body = PrunePreview), (status = 422, body = Fault)))]
/// What pruning by a policy would do now. Nothing is changed.
async fn preview_prune(
    State(h): Shared,
    Path(name): Path<String>,
    Json(p): Json<RetentionPolicy>,
) -> Reply<PrunePreview> {
    reply(h, move |h| h.preview_prune(&name, p)).await
}

#[utoipa::path(get, path = "/v1/alerts", responses((status = 200, body = VaultSettings)))]
/// When and where to there are alerts.
async fn settings(State(h): Shared) -> Reply<VaultSettings> {
    reply(h, |h| h.settings()).await
}

#[utoipa::path(post, path = "/v1/alerts", request_body = VaultSettingsChange, responses((status = 200, body = VaultSettings), (status = 422, body = Fault)))]
/// Changes that, in the file and in effect.
async fn change_settings(
    State(h): Shared,
    Json(c): Json<VaultSettingsChange>,
) -> Reply<VaultSettings> {
    reply(h, move |h| h.change_settings(c)).await
}

#[utoipa::path(post, path = "/v1/alerts/test", responses((status = 200, body = TestedAlerts)))]
/// Sends a test alert by every channel, once, and waits for the outcome.
async fn test_alerts(State(h): Shared) -> Reply<TestedAlerts> {
    reply(h, |h| h.test_alerts()).await
}

#[utoipa::path(get, path = "/v1/metrics", responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
/// Numbers in the OpenMetrics text format.
async fn metrics(State(h): Shared) -> Result<Response, Fault> {
    let text = call(h, |h| h.metrics()).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

#[utoipa::path(post, path = "/v1/ui", responses((status = 200, body = UiPlace)))]
/// Makes sure that the GUI is served, and lets one browser in.
async fn open_ui(State(h): Shared) -> Reply<UiPlace> {
    reply(h, |h| h.open_ui()).await
}
