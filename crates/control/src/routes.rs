//! Which request is which function of the handler, and the OpenAPI document of it all.

use crate::alerts::*;
use crate::fault::Fault;
use crate::handler::{Content, Handler, Watch};
use crate::history::*;
use crate::reply::*;
use crate::settings::*;
use crate::types::*;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::OpenApi;

/// Events on their way to one reader; what a slow reader misses, the daemon counts.
const EVENTS: usize = 64;
/// Pieces of a file on their way to one reader.
const PIECES: usize = 4;
/// Bytes of one piece.
const PIECE_BYTES: usize = 256 << 10;

type Shared = State<Arc<dyn Handler>>;

/// The OpenAPI document, as JSON.
pub fn openapi() -> String {
    Document::openapi()
        .to_pretty_json()
        .expect("the document is plain data")
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Farwrite control API",
        version = "3",
        description = "Of a running source daemon, on its unix socket. Errors are a `Fault`."
    ),
    paths(
        status,
        flush,
        switch,
        interval,
        reload,
        activity,
        status_events,
        settings,
        change_settings,
        test_alerts,
        protect,
        unprotect,
        preview_excludes,
        moments,
        marks,
        set_mark,
        list,
        versions,
        differences,
        timeline,
        content,
        restore,
        restore_progress,
        metrics,
        open_ui
    ),
    components(schemas(Activity, Fault))
)]
struct Document;

/// The API over a handler.
pub fn router(handler: Arc<dyn Handler>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flush", post(flush))
        .route("/v1/switch", post(switch))
        .route("/v1/interval", post(interval))
        .route("/v1/reload", post(reload))
        .route("/v1/events/activity", get(activity))
        .route("/v1/events/status", get(status_events))
        .route("/v1/settings", get(settings).post(change_settings))
        .route("/v1/alerts/test", post(test_alerts))
        .route("/v1/protect", post(protect))
        .route("/v1/unprotect", post(unprotect))
        .route("/v1/excludes/preview", post(preview_excludes))
        .route("/v1/history/moments", get(moments))
        .route("/v1/history/marks", get(marks).post(set_mark))
        .route("/v1/history/list", get(list))
        .route("/v1/history/versions", get(versions))
        .route("/v1/history/diff", get(differences))
        .route("/v1/history/timeline", get(timeline))
        .route("/v1/history/content", get(content))
        .route("/v1/restore", post(restore))
        .route("/v1/restore/{id}", get(restore_progress))
        .route("/v1/metrics", get(metrics))
        .route("/v1/ui", post(open_ui))
        .route("/v1/openapi.json", get(document))
        .fallback(async || Fault::not_found("there is nothing of that name in this API"))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(handler)
}

async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}

#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
/// What is protected and how safe it is.
async fn status(State(h): Shared) -> Reply<Status> {
    reply(h, |h| Ok(h.status())).await
}

/// Sets the flag when the request is given up.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[utoipa::path(post, path = "/v1/flush", request_body = Flush, responses((status = 200, body = Done)))]
/// Returns once every change made before is durable in every vault and stands in its mirror.
async fn flush(State(h): Shared, Json(f): Json<Flush>) -> Reply<Done> {
    let flag = Arc::new(AtomicBool::new(false));
    let _gone = Gone(flag.clone());
    reply(h, move |h| {
        let timeout = f.timeout_ms.map(Duration::from_millis);
        h.flush(timeout, &|| flag.load(Ordering::Acquire))?;
        Ok(Done {})
    })
    .await
}

#[utoipa::path(post, path = "/v1/switch", request_body = Switch, responses((status = 200, body = Done)))]
/// The automatic-backup switch.
async fn switch(State(h): Shared, Json(s): Json<Switch>) -> Reply<Done> {
    reply(h, move |h| {
        match s.directories.is_empty() {
            true => h.switch(s.on),
            false => h.switch_directories(s.on, &s.directories),
        }
        .map(|()| Done {})
    })
    .await
}

#[utoipa::path(post, path = "/v1/interval", request_body = SetInterval, responses((status = 200, body = Done)))]
/// Changes the scheduling interval until the daemon ends.
async fn interval(State(h): Shared, Json(i): Json<SetInterval>) -> Reply<Done> {
    reply(h, move |h| h.set_interval(&i.interval).map(|()| Done {})).await
}

#[utoipa::path(post, path = "/v1/reload", responses((status = 200, body = Done)))]
/// Takes up the configuration file as it is now.
async fn reload(State(h): Shared) -> Reply<Done> {
    reply(h, move |h| h.reload().map(|()| Done {})).await
}

#[utoipa::path(get, path = "/v1/events/activity", responses((status = 200, content_type = "text/event-stream", body = Activity)))]
/// What happens, as server-sent events, each an `Activity`.
async fn activity(State(h): Shared) -> Response {
    let (sender, receiver) = mpsc::channel(EVENTS);
    // A thread of its own: a watch lasts, and the blocking threads are for requests that end. The server bounds how many
    // connections, and so how many watches, there are.
    let spawned = std::thread::Builder::new()
        .name("control-watch".into())
        .spawn(move || pump(h.watch(), &sender));
    match spawned {
        Ok(_) => events(ReceiverStream::new(receiver)),
        Err(e) => Fault::failed(format!("no thread for a watch: {e}")).into_response(),
    }
}

fn pump(watch: Watch, sender: &mpsc::Sender<Result<Event, Infallible>>) {
    for activity in watch {
        let sent = match activity {
            None if sender.is_closed() => return,
            None => Ok(()),
            Some(a) => sender.blocking_send(Ok(as_event(&a))),
        };
        if sent.is_err() {
            return;
        }
    }
}

#[utoipa::path(get, path = "/v1/events/status", responses((status = 200, content_type = "text/event-stream", body = Status)))]
/// The status whenever it changes, as server-sent events; at most four a second.
async fn status_events(State(h): Shared) -> Response {
    changes(h, |h| h.status())
}

#[utoipa::path(get, path = "/v1/settings", responses((status = 200, body = Settings)))]
/// The configuration.
async fn settings(State(h): Shared) -> Reply<Settings> {
    reply(h, |h| h.settings()).await
}

#[utoipa::path(post, path = "/v1/settings", request_body = SettingsChange, responses((status = 200, body = Settings), (status = 422, body = Fault)))]
/// Changes settings, in the file and in effect.
async fn change_settings(State(h): Shared, Json(c): Json<SettingsChange>) -> Reply<Settings> {
    reply(h, move |h| h.change_settings(c)).await
}

#[utoipa::path(post, path = "/v1/alerts/test", responses((status = 200, body = TestedAlerts)))]
/// Sends a test alert by every channel, once, and waits for the outcome.
async fn test_alerts(State(h): Shared) -> Reply<TestedAlerts> {
    reply(h, |h| h.test_alerts()).await
}

#[utoipa::path(post, path = "/v1/protect", request_body = Protect, responses((status = 200, body = Settings), (status = 422, body = Fault)))]
/// Protects a directory from now on, or changes what is left out of it.
async fn protect(State(h): Shared, Json(p): Json<Protect>) -> Reply<Settings> {
    reply(h, move |h| h.protect(p)).await
}

#[utoipa::path(post, path = "/v1/unprotect", request_body = Unprotect, responses((status = 200, body = Settings), (status = 422, body = Fault)))]
/// Protects a directory no more. What the vault has of it stays there.
async fn unprotect(State(h): Shared, Json(u): Json<Unprotect>) -> Reply<Settings> {
    reply(h, move |h| h.unprotect(u)).await
}

#[utoipa::path(post, path = "/v1/excludes/preview", request_body = PreviewExcludes, responses((status = 200, body = ExcludePreview), (status = 422, body = Fault)))]
/// What patterns would leave out.
async fn preview_excludes(
    State(h): Shared,
    Json(p): Json<PreviewExcludes>,
) -> Reply<ExcludePreview> {
    reply(h, move |h| h.preview_excludes(p)).await
}

#[utoipa::path(get, path = "/v1/history/moments", params(MomentsQuery), responses((status = 200, body = Moments)))]
/// Begin and end of the history.
async fn moments(State(h): Shared, Query(q): Query<MomentsQuery>) -> Reply<Moments> {
    reply(h, move |h| h.moments(q)).await
}

#[utoipa::path(get, path = "/v1/history/marks", params(MomentsQuery), responses((status = 200, body = Vec<MarkedMoment>)))]
/// All marks, in the order in which they were set.
async fn marks(State(h): Shared, Query(q): Query<MomentsQuery>) -> Reply<Vec<MarkedMoment>> {
    reply(h, move |h| h.marks(q)).await
}

#[utoipa::path(post, path = "/v1/history/marks", request_body = SetMark, responses((status = 200, body = MarkedMoment), (status = 422, body = Fault)))]
/// Names a moment, which the vault then keeps.
async fn set_mark(State(h): Shared, Json(m): Json<SetMark>) -> Reply<MarkedMoment> {
    reply(h, move |h| h.set_mark(m)).await
}

#[utoipa::path(get, path = "/v1/history/list", params(ListQuery), responses((status = 200, body = Listing)))]
/// A directory as it was, one page.
async fn list(State(h): Shared, Query(q): Query<ListQuery>) -> Reply<Listing> {
    reply(h, move |h| h.list(q)).await
}

#[utoipa::path(get, path = "/v1/history/versions", params(VersionsQuery), responses((status = 200, body = Vec<Version>)))]
/// Versions of what has been at a path, newest first.
async fn versions(State(h): Shared, Query(q): Query<VersionsQuery>) -> Reply<Vec<Version>> {
    reply(h, move |h| h.versions(q)).await
}

#[utoipa::path(get, path = "/v1/history/diff", params(DiffQuery), responses((status = 200, body = Differences)))]
/// What differs below a path between two moments.
async fn differences(State(h): Shared, Query(q): Query<DiffQuery>) -> Reply<Differences> {
    reply(h, move |h| h.differences(q)).await
}

#[utoipa::path(get, path = "/v1/history/timeline", params(TimelineQuery), responses((status = 200, body = Timeline)))]
/// How much changed when.
async fn timeline(State(h): Shared, Query(q): Query<TimelineQuery>) -> Reply<Timeline> {
    reply(h, move |h| h.timeline(q)).await
}

#[utoipa::path(get, path = "/v1/history/content", params(ContentQuery), responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>)))]
/// A file's bytes as they were. A body shorter than its length is damaged and must not be used.
async fn content(State(h): Shared, Query(q): Query<ContentQuery>) -> Result<Response, Fault> {
    let found = call(h, move |h| h.content(q)).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let size = found.size;
    tokio::task::spawn_blocking(move || send_pieces(found, &sender));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// Hands on what is written to it.
struct Pieces<'a>(&'a mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE_BYTES);
        let sent = self
            .0
            .blocking_send(Ok(Bytes::copy_from_slice(&bytes[..n])));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send_pieces(content: Content, sender: &mpsc::Sender<io::Result<Bytes>>) {
    if let Err(e) = (content.write)(&mut Pieces(sender)) {
        tracing::warn!(error = %e, "content");
        // Nobody may be there any more.
        let _ = sender.blocking_send(Err(e));
    }
}

#[utoipa::path(post, path = "/v1/restore", request_body = RestoreRequest, responses((status = 200, body = RestoreJob), (status = 422, body = Fault)))]
/// Begins to bring something back; a dry run is done when this answers.
async fn restore(State(h): Shared, Json(r): Json<RestoreRequest>) -> Reply<RestoreJob> {
    reply(h, move |h| h.restore(r)).await
}

#[utoipa::path(get, path = "/v1/restore/{id}", params(("id" = u64, Path, description = "As `restore` gave it")), responses((status = 200, body = RestoreJob)))]
/// How far a restore is.
async fn restore_progress(State(h): Shared, Path(id): Path<u64>) -> Reply<RestoreJob> {
    reply(h, move |h| h.restore_progress(id)).await
}

#[utoipa::path(get, path = "/v1/metrics", responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
/// Counters in the OpenMetrics text format.
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
