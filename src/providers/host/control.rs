//! Calls to a host over its control socket: one connection per call, an answer or a clear failure.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::daemon::identity::Identity;
use super::protocol::{self, Done, Status, StopHost, Upgrade};
use crate::providers::{self, ErrorKind};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A call did not bring what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no host answers at {}: {source}", socket.display())]
    Absent {
        /// Where it would listen.
        socket: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The connection broke, or the host is handing over to another worker: the same call may be made again.
    #[error("the host broke off: {0}")]
    Broken(String),
    /// It took longer than the caller waits; whether the call was made is not known.
    #[error("the host gave no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The host's own word.
    #[error(transparent)]
    Refused(#[from] providers::Error),
}

impl From<Error> for providers::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(error) => error,
            other => Self { kind: ErrorKind::Unavailable, message: other.to_string() },
        }
    }
}

/// The control side of the host that owns a directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    directory: PathBuf,
}

impl Control {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf() }
    }

    /// One call. The path begins after the version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Result<T, Error> {
        self.call_unversioned(method, &format!("/v{}{path}", protocol::VERSION), body, within).await
    }

    /// One call that hosts of all versions understand. The path is whole.
    async fn call_unversioned<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Result<T, Error> {
        let call = self.exchange(method, path, body);
        tokio::time::timeout(within, call).await.unwrap_or(Err(Error::Timeout(within)))
    }

    /// The same, made again while nobody answers or the connection breaks. Only for calls that may be repeated.
    ///
    /// # Errors
    /// The last one, when the time is over.
    pub async fn insist<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Result<T, Error> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let error = match self.call(method.clone(), path, body, left).await {
                Err(error @ (Error::Absent { .. } | Error::Broken(_))) => error,
                other => return other,
            };
            if left <= PAUSE {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Error> {
        let broken = |error: &dyn std::fmt::Display| Error::Broken(error.to_string());
        let socket = protocol::socket_path(&self.directory);
        let stream = UnixStream::connect(&socket).await.map_err(|source| Error::Absent { socket, source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // Ends with this call, however that ends.
        let _connection = tokio::task::JoinSet::from_iter([connection]);
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| broken(&error))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let again = answer.headers().contains_key("retry-after");
        let body = Limited::new(answer.into_body(), protocol::MAX_SNAPSHOT);
        let body = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| broken(&format!("its answer cannot be read: {error}; is it of another version?")));
        }
        let error: providers::Error = serde_json::from_slice(&body).unwrap_or_else(|_| providers::Error {
            kind: ErrorKind::Unavailable,
            message: format!("the host answered {status}"),
        });
        Err(if again { Error::Broken(error.message) } else { Error::Refused(error) })
    }

    /// What the host says of itself, whatever its version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<Status, Error> {
        self.call_unversioned(Method::GET, protocol::STATUS, None::<&()>, Duration::from_secs(5)).await
    }

    /// Has another worker take over, and waits until it serves. Works from and to any version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upgrade(&self, upgrade: Upgrade, within: Duration) -> Result<Status, Error> {
        let until = Instant::now() + within;
        let before = self.status().await?;
        let _: Done = self.call_unversioned(Method::POST, protocol::UPGRADE, Some(&upgrade), within).await?;
        while Instant::now() < until {
            tokio::time::sleep(PAUSE).await;
            match self.status().await {
                Ok(status) if status.pid != before.pid => return Ok(status),
                Ok(_) | Err(Error::Absent { .. } | Error::Broken(_) | Error::Timeout(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Timeout(within))
    }

    /// Ends the host, and waits until its processes are gone. A server that is connected to it
    /// leaves it so until the server or a host is started again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop(&self, stop: StopHost, within: Duration) -> Result<(), Error> {
        let until = Instant::now() + within;
        let status = self.status().await?;
        let of = |pid: u32| i32::try_from(pid).ok().and_then(|pid| Identity::of(pid).ok());
        let processes: Vec<Identity> = [Some(status.pid), status.keeper].into_iter().flatten().filter_map(of).collect();
        match self.call_unversioned::<Done>(Method::POST, protocol::STOP, Some(&stop), within).await {
            Ok(Done {}) | Err(Error::Broken(_)) => {}
            Err(error) => return Err(error),
        }
        while processes.iter().any(Identity::is_alive) {
            if Instant::now() > until {
                return Err(Error::Timeout(within));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}
