//! Ways to reach a vault. Makes one connection when asked; when to ask again is the caller's business.

use super::CONNECT_WITHIN;
use super::ssh::{self, SshTarget, StderrTail};
use super::tls::{self, Fingerprint, Identity};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A stream to a vault.
pub trait IoStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> IoStream for T {}

/// Any stream to a vault.
pub type BoxStream = Box<dyn IoStream>;

/// Makes streams: for tests, or for transports that are not known here.
pub type CustomDial =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send>> + Send + Sync>;

/// A vault behind TLS.
#[derive(Clone, Debug)]
pub struct TlsTarget {
    /// `host:port` each, tried in this order.
    pub addresses: Vec<String>,
    /// The only key accepted.
    pub vault: Fingerprint,
    /// This side's key.
    pub identity: Identity,
}

/// How to reach a vault.
#[derive(Clone)]
pub enum Dialer {
    /// TLS 1.3 over TCP.
    Tls(TlsTarget),
    /// A vault started at the other end of ssh.
    Ssh(SshTarget),
    /// Whatever this makes.
    Custom(CustomDial),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dialer::Tls(t) => t.fmt(f),
            Dialer::Ssh(t) => t.fmt(f),
            Dialer::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// A connection that stands.
pub(super) struct Dialed {
    pub(super) stream: BoxStream,
    /// What ssh says on the side.
    stderr: Option<StderrTail>,
}

impl Dialed {
    /// Adds to the reason for an end what ssh has said; waits a little for it.
    pub(super) async fn explain(stderr: Option<StderrTail>, why: String) -> String {
        match stderr {
            Some(tail) => match tail.finish().await {
                said if said.is_empty() => why,
                said => format!("{why}; ssh says: {said}"),
            },
            None => why,
        }
    }

    /// The stream, and what [`Dialed::explain`] wants.
    pub(super) fn split(self) -> (BoxStream, Option<StderrTail>) {
        (self.stream, self.stderr)
    }
}

impl Dialer {
    /// Connects, within [`CONNECT_WITHIN`] per address.
    pub(super) async fn dial(&self) -> Result<Dialed, String> {
        match self {
            Dialer::Tls(target) => {
                let mut failures = Vec::new();
                for address in &target.addresses {
                    match dial_tls(target, address).await {
                        Ok(stream) => {
                            return Ok(Dialed {
                                stream,
                                stderr: None,
                            });
                        }
                        Err(e) => failures.push(format!("{address}: {e}")),
                    }
                }
                if failures.is_empty() {
                    failures.push("no address of the vault is known".into());
                }
                Err(failures.join("; "))
            }
            Dialer::Ssh(target) => {
                let (stream, tail) = ssh::start(target).map_err(|e| format!("ssh: {e}"))?;
                Ok(Dialed {
                    stream: Box::new(stream),
                    stderr: Some(tail),
                })
            }
            Dialer::Custom(dial) => match timeout(CONNECT_WITHIN, dial()).await {
                Ok(Ok(stream)) => Ok(Dialed {
                    stream,
                    stderr: None,
                }),
                Ok(Err(e)) => Err(e.to_string()),
                Err(_) => Err("no connection in time".into()),
            },
        }
    }
}

async fn dial_tls(target: &TlsTarget, address: &str) -> Result<BoxStream, String> {
    let config = tls::client_config(&target.identity, target.vault).map_err(|e| e.to_string())?;
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        tokio_rustls::TlsConnector::from(config)
            .connect(tls::server_name(), tls::buffered(stream))
            .await
    };
    match timeout(CONNECT_WITHIN, connect).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(e)) => Err(explain_tls(e, target)),
        Err(_) => Err("no connection in time".into()),
    }
}

/// A wrong key deserves plain words.
fn explain_tls(e: io::Error, target: &TlsTarget) -> String {
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::ApplicationVerificationFailure,
        )) => format!(
            "what answers there does not hold the vault's key {}: not connecting",
            target.vault
        ),
        _ => e.to_string(),
    }
}
