//! What the routes of both daemons share: bodies and queries whose errors are a [`Fault`], calls of a handler on threads
//! that may block, streams of events.

use crate::fault::{Answer, Fault};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Largest request body.
pub(crate) const BODY_BYTES: usize = 256 << 10;
/// How often the status is looked at for those who watch it.
const STATUS_EVERY: Duration = Duration::from_millis(250);

/// What a route gives.
pub(crate) type Reply<T> = Result<Json<T>, Fault>;

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, axum::Json(self)).into_response()
    }
}

/// A body in JSON; a bad one is a [`Fault`].
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Fault))]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// A query; a bad one is a [`Fault`].
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Fault))]
pub(crate) struct Query<T>(pub(crate) T);

impl From<JsonRejection> for Fault {
    fn from(e: JsonRejection) -> Fault {
        Fault::invalid(e.body_text())
    }
}

impl From<QueryRejection> for Fault {
    fn from(e: QueryRejection) -> Fault {
        Fault::invalid(e.body_text())
    }
}

/// Calls the handler on a thread that may block.
pub(crate) async fn call<H: ?Sized + Send + Sync + 'static, T: Send + 'static>(
    handler: Arc<H>,
    f: impl FnOnce(&H) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    tokio::task::spawn_blocking(move || f(&*handler))
        .await
        .unwrap_or_else(|_| {
            Err(Fault::failed(
                "an internal error (see the daemon's log): please report it",
            ))
        })
}

/// The same, as an answer in JSON.
pub(crate) async fn reply<H: ?Sized + Send + Sync + 'static, T: Send + 'static>(
    handler: Arc<H>,
    f: impl FnOnce(&H) -> Answer<T> + Send + 'static,
) -> Reply<T> {
    call(handler, f).await.map(Json)
}

/// A part of the path; a bad one is a [`Fault`].
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Fault))]
pub(crate) struct Path<T>(pub(crate) T);

impl From<PathRejection> for Fault {
    fn from(e: PathRejection) -> Fault {
        Fault::invalid(e.body_text())
    }
}

/// One event.
pub(crate) fn as_event(data: &impl serde::Serialize) -> Event {
    Event::default()
        .json_data(data)
        .expect("what is told is plain data")
}

/// Server-sent events.
pub(crate) fn events(stream: ReceiverStream<Result<Event, Infallible>>) -> Response {
    Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(5)))
        .into_response()
}

/// What `look` finds, whenever it is another than before; at most four a second.
pub(crate) fn changes<H: ?Sized + Send + Sync + 'static, T>(
    handler: Arc<H>,
    look: fn(&H) -> T,
) -> Response
where
    T: serde::Serialize + PartialEq + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut last = None;
        loop {
            let Ok(now) = call(handler.clone(), move |h| Ok(look(h))).await else {
                return;
            };
            if last.as_ref() != Some(&now) {
                if sender.send(Ok(as_event(&now))).await.is_err() {
                    return;
                }
                last = Some(now);
            }
            if sender.is_closed() {
                return;
            }
            tokio::time::sleep(STATUS_EVERY).await;
        }
    });
    events(ReceiverStream::new(receiver))
}
