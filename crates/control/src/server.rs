//! The daemon's end.

use crate::types::{Activity, Request, Response};
use rustix::net::sockopt::socket_peercred;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Longest request line.
const REQUEST_BYTES: u64 = 64 << 10;
/// Most connections at once.
const CONNECTIONS: usize = 64;
/// A client that does not take its answer for this long is dropped.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// What the daemon does with a request.
pub trait Handler: Send + Sync {
    /// Answers one request; may block. `gone` says whether the client has hung up.
    fn handle(&self, request: Request, gone: &dyn Fn() -> bool) -> Response;
    /// Blocks for the next activity after those seen before by this watcher; `None` ends the watch.
    fn watch(&self) -> Box<dyn Iterator<Item = Option<Activity>> + Send>;
}

/// A listening socket; removed when dropped.
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Listens at `path`, replacing a socket that a dead daemon left. The caller holds the daemon's lock.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> io::Result<Server> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, open) = (stop.clone(), Arc::new(AtomicUsize::new(0)));
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming() {
                    if stopping.load(Ordering::Acquire) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS || !allowed(&stream) {
                        open.fetch_sub(1, Ordering::AcqRel);
                        continue;
                    }
                    let (handler, count) = (handler.clone(), open.clone());
                    let spawned = std::thread::Builder::new()
                        .name("control-client".into())
                        .spawn(move || {
                            // A client that went away needs no answer.
                            let _ = serve(&stream, &*handler);
                            count.fetch_sub(1, Ordering::AcqRel);
                        });
                    if spawned.is_err() {
                        open.fetch_sub(1, Ordering::AcqRel);
                    }
                }
            })?;
        Ok(Server {
            path: path.to_owned(),
            stop,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the accept call; if that fails the thread ends with the process.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

/// The daemon's own user, or root.
fn allowed(stream: &UnixStream) -> bool {
    let me = rustix::process::geteuid();
    socket_peercred(stream).is_ok_and(|c| c.uid == me || c.uid.is_root())
}

fn serve(stream: &UnixStream, handler: &dyn Handler) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_WITHIN))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(REQUEST_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let gone = || hung_up(stream);
        match serde_json::from_str::<Request>(&line) {
            Ok(Request::Watch) => return watch(stream, handler),
            Ok(request) => send(stream, &handler.handle(request, &gone))?,
            Err(e) => {
                return send(
                    stream,
                    &Response::Failed {
                        why: format!("not a request: {e}"),
                    },
                );
            }
        }
    }
}

fn watch(stream: &UnixStream, handler: &dyn Handler) -> io::Result<()> {
    for activity in handler.watch() {
        match activity {
            Some(a) => send(stream, &Response::Activity(a))?,
            None if hung_up(stream) => return Ok(()),
            None => {}
        }
    }
    Ok(())
}

fn hung_up(stream: &UnixStream) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut byte[..], flags), Ok((0, _)))
}

fn send(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    stream.write_all(&line)
}
