//! The commands' end: the same requests, for threads that may block.

use crate::connection::{ClientError, Connection};
use crate::types::{Activity, Done, Flush, SetInterval, Status, Switch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A daemon to ask. Must not be used on an async runtime's thread.
pub struct Client {
    connection: Connection,
    runtime: Runtime,
}

impl Client {
    /// Of the socket at `path`; an error if nobody answers there.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        UnixStream::connect(path).map_err(|e| ClientError::connecting(path, e))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Client {
            connection: Connection::new(path),
            runtime,
        })
    }

    /// Asks for something below `/v1`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T, ClientError> {
        self.runtime.block_on(self.connection.get(name))
    }

    /// Has something done.
    pub fn post<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.runtime.block_on(self.connection.post(name, body))
    }

    /// What is protected and how safe it is.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("status")
    }

    /// Returns once every change made before is durable in every vault and stands in its mirror.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        let timeout_ms = timeout.map(|t| t.as_millis() as u64);
        self.post("flush", &Flush { timeout_ms }).map(|Done {}| ())
    }

    /// The automatic-backup switch.
    pub fn switch(&self, on: bool) -> Result<(), ClientError> {
        self.switch_directories(on, &[])
    }

    /// The same for some directories only; none: all.
    pub fn switch_directories(&self, on: bool, directories: &[String]) -> Result<(), ClientError> {
        let directories = directories.to_vec();
        self.post("switch", &Switch { on, directories })
            .map(|Done {}| ())
    }

    /// Changes the scheduling interval until the daemon ends.
    pub fn set_interval(&self, interval: &str) -> Result<(), ClientError> {
        let interval = interval.to_owned();
        self.post("interval", &SetInterval { interval })
            .map(|Done {}| ())
    }

    /// The daemon takes up its configuration file as it is now.
    pub fn reload(&self) -> Result<(), ClientError> {
        self.post("reload", &()).map(|Done {}| ())
    }

    /// Calls `f` with everything that happens until it returns false or the daemon ends.
    pub fn watch(&self, mut f: impl FnMut(Activity) -> bool) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let mut events = self.connection.events("events/activity").await?;
            while let Some(activity) = events.next().await? {
                if !f(activity) {
                    break;
                }
            }
            Ok(())
        })
    }
}
