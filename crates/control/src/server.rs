//! The daemon's end: who may connect, and how much of what.

use crate::handler::Handler;
use crate::routes::router;
use crate::vault::VaultHandler;
use crate::vault_routes::vault_router;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::socket_peercred;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// Most connections at once; more wait.
const CONNECTIONS: usize = 64;
/// Threads for requests that block, besides those that wait their turn.
const BLOCKING: usize = 32;
/// A client that does not send its request's head for this long is dropped.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// At the end, how long requests under way may take.
const END_WITHIN: Duration = Duration::from_secs(1);

/// A listening socket; removed when dropped.
pub struct Server {
    path: PathBuf,
    runtime: Option<Runtime>,
}

impl Server {
    /// Listens at `path`, replacing a socket that a dead daemon left. The caller holds the daemon's lock.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> io::Result<Server> {
        Server::serve(path, router(handler))
    }

    /// The same for a vault's daemon.
    pub fn start_vault(path: &Path, handler: Arc<dyn VaultHandler>) -> io::Result<Server> {
        Server::serve(path, vault_router(handler))
    }

    fn serve(path: &Path, router: Router) -> io::Result<Server> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING)
            .thread_name("control")
            .enable_all()
            .build()?;
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, router));
        Ok(Server {
            path: path.to_owned(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(END_WITHIN);
        }
        let _ = fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, router: Router) {
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
                // Out of descriptors, for example: that passes.
                tracing::warn!(error = %e, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !allowed(&stream) {
            continue;
        }
        let service = service.clone();
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(e) = served.await {
                tracing::debug!(error = %e, "control connection");
            }
            drop(place);
        });
    }
}

/// The daemon's own user, or root.
fn allowed(stream: &UnixStream) -> bool {
    let me = rustix::process::geteuid();
    socket_peercred(stream).is_ok_and(|c| c.uid == me || c.uid.is_root())
}
