//! `farwrite vault serve` and `farwrite vault stdio`: lets sources in. One server per vault directory, which a lock sees to.

use super::address::host_name;
use super::daemon::{VaultDaemon, socket_path};
use super::destination::VaultDestination;
use super::presence::Presence;
use super::{init, upkeep};
use anyhow::{Context, bail};
use farwrite_control::Server as Control;
use farwrite_core::SourceName;
use farwrite_transfer::net::tls::{self, Fingerprint, Identity};
use farwrite_transfer::net::{Server, ServerOptions, Service, serve_stdio};
use farwrite_vault::Vault;
use farwrite_vault::vault::{load_toml, save_toml};
use farwrite_web::Metrics;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The port unless another is asked for.
const PORT: u16 = 9873;
/// Threads of the async runtime; what blocks has threads of its own.
const WORKERS: std::ops::RangeInclusive<usize> = 2..=4;

/// `VAULT_DIR/serve.toml`: where the vault was last served.
#[derive(Serialize, Deserialize)]
struct Served {
    listen: SocketAddr,
}

/// Where the vault was last served, else the default.
pub(super) fn last_listen(vault_dir: &Path) -> SocketAddr {
    let known = load_toml::<Served>(&vault_dir.join("serve.toml")).ok();
    known.map_or_else(|| SocketAddr::from(([0, 0, 0, 0], PORT)), |s| s.listen)
}

/// A vault about to be served, with the lock on it.
struct Serving {
    service: Arc<Service>,
    vault: Vault,
    presence: Arc<Presence>,
    tls: Identity,
    dir: PathBuf,
    _lock: File,
}

impl Serving {
    /// Takes the lock, and notes where `listener` listens, for the invites.
    fn prepare(
        vault: Vault,
        listener: impl FnOnce() -> anyhow::Result<TcpListener>,
    ) -> anyhow::Result<(Serving, TcpListener)> {
        let dir = vault.dir().to_owned();
        let lock = lock(&dir)?;
        let tls = Identity::load_or_create(&dir).context("this vault's key")?;
        let listener = listener()?;
        let served = Served {
            listen: listener.local_addr()?,
        };
        if let Err(e) = save_toml(&dir.join("serve.toml"), &served) {
            // Only invites would have used it; a full disk must not keep the sources' histories away.
            tracing::warn!(error = %e, "the port cannot be noted");
        }
        let destination = VaultDestination::new(vault.clone());
        let presence = destination.presence();
        let serving = Serving {
            service: service(destination),
            vault,
            presence,
            tls,
            dir,
            _lock: lock,
        };
        Ok((serving, listener))
    }

    fn fingerprint(&self) -> Fingerprint {
        self.tls.fingerprint()
    }

    async fn run(
        self,
        listener: TcpListener,
        shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let config = tls::server_config(&self.tls)?;
        Server::run(listener, config, self.service, shutdown).await;
        Ok(())
    }
}

/// Serves the vault until `shutdown` turns true or its sender is dropped. All sources' logs are closed when this returns,
/// unless one takes longer than the server waits.
pub(crate) async fn serve(
    vault_dir: PathBuf,
    listener: TcpListener,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (serving, listener) = Serving::prepare(init::open(&vault_dir)?, || Ok(listener))?;
    serving.run(listener, shutdown).await
}

fn service(destination: VaultDestination) -> Arc<Service> {
    Service::new(Arc::new(destination), ServerOptions::new(host_name()))
}

/// The daemon beside the server, and its control socket. Without the socket (on a full disk, or below a path that is too
/// long for one) backups are taken all the same, unless the GUI was asked for.
fn beside(
    serving: &Serving,
    listen: SocketAddr,
    ui: Option<String>,
    metrics: Option<&str>,
) -> anyhow::Result<(Arc<VaultDaemon>, Option<Control>, Option<Metrics>)> {
    let wanted = ui.is_some() || metrics.is_some();
    let show = ui.is_some();
    let at = ui.filter(|a| !a.is_empty());
    let daemon = VaultDaemon::start(serving.vault.clone(), listen, serving.presence.clone(), at)?;
    let path = socket_path(&serving.dir);
    let control = match Control::start_vault(&path, daemon.clone()) {
        Ok(control) => Some(control),
        Err(e) if wanted => return Err(e).with_context(|| path.display().to_string()),
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "no control socket: status shows less, and there is no GUI");
            None
        }
    };
    if show {
        println!("{}", daemon.ui_place()?.url);
    }
    let metrics = metrics.map(|address| {
        let told = || format!("--metrics {address}");
        let listener = TcpListener::bind(address).with_context(told)?;
        Metrics::start(listener, &path).with_context(told)
    });
    Ok((daemon, control, metrics.transpose()?))
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("serve.lock");
    let opened = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    let file = opened.with_context(|| path.display().to_string())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "{} is being served already by another process",
            dir.display()
        ),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// The command: serves in the foreground until SIGINT or SIGTERM.
pub(super) fn run(
    vault_dir: &Path,
    listen: &str,
    ui: Option<String>,
    metrics: Option<&str>,
    verify_every: Duration,
) -> anyhow::Result<()> {
    let (serving, listener) = Serving::prepare(init::open(vault_dir)?, || bind(listen))?;
    let runtime = runtime()?;
    let (daemon, control, metrics) = beside(&serving, listener.local_addr()?, ui, metrics)?;
    upkeep::start(Arc::downgrade(&daemon), serving.vault.clone(), verify_every)
        .context("the thread for verification")?;
    let (stop, shutdown) = watch::channel(false);
    let served = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (dir, fingerprint) = (serving.dir.clone(), serving.fingerprint());
        println!(
            "serving {} on {}, fingerprint {fingerprint}",
            dir.display(),
            listener.local_addr()?
        );
        let mut server = tokio::spawn(serving.run(listener, shutdown));
        notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            ended = &mut server => return ended?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        stop.send_replace(true);
        server.await?
    });
    drop(metrics);
    drop(control);
    daemon.stop();
    served
}

/// The command that ssh starts: one session on standard input and output, to which nothing else is written.
pub(super) fn stdio(vault_dir: &Path, name: SourceName) -> anyhow::Result<()> {
    let service = service(VaultDestination::new(init::open(vault_dir)?));
    let runtime = runtime()?;
    let end = runtime.block_on(serve_stdio(service, name));
    tracing::info!(%end, "session ended");
    // A thread may still be waiting for standard input.
    runtime.shutdown_background();
    Ok(())
}

fn bind(listen: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => {
            anyhow::anyhow!("cannot listen on {listen}: another program uses this port (choose one with --listen ADDR:PORT)")
        }
        ErrorKind::InvalidInput => anyhow::anyhow!("cannot listen on {listen:?}: ADDR:PORT is needed, such as 0.0.0.0:{PORT}"),
        _ => anyhow::anyhow!("cannot listen on {listen}: {e}"),
    })
}

fn runtime() -> anyhow::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(*WORKERS.start(), |n| n.get());
    let workers = cores.clamp(*WORKERS.start(), *WORKERS.end());
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build();
    built.context("cannot start the async runtime")
}

/// Tells the service manager, where there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        tracing::warn!(error = %e, "the service manager cannot be told");
    }
}
