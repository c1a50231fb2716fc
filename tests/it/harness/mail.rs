//! A real mail server whose mailbox is read back: aiosmtpd in a process of its own, with a
//! certificate of a root that only the trial knows.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::wait_for;

/// Names a Python that has aiosmtpd.
const PYTHON: &str = "GENNAKER_TEST_PYTHON";

fn candidates() -> Vec<String> {
    std::env::var(PYTHON).into_iter().chain(["python3".to_owned(), "/usr/bin/python3".to_owned()]).collect()
}

fn python() -> Result<&'static str, String> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let has = |python: &String| {
        let import = Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status();
        import.is_ok_and(|status| status.success())
    };
    let found = FOUND.get_or_init(|| candidates().into_iter().find(has));
    found
        .as_deref()
        .ok_or_else(|| format!("a Python with aiosmtpd, named by {PYTHON} or installed as python3-aiosmtpd"))
}

/// Whether a mail server can be started; what is missing if not.
pub fn mail_server() -> Result<(), String> {
    python()?;
    let openssl = Command::new("openssl").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if openssl.is_ok_and(|status| status.success()) { Ok(()) } else { Err("the command openssl".to_owned()) }
}

/// The user that may send mail, and the password.
pub const USER: &str = "cdmail";
pub const PASSWORD: &str = "p4ss-w0rd-of-mail";

/// A mail server and the directory with its certificates and mails.
pub struct MailServer {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl MailServer {
    /// A mailbox and certificates; the server is not started. Its port is free, or was just now.
    pub fn prepared() -> anyhow::Result<Self> {
        let name = format!("gennaker-mail-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir_all(dir.join("box"))?;
        certificates(&dir)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { dir, port, child: None })
    }

    /// One that takes what a user with a password sends over STARTTLS.
    pub async fn start(further: &[&str]) -> anyhow::Result<Self> {
        let mut server = Self::prepared()?;
        server.up(further).await?;
        Ok(server)
    }

    /// Starts the server on its port.
    pub async fn up(&mut self, further: &[&str]) -> anyhow::Result<()> {
        let python = python().map_err(anyhow::Error::msg)?;
        let mut command = tokio::process::Command::new(python);
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/mail/server.py"))
            .args(["--port", &self.port.to_string(), "--user", USER, "--password", PASSWORD])
            .arg("--directory")
            .arg(self.mailbox())
            .arg("--certificate")
            .arg(self.dir.join("leaf.pem"))
            .arg("--key")
            .arg(self.dir.join("leaf.key"))
            .args(further)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It writes down each refusal at length.
            .stderr(std::fs::File::create(self.dir.join("server.log"))?)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let port = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??;
        anyhow::ensure!(port.as_deref() == Some(self.port.to_string().as_str()), "the mail server says {port:?}");
        self.child = Some(child);
        Ok(())
    }

    /// Ends it; what it has stays.
    pub async fn down(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where each mail that it has taken is a file.
    pub fn mailbox(&self) -> PathBuf {
        self.dir.join("box")
    }

    /// The root of its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Flags of a Gennaker server that sends through this one, but for the password.
    pub fn flags(&self) -> Vec<String> {
        let ca = self.ca_file().display().to_string();
        [
            "--smtp-host=localhost",
            &format!("--smtp-port={}", self.port),
            &format!("--smtp-username={USER}"),
            "--smtp-from=Gennaker <gennaker@cd.example.org>",
            &format!("--smtp-ca-file={ca}"),
            "--public-url=https://cd.example.org",
            "--delivery-retry-seconds=1",
            "--delivery-retry-max-seconds=1",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// What it has taken, in that order.
    pub fn mails(&self) -> anyhow::Result<Vec<Value>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(self.mailbox())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        // Instants of files are coarse.
        paths.sort_by_key(|path| (path.metadata().and_then(|file| file.modified()).ok(), path.clone()));
        paths.iter().map(|path| Ok(serde_json::from_slice(&std::fs::read(path)?)?)).collect()
    }

    /// The mails, once there are so many.
    pub async fn received(&self, count: usize) -> anyhow::Result<Vec<Value>> {
        let what = format!("{count} mails");
        wait_for(&what, Duration::from_secs(60), || async { self.mails().ok().filter(|mails| mails.len() >= count) })
            .await
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A root, and a certificate of it for this machine.
fn certificates(dir: &Path) -> anyhow::Result<()> {
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for line in [
        format!("req -x509 {key} -keyout root.key -out root.pem -days 30 -subj /CN=gennaker-trial-root"),
        format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=localhost"),
        "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -out leaf.pem -days 30 -extfile names"
            .to_owned(),
    ] {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(dir).output()?;
        anyhow::ensure!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
