//! A real `gennaker serve` in a directory of its own, which can be killed and started again. All
//! that it started is ended with it.

use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::client::Client;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::ports::Ports;
use super::wait_for;

/// The binary under test.
pub fn gennaker() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gennaker"))
}

/// How to start a server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub database_url: Option<String>,
    /// Further flags.
    pub flags: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// The flags make it speak TLS.
    pub tls: bool,
    /// Instead of one in the server's own directory.
    pub data_dir: Option<PathBuf>,
    /// The same for the host: several servers of a machine may share one.
    pub host_dir: Option<PathBuf>,
    /// The token of `admin`, where the database has one already.
    pub token: Option<String>,
    /// It leads a process group of its own, as a command that a shell starts.
    pub own_group: bool,
}

/// A server, and the directory with its data and host.
pub struct Server {
    dir: PathBuf,
    ports: Ports,
    options: Options,
    child: Option<Child>,
    token: String,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    what: String,
    status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Itself, if it ended with that status.
    pub fn with_status(self, status: i32) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.status == Some(status),
            "{} ended with {:?}, not {status}\n{}\n{}",
            self.what,
            self.status,
            self.out,
            self.err
        );
        Ok(self)
    }

    /// Its one document.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{} gave no JSON: {}", self.what, self.out))
    }
}

/// From the start of the process to its first answer.
const START_MAX: Duration = Duration::from_secs(60);

impl Server {
    /// Starts one with SQLite.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts one.
    pub async fn start_with(options: Options) -> anyhow::Result<Self> {
        let name = format!("gennaker-it-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir(&dir)?;
        let mut server = Self { dir, ports: Ports::take()?, options, child: None, token: String::new() };
        let shown = server.up().await?;
        server.token = shown.or_else(|| server.options.token.clone()).context("the first start shows a token")?;
        Ok(server)
    }

    /// Starts another with the same settings, and so on the same database; it knows the same tokens. On
    /// one machine both use one host, so the other one is to end first.
    pub async fn start_beside(other: &Self) -> anyhow::Result<Self> {
        let name = format!("gennaker-it-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir(&dir)?;
        let token = other.token.clone();
        let options = Options { host_dir: Some(other.host_dir()), ..other.options.clone() };
        let mut server = Self { dir, ports: Ports::take()?, options, child: None, token };
        anyhow::ensure!(server.up().await?.is_none(), "the database has a token already");
        Ok(server)
    }

    /// From the next start on it serves another database, or from another directory.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Starts the process; the token that it shows, if it does.
    async fn up(&mut self) -> anyhow::Result<Option<String>> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = self.command();
        command
            .arg("serve")
            .args(["--listen", &format!("127.0.0.1:{}", self.ports.server())])
            .args(["--port-range", &self.ports.instances()])
            .arg("--artifact-root")
            .arg(gennaker().parent().context("the binary is in a directory")?)
            .arg("--artifact-root")
            .arg(&self.dir)
            .args(&self.options.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        if self.options.own_group {
            command.process_group(0);
        }
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        // Before anything is waited for: who stops waiting has it still.
        self.child = Some(child);
        let mut lines = BufReader::new(stdout).lines();
        let mut token = None;
        let mut shown = false;
        let reading = async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, text)) = line.split_once("#token=") {
                    token = text.starts_with("gnk_").then(|| text.trim().to_owned());
                    shown = true;
                    break;
                }
            }
            anyhow::Ok(())
        };
        let read = tokio::time::timeout(START_MAX, reading).await;
        read.with_context(|| format!("no address within {START_MAX:?}\n{}", self.log()))??;
        anyhow::ensure!(shown, "the server ended at its start\n{}", self.log());
        // What comes later is read away, so that the server never writes to a closed pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        if self.options.tls {
            // The trial has the certificate.
            return Ok(token);
        }
        let client = self.client();
        wait_for("the first answer", START_MAX, || {
            let client = client.clone();
            async move { client.post("{ __typename }", &serde_json::json!({})).await.ok() }
        })
        .await
        .with_context(|| self.log())?;
        Ok(token)
    }

    /// A command of the binary with this server's directories.
    pub fn command(&self) -> Command {
        let mut command = Command::new(gennaker());
        command
            .env("GENNAKER_DATA_DIR", self.data_dir())
            .env("GENNAKER_HOST_DIR", self.host_dir())
            // Not the settings of whoever runs the trials.
            .env("GENNAKER_CONFIG", "/dev/null")
            .env_remove("DATABASE_URL")
            .env_remove("GENNAKER_DATABASE_URL")
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        if let Some(url) = &self.options.database_url {
            command.env("DATABASE_URL", url);
        }
        command
    }

    /// A command of the binary that speaks to this server as `admin`, with nothing of its directories.
    pub fn remote_command(&self) -> Command {
        let mut command = Command::new(gennaker());
        command
            .env("GENNAKER_SERVER", self.url())
            .env("GENNAKER_TOKEN", &self.token)
            .env_remove("GENNAKER_TOKEN_FILE")
            .env_remove("GENNAKER_DATA_DIR")
            .env_remove("GENNAKER_HOST_DIR")
            .env_remove("DATABASE_URL")
            .env_remove("GENNAKER_DATABASE_URL")
            .stdin(Stdio::null());
        command
    }

    /// Runs such a command to its end.
    pub async fn gennaker(&self, args: &[&str]) -> anyhow::Result<Done> {
        self.gennaker_with(args, "").await
    }

    /// The same with a standard input.
    pub async fn gennaker_with(&self, args: &[&str], input: &str) -> anyhow::Result<Done> {
        use tokio::io::AsyncWriteExt;
        let mut command = self.remote_command();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(180), child.wait_with_output())
            .await
            .with_context(|| format!("gennaker {} did not end", args.join(" ")))??;
        Ok(Done {
            what: format!("gennaker {}", args.join(" ")),
            status: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    pub fn url(&self) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports.server())
    }

    /// A client with the token of `admin`.
    pub fn client(&self) -> Client {
        let token = (!self.token.is_empty()).then_some(self.token.as_str());
        Client::new(&self.url(), token).expect("a client needs nothing")
    }

    /// The token of `admin`.
    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.dir.join("data"))
    }

    pub fn host_dir(&self) -> PathBuf {
        self.options.host_dir.clone().unwrap_or_else(|| self.dir.join("host"))
    }

    /// How to speak with its host directly.
    pub fn host_provider(&self) -> anyhow::Result<gennaker::providers::host::client::Options> {
        Ok(gennaker::providers::host::client::Options {
            directory: self.host_dir(),
            binary: gennaker().to_owned(),
            artifact_roots: vec![self.dir.clone()],
            ports: self.ports.instances().parse().map_err(anyhow::Error::msg)?,
            ..gennaker::providers::host::client::Options::new(&self.host_dir())?
        })
    }

    pub const fn load_balancer_ports(&self) -> (u16, u16) {
        self.ports.load_balancers()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// The end of the server's log.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// `kill -9`, and the end of the process.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the server runs")?;
        child.start_kill()?;
        let status = child.wait().await?;
        anyhow::ensure!(
            status.signal() == Some(9),
            "the server had ended before it was killed: {status}\n{}",
            self.log()
        );
        Ok(())
    }

    /// Starts it again on the same data, host and port.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let token = self.up().await?;
        anyhow::ensure!(token.is_none(), "a second start shows no token");
        Ok(())
    }

    /// Asks it to end, as Ctrl-C does; its exit status.
    pub async fn stop(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.signal(Signal::SIGINT)?;
        self.ended(Duration::from_secs(60)).await
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()?), signal)?)
    }

    /// Its process.
    pub fn pid(&self) -> anyhow::Result<i32> {
        Ok(i32::try_from(self.child.as_ref().and_then(Child::id).context("the server runs")?)?)
    }

    /// The exit status of a process that was asked to end.
    pub async fn ended(&mut self, within: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("the server runs")?;
        let ended = tokio::time::timeout(within, child.wait()).await;
        Ok(ended.with_context(|| format!("the server has not ended within {within:?}\n{}", self.log()))??)
    }

    /// Processes whose command line or working directory names this server's directory.
    pub fn processes(&self) -> Vec<(i32, String)> {
        processes_of(&self.dir)
    }

    /// The host's worker: what owns listeners and instances.
    pub fn host_worker(&self) -> Option<i32> {
        let status = self.command().args(["host", "status"]).output().ok()?;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        i32::try_from(status["pid"].as_i64()?).ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.start_kill();
            // A server that still lives would start its host again.
            for _ in 0..500 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.command().args(["host", "stop", "--instances"]).stdin(Stdio::null()).output();
        for (pid, _) in self.processes() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if std::thread::panicking() || std::env::var_os("GENNAKER_TEST_KEEP").is_some() {
            eprintln!("left behind: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Processes whose command line or working directory names the directory.
pub fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let there = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            (there || command.contains(dir.to_str()?)).then_some((pid, command))
        })
        .collect()
}
