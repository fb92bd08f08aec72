//! The commands' end.

use crate::types::{Activity, Request, Response, Status};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

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
    Version(serde_json::Error),
    /// The daemon said no.
    #[error("{0}")]
    Failed(String),
}

/// A connection to the daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let path_buf = || path.to_owned();
        let stream = UnixStream::connect(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path_buf() }
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path: path_buf() },
            _ => ClientError::Io(e),
        })?;
        Ok(Client {
            reader: BufReader::new(stream),
        })
    }

    /// One request, one answer. [`Response::Failed`] comes as an error.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.send(request)?;
        match self.receive()? {
            Some(Response::Failed { why }) => Err(ClientError::Failed(why)),
            Some(r) => Ok(r),
            None => Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// [`Request::Status`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status)? {
            Response::Status(s) => Ok(*s),
            other => Err(ClientError::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    /// [`Request::Watch`]: calls `f` with everything that happens until it returns false or the daemon ends.
    pub fn watch(mut self, mut f: impl FnMut(Activity) -> bool) -> Result<(), ClientError> {
        self.send(&Request::Watch)?;
        while let Some(r) = self.receive()? {
            if let Response::Activity(a) = r
                && !f(a)
            {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).expect("requests are plain data");
        line.push(b'\n');
        Ok(self.reader.get_mut().write_all(&line)?)
    }

    fn receive(&mut self) -> Result<Option<Response>, ClientError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line)
            .map(Some)
            .map_err(ClientError::Version)
    }
}
