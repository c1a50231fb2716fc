//! One look at an instance: an HTTP request, a connection, or a command.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::model::{HttpProbe, Probe};
use crate::providers::host::shim::{self, InstanceDirectory, Start};

/// How much of an answer's body is looked at.
const BODY: usize = 64 * 1024;

/// Looks once. Ok and Err both carry what was seen, for people.
///
/// # Errors
/// What was seen when the instance does not pass, a timeout included.
pub async fn probe(
    probe: &Probe,
    address: IpAddr,
    start: &Start,
    directory: &InstanceDirectory,
    timeout: Duration,
) -> Result<String, String> {
    let port = match probe {
        Probe::Http(HttpProbe { port: Some(port), .. }) => *port,
        _ => start.port,
    };
    let address = SocketAddr::new(address, port);
    let seen = async {
        match probe {
            Probe::Http(http) => self::http(http, address).await,
            Probe::Tcp {} => match TcpStream::connect(address).await {
                Ok(_) => Ok(format!("{address} accepts connections")),
                Err(error) => Err(format!("cannot connect to {address}: {error}")),
            },
            Probe::Command { command } => self::command(command, start, directory).await,
        }
    };
    tokio::time::timeout(timeout, seen)
        .await
        .unwrap_or_else(|_| Err(format!("{} gave no answer within {} ms", name(probe), timeout.as_millis())))
}

fn name(probe: &Probe) -> String {
    match probe {
        Probe::Http(http) => format!("GET {}", http.path),
        Probe::Tcp {} => "the connection".to_owned(),
        Probe::Command { .. } => "the command".to_owned(),
    }
}

async fn http(probe: &HttpProbe, address: SocketAddr) -> Result<String, String> {
    let path = if probe.path.starts_with('/') { probe.path.clone() } else { format!("/{}", probe.path) };
    let failed = |error: &dyn std::fmt::Display| format!("GET {path} failed: {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // Ends with the answer: the connection's task is dropped with this call.
    let mut connection = tokio::task::JoinSet::from_iter([connection]);
    let request = Request::get(path.as_str())
        .header("host", address.to_string())
        .header("user-agent", "gennaker-health-check")
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let status = answer.status().as_u16();
    if !probe.statuses.contains(&status) {
        return Err(format!("GET {path} answered {status}"));
    }
    if let Some(wanted) = &probe.body_contains {
        let body = Limited::new(answer.into_body(), BODY);
        let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
        if !String::from_utf8_lossy(&body).contains(wanted.as_str()) {
            return Err(format!("GET {path} answered {status} without the expected text"));
        }
    }
    connection.abort_all();
    Ok(format!("GET {path} answered {status}"))
}

async fn command(command: &[String], start: &Start, directory: &InstanceDirectory) -> Result<String, String> {
    let Some((program, arguments)) = command.split_first() else { return Err("the command is empty".to_owned()) };
    let environment = shim::environment(start, directory).map_err(|error| format!("{error:#}"))?;
    let user = shim::user(start.launch.run_as.as_deref()).map_err(|error| format!("{error:#}"))?;
    let path = program.strip_prefix("./").map_or_else(|| program.into(), |rest| start.directory.join(rest));
    let mut process = tokio::process::Command::new(path);
    process
        .args(arguments)
        .current_dir(&start.directory)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(user) = user {
        process.gid(user.gid.as_raw()).uid(user.uid.as_raw());
    }
    let mut child = process.spawn().map_err(|error| format!("cannot run {program}: {error}"))?;
    let guard = KillGroup(child.id().and_then(|pid| i32::try_from(pid).ok()));
    let status = child.wait().await.map_err(|error| format!("{program}: {error}"))?;
    drop(guard);
    if status.success() { Ok(format!("{program} ended with 0")) } else { Err(format!("{program}: {status}")) }
}

/// What the command started goes with it, also when the timeout drops us.
struct KillGroup(Option<i32>);

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
