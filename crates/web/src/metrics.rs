//! Numbers for a monitoring system, on an address of their own, to whoever asks there. Never anything but numbers.

use crate::gate::is_this_machine;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use farwrite_control::Connection;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use tokio::runtime::Runtime;

/// `/metrics`, served until this is dropped.
pub struct Metrics {
    runtime: Option<Runtime>,
}

impl Metrics {
    /// Serves the numbers of the daemon whose control socket is at `socket`.
    pub fn start(listener: TcpListener, socket: &Path) -> io::Result<Metrics> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("metrics")
            .enable_all()
            .build()?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .with_state(Connection::new(socket));
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(crate::server::accept(listener, router));
        Ok(Metrics {
            runtime: Some(runtime),
        })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn metrics(State(control): State<Connection>, headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    if !host.is_some_and(is_this_machine) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    match control.text("metrics").await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => (StatusCode::BAD_GATEWAY, e.to_string()).into_response(),
    }
}
