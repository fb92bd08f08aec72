//! The clients' end on an async runtime: one HTTP connection on the unix socket for each request.

use crate::fault::Fault;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Largest answer that is taken at once.
const ANSWER_BYTES: usize = 64 << 20;
/// Longest event.
const EVENT_BYTES: usize = 8 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon is running here ({path}): start it with `farwrite source run`")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("{path}: not allowed; run as the daemon's user or as root")]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the daemon's answer was cut off: {0}")]
    Io(#[from] io::Error),
    /// The daemon is of another version.
    #[error("the daemon gave an answer that this version does not understand: {0}")]
    Version(String),
    /// The daemon said no.
    #[error(transparent)]
    Failed(#[from] Fault),
}

impl ClientError {
    pub(crate) fn connecting(path: &Path, e: io::Error) -> ClientError {
        let path = path.to_owned();
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path }
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path },
            _ => ClientError::Io(e),
        }
    }
}

fn broken(e: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Io(io::Error::other(e))
}

/// How to reach a daemon. Holds no connection open.
#[derive(Clone, Debug)]
pub struct Connection {
    path: PathBuf,
}

impl Connection {
    /// Of the socket at `path`.
    pub fn new(path: &Path) -> Connection {
        Connection {
            path: path.to_owned(),
        }
    }

    /// Asks for something below `/v1`.
    pub async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T, ClientError> {
        read(self.send(Method::GET, name, Bytes::new()).await?).await
    }

    /// Asks for something below `/v1`, with a query.
    pub async fn query<T: DeserializeOwned>(
        &self,
        name: &str,
        query: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.get(&with_query(name, query)).await
    }

    /// Has something done.
    pub async fn post<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        read(self.send(Method::POST, name, body.into()).await?).await
    }

    /// What is not JSON: its length, if that is known, and its body.
    pub async fn raw(
        &self,
        name: &str,
        query: &impl Serialize,
    ) -> Result<(Option<u64>, Incoming), ClientError> {
        let response = self
            .send(Method::GET, &with_query(name, query), Bytes::new())
            .await?;
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()?.parse().ok());
        Ok((length, response.into_body()))
    }

    /// A text.
    pub async fn text(&self, name: &str) -> Result<String, ClientError> {
        let body = collect(self.send(Method::GET, name, Bytes::new()).await?).await?;
        String::from_utf8(body.to_vec()).map_err(|e| ClientError::Version(e.to_string()))
    }

    /// Server-sent events.
    pub async fn events<T: DeserializeOwned>(&self, name: &str) -> Result<Events<T>, ClientError> {
        let response = self.send(Method::GET, name, Bytes::new()).await?;
        Ok(Events {
            body: response.into_body(),
            buffer: BytesMut::new(),
            of: PhantomData,
        })
    }

    async fn send(
        &self,
        method: Method,
        name: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|e| ClientError::connecting(&self.path, e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends when the answer has been read, or is dropped.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/{name}"))
            .header(header::HOST, "farwrite")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = collect(response).await?;
        Err(match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => ClientError::Failed(fault),
            Err(_) => ClientError::Version(format!("HTTP status {status}")),
        })
    }
}

fn with_query(name: &str, query: &impl Serialize) -> String {
    let text = serde_urlencoded::to_string(query).expect("queries are flat");
    format!("{name}?{text}")
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    let body = collect(response).await?;
    serde_json::from_slice(&body).map_err(|e| ClientError::Version(e.to_string()))
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES);
    let body = body
        .collect()
        .await
        .map_err(|e| ClientError::Io(io::Error::other(e)))?;
    Ok(body.to_bytes())
}

/// Server-sent events, one by one.
pub struct Events<T> {
    body: Incoming,
    buffer: BytesMut,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Events<T> {
    /// The next one; `None` when the daemon has ended.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            while let Some(at) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let event = self.buffer.split_to(at);
                self.buffer.advance(2);
                // One event is one line of JSON; what begins with a colon is a sign of life.
                if let Some(data) = event.strip_prefix(b"data: ") {
                    return serde_json::from_slice(data)
                        .map(Some)
                        .map_err(|e| ClientError::Version(e.to_string()));
                }
            }
            if self.buffer.len() > EVENT_BYTES {
                return Err(ClientError::Version("an event without an end".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
