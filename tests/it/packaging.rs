//! What is needed to run it for good: the units, what the processes say to systemd, and the help.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Options, Outcome, Server, gennaker, processes_of, trial, trial_with, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with("packaging", "systemd_finds_nothing_wrong_with_the_units", analyzer(), units_verify),
        trial("packaging", "units_are_written_and_what_others_changed_is_not_overwritten", units_written),
        trial("packaging", "the_server_says_when_it_is_ready_that_it_lives_and_that_it_ends", server_speaks),
        trial("packaging", "a_service_goes_on_with_the_keeper_that_a_worker_has_started", keeper_speaks),
        trial("packaging", "a_host_that_is_a_service_is_not_the_servers_to_start", service_left_alone),
        trial("packaging", "a_machine_without_certificates_serves_and_asks", without_certificates),
        trial("packaging", "the_help_of_every_command_fits_80_columns_and_says_what_it_needs_to", help),
    ]
}

fn analyzer() -> Result<(), String> {
    let found = Command::new("systemd-analyze").arg("--version").output().is_ok_and(|asked| asked.status.success());
    if found { Ok(()) } else { Err("the command `systemd-analyze` (systemd)".to_owned()) }
}

/// Gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!("gennaker-it-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let dir = std::env::temp_dir().canonicalize()?.join(name);
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ =
            Command::new(gennaker()).args(["host", "stop", "--instances", "--dir"]).arg(self.0.join("host")).output();
        for (pid, _) in processes_of(&self.0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn written(dir: &Path, flags: &[&str]) -> anyhow::Result<std::process::Output> {
    Ok(Command::new(gennaker()).args(["systemd", "--dir"]).arg(dir).args(flags).output()?)
}

async fn units_verify() -> Outcome {
    for flags in [&[][..], &["--user"]] {
        let scratch = Scratch::new()?;
        let made = written(&scratch.0, flags)?;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for unit in ["gennaker-host.service", "gennaker.service"] {
            let mut verify = Command::new("systemd-analyze");
            verify.arg("verify").arg("--man=no").args(flags).arg(scratch.0.join(unit));
            verify.env("XDG_RUNTIME_DIR", &scratch.0);
            let verified = verify.output()?;
            let said = String::from_utf8_lossy(&verified.stderr).into_owned();
            // A systemd before 254 does not know the subgroup, and goes on without; complaints about
            // other units of this machine are not about ours.
            let ours: Vec<_> =
                said.lines().filter(|line| line.contains("gennaker") && !line.contains("DelegateSubgroup")).collect();
            anyhow::ensure!(ours.is_empty(), "{unit} {flags:?}: {said}");
            anyhow::ensure!(verified.status.success() || !said.is_empty(), "{unit} {flags:?}: {}", verified.status);
        }
    }
    Ok(())
}

async fn units_written() -> Outcome {
    let scratch = Scratch::new()?;
    let printed = Command::new(gennaker()).arg("systemd").output()?;
    let printed = String::from_utf8(printed.stdout)?;
    let binary = gennaker().canonicalize()?;
    for line in
        [format!("ExecStart={} serve", binary.display()), format!("ExecReload={} host upgrade", binary.display())]
    {
        anyhow::ensure!(printed.contains(&line), "{line}: {printed}");
    }
    anyhow::ensure!(written(&scratch.0, &[])?.status.success());
    let unit = scratch.0.join("gennaker.service");
    anyhow::ensure!(printed.contains(&std::fs::read_to_string(&unit)?), "what is written is what is printed");
    let again = written(&scratch.0, &[])?;
    anyhow::ensure!(String::from_utf8_lossy(&again.stdout).contains("is there already"));
    std::fs::write(&unit, "[Service]\nExecStart=/bin/true\n")?;
    let refused = written(&scratch.0, &[])?;
    anyhow::ensure!(refused.status.code() == Some(2), "{}", refused.status);
    anyhow::ensure!(String::from_utf8_lossy(&refused.stderr).contains("gennaker.service"));
    anyhow::ensure!(std::fs::read_to_string(&unit)?.contains("/bin/true"));
    anyhow::ensure!(written(&scratch.0, &["--force"])?.status.success());
    anyhow::ensure!(std::fs::read_to_string(&unit)?.contains("gennaker"));
    Ok(())
}

/// What arrives at a socket of systemd's kind, until one message has a line.
async fn heard(socket: &UnixDatagram, line: &str) -> anyhow::Result<String> {
    socket.set_nonblocking(true)?;
    wait_for(&format!("`{line}` at the socket"), Duration::from_secs(60), || async {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        text.lines().any(|said| said == line).then_some(text)
    })
    .await
}

async fn server_speaks() -> Outcome {
    let scratch = Scratch::new()?;
    let path = scratch.0.join("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    let mut server = tokio::process::Command::new(gennaker());
    server
        .args(["serve", "--listen", "127.0.0.1:0", "--shutdown-grace-seconds", "600", "--data-dir"])
        .arg(scratch.0.join("data"))
        .arg("--host-dir")
        .arg(scratch.0.join("host"))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .env_remove("DATABASE_URL")
        .env_remove("GENNAKER_DATABASE_URL")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let server = server.spawn()?;
    let ready = heard(&socket, "READY=1").await?;
    anyhow::ensure!(ready.contains("STATUS=serves http://127.0.0.1:"), "{ready}");
    heard(&socket, "WATCHDOG=1").await?;
    let pid = server.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let stopping = heard(&socket, "STOPPING=1").await?;
    // As long as the settings allow; the unit's own time is enough for what they are by themselves.
    let micros = stopping.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
    let seconds: u64 = micros.unwrap_or_default().parse::<u64>()? / 1_000_000;
    let units = String::from_utf8(Command::new(gennaker()).arg("systemd").output()?.stdout)?;
    let units: Vec<u64> = units.lines().filter_map(|line| line.strip_prefix("TimeoutStopSec=")?.parse().ok()).collect();
    let unit = units.iter().max().copied().unwrap_or_default();
    anyhow::ensure!(seconds > 600 && seconds - 600 + 30 <= unit, "{seconds} s, {units:?} in the units");
    let ended = tokio::time::timeout(Duration::from_secs(60), server.wait_with_output()).await??;
    anyhow::ensure!(ended.status.success(), "{}", ended.status);
    // Standard output is the journal then.
    let said = String::from_utf8(ended.stdout)?;
    anyhow::ensure!(!said.contains("gnk_") && said.contains("gennaker token create"), "{said}");
    Ok(())
}

async fn keeper_speaks() -> Outcome {
    let scratch = Scratch::new()?;
    let path = scratch.0.join("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    let start = || {
        let mut host = tokio::process::Command::new(gennaker());
        host.arg("host").arg("--dir").arg(scratch.0.join("host")).env("NOTIFY_SOCKET", &path);
        host.stdout(Stdio::null()).stderr(Stdio::null());
        host.spawn()
    };
    let mut first = start()?;
    heard(&socket, "READY=1").await?;
    // Its worker starts another one in its place; the service manager starts the unit again at once,
    // and is told whom to look after.
    first.kill().await?;
    let mut second = start()?;
    let lock = scratch.0.join("host/host.lock");
    let killed = first.id();
    let adopted = wait_for("another keeper", Duration::from_secs(60), || async {
        let pid: u32 = std::fs::read_to_string(&lock).ok()?.trim().parse().ok()?;
        let alive = kill(Pid::from_raw(i32::try_from(pid).ok()?), None).is_ok();
        (Some(pid) != killed && alive && taken(&lock)).then_some(pid)
    })
    .await?;
    anyhow::ensure!(Some(adopted) != second.id(), "the worker goes on with the keeper that it has started");
    // A service manager hears of the end of its own children only.
    let stat = std::fs::read_to_string(format!("/proc/{adopted}/stat"))?;
    let parent: i32 = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default().parse()?;
    let ours = processes_of(&scratch.0);
    anyhow::ensure!(!ours.iter().any(|(pid, _)| *pid == parent), "{parent} of {ours:?}");
    let said = heard(&socket, &format!("MAINPID={adopted}")).await?;
    anyhow::ensure!(said.lines().any(|line| line == "READY=1"), "{said}");
    let status = tokio::time::timeout(Duration::from_secs(60), second.wait()).await??;
    anyhow::ensure!(status.success(), "{status}");
    kill(Pid::from_raw(i32::try_from(adopted)?), Signal::SIGTERM)?;
    heard(&socket, "STOPPING=1").await?;
    Ok(())
}

async fn service_left_alone() -> Outcome {
    let scratch = Scratch::new()?;
    let path = scratch.0.join("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    let dir = scratch.0.join("host");
    let start = || {
        let mut host = tokio::process::Command::new(gennaker());
        host.arg("host").arg("--dir").arg(&dir).env("NOTIFY_SOCKET", &path);
        host.stdout(Stdio::null()).stderr(Stdio::null());
        host.spawn()
    };
    let mut host = start()?;
    heard(&socket, "READY=1").await?;
    let server = Server::start_with(Options { host_dir: Some(dir.clone()), ..Options::default() }).await?;
    let pid = host.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    host.wait().await?;
    let said = |what: &'static str| {
        let log = server.log();
        async move { log.contains(what).then_some(()) }
    };
    wait_for("the server misses its host", Duration::from_secs(60), || said("its last state is shown")).await?;
    anyhow::ensure!(!taken(&dir.join("host.lock")), "the server has started a host of its own");
    let host = start()?;
    heard(&socket, "READY=1").await?;
    anyhow::ensure!(
        std::fs::read_to_string(dir.join("host.lock"))?.trim().parse().ok() == host.id(),
        "it is another's"
    );
    wait_for("the server finds it", Duration::from_secs(60), || said("can be read again")).await?;
    Ok(())
}

/// As in a small image: what speaks `http` only needs none.
async fn without_certificates() -> Outcome {
    let none = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/nowhere")];
    let server = Server::start_with(Options {
        flags: vec!["--otlp-endpoint".into(), "http://127.0.0.1:9/v1/traces".into()],
        environment: none.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Options::default()
    })
    .await?;
    let asked = server.remote_command().arg("status").envs(none).output()?;
    anyhow::ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    Ok(())
}

/// Whether somebody holds the lock of a file.
fn taken(path: &Path) -> bool {
    std::fs::File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

/// The names of the commands in a help text, hidden ones left out.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    listed
        // A name stands two columns in; what goes on below a long description stands further in.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|name| name != "help")
        .collect()
}

async fn help() -> Outcome {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = paths.pop() {
        let asked = Command::new(gennaker()).args(&path).arg("--help").env("COLUMNS", "80").output()?;
        let text = String::from_utf8(asked.stdout)?;
        anyhow::ensure!(asked.status.success() && text.contains("Usage:"), "{path:?}: {text}");
        if let Some(long) = text.lines().find(|line| line.chars().count() > 80) {
            anyhow::bail!("{path:?}: more than 80 columns: {long}");
        }
        let inner = commands(&text);
        // A group of commands leaves examples to its members or has its own.
        for heading in ["Examples:", "Exit status:"] {
            anyhow::ensure!(text.contains(heading), "{path:?} has no `{heading}`:\n{text}");
        }
        if let Some(long) =
            Command::new(gennaker()).args(&path).arg("-h").output()?.stdout.split(|byte| *byte == b'\n').next()
        {
            anyhow::ensure!(!long.is_empty() && !long.ends_with(b"."), "{path:?}: the first line is a title");
        }
        paths.extend(inner.into_iter().map(|name| path.iter().cloned().chain([name]).collect()));
        seen += 1;
    }
    // What belongs to the command itself does not stand among how the server is reached.
    let asked = Command::new(gennaker()).args(["approve", "--help"]).output()?;
    let text = String::from_utf8(asked.stdout)?;
    let own = text.split("Server:").next().unwrap_or_default();
    anyhow::ensure!(own.contains("--input") && own.contains("--comment") && text.contains("Server:"), "{text}");
    anyhow::ensure!(seen >= 12, "only {seen} commands were found");
    Ok(())
}
