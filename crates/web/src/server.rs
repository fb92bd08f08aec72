//! The listener, its bounds, and which address is which page.

use crate::gate::{Gate, Kind, guard};
use crate::{assets, live, pages, vault};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use farwrite_control::Connection;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// Most connections at once; more wait.
const CONNECTIONS: usize = 256;
/// A browser that does not send its request's head for this long is dropped.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_BYTES: usize = 32 << 10;
/// Longest form.
const FORM_BYTES: usize = 256 << 10;
/// At the end, how long answers under way may take.
const END_WITHIN: Duration = Duration::from_secs(1);

/// The GUI, served until this is dropped.
pub struct Ui {
    gate: Arc<Gate>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

/// What pages work with.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) control: Connection,
    pub(crate) gate: Arc<Gate>,
    /// Live views at once.
    pub(crate) live: Arc<Semaphore>,
}

impl Ui {
    /// Serves the GUI of the daemon whose control socket is at `socket`.
    pub fn start(listener: TcpListener, socket: &Path) -> io::Result<Ui> {
        Ui::serve(listener, socket, Kind::Source)
    }

    /// Serves the GUI of the vault's daemon whose control socket is at `socket`.
    pub fn start_vault(listener: TcpListener, socket: &Path) -> io::Result<Ui> {
        Ui::serve(listener, socket, Kind::Vault)
    }

    fn serve(listener: TcpListener, socket: &Path, kind: Kind) -> io::Result<Ui> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ui")
            .enable_all()
            .build()?;
        let gate = Arc::new(Gate::new(address.port(), kind));
        let site = Site {
            control: Connection::new(socket),
            gate: gate.clone(),
            live: Arc::new(Semaphore::new(live::VIEWS)),
        };
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, router(site)));
        Ok(Ui {
            gate,
            address,
            runtime: Some(runtime),
        })
    }

    /// Where it is.
    pub fn address(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Where it is, with a token that lets one browser in, once.
    pub fn entrance(&self) -> String {
        format!("{}enter?token={}", self.address(), self.gate.token())
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(END_WITHIN);
        }
    }
}

/// Every page is behind the gate, whatever it is about.
fn router(site: Site) -> Router {
    let gate = site.gate.clone();
    let pages = match gate.kind {
        Kind::Source => of_source(),
        Kind::Vault => vault::pages(),
    };
    pages
        .route("/enter", get(pages::enter))
        .route("/assets/{name}", get(assets::serve))
        .fallback(pages::nothing)
        .layer(DefaultBodyLimit::max(FORM_BYTES))
        .layer(from_fn_with_state(gate, guard))
        .with_state(site)
}

fn of_source() -> Router<Site> {
    Router::new()
        .route("/", get(pages::overview::page))
        .route("/switch", post(pages::overview::switch))
        .route("/live/overview", get(live::overview))
        .route("/activity", get(pages::activity::page))
        .route("/live/activity", get(live::activity))
        .route("/history", get(pages::history::tree))
        .route("/history/file", get(pages::file::page))
        .route("/history/image", get(pages::file::image))
        .route("/history/download", get(pages::file::download))
        .route("/history/mark", post(pages::history::mark))
        .route("/history/restore", post(pages::restore::begin))
        .route("/history/restore/{id}", get(pages::restore::progress))
        .route(
            "/protect",
            get(pages::protect::page).post(pages::protect::add),
        )
        .route("/protect/preview", post(pages::protect::preview))
        .route("/protect/remove", post(pages::protect::remove))
        .route(
            "/settings",
            get(pages::settings::page).post(pages::settings::change),
        )
        .route("/settings/test", post(pages::settings::test))
}

/// Serves connections, a bounded number at once.
pub(crate) async fn accept(listener: tokio::net::TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let service = TowerToHyperService::new(router);
    loop {
        let place = room
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!(error = %e, "the GUI's listener");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(e) = served.await {
                tracing::debug!(error = %e, "connection of a browser");
            }
            drop(place);
        });
    }
}
