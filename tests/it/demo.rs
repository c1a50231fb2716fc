//! The demo, as a person gives it, but ending by itself.

use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use libtest_mimic::Trial;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Outcome, gennaker, processes_of, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("demo", "it_ends_with_status_0_and_leaves_nothing", exits),
        trial("demo", "a_taken_port_is_replaced_and_keep_leaves_the_data", kept),
        trial("demo", "on_a_terminal_the_tree_is_drawn_again_in_its_place", on_a_terminal),
        trial("demo", "ctrl_c_ends_it_at_any_time_and_leaves_nothing", interrupted),
        trial("demo", "failed_requests_end_it_with_status_1_and_their_number", failing),
    ]
}

const MAX: Duration = Duration::from_secs(240);

async fn exits() -> Outcome {
    // Two at once: each has a server, a host and ports of its own.
    let (one, two) = tokio::join!(run_to_end(&[]), run_to_end(&["--cron"]));
    let (one, two) = (one?, two?);
    anyhow::ensure!(two.contains("the trigger `minutely` was due at"), "a run by the timetable:\n{two}");
    for output in [one, two] {
        for deploy in [1, 2] {
            let after = format!(": hello/deploy hello #{deploy} ended as SUCCEEDED");
            let told =
                |line: &str| line.contains("smoke hello #") && line.contains(" succeeded") && line.contains(&after);
            anyhow::ensure!(output.lines().any(told), "the run after deploy {deploy} is in the summary:\n{output}");
        }
        // Each message once, below the deploy that it is about.
        let (first, second) = output.split_once("Version 2.0.0, under").context("the second deploy")?;
        for (part, deploy) in [(first, 1), (second, 2)] {
            for what in ["started", "succeeded"] {
                let message = format!("  message: hello / deploy hello #{deploy} {what}");
                let told = |text: &str| text.lines().filter(|line| *line == message).count();
                anyhow::ensure!(told(part) == 1 && told(&output) == 1, "{message}:\n{output}");
            }
        }
        anyhow::ensure!(output.contains(" sent, 0 failed"), "{output}");
        anyhow::ensure!(output.contains("of 3"), "progress is shown:\n{output}");
        anyhow::ensure!(output.contains("hello-v000") && output.contains("hello-v001"), "{output}");
        anyhow::ensure!(!output.contains('\x1b'), "plain lines where there is no terminal");
        gone(&data_dir(&output)?)?;
    }
    Ok(())
}

async fn run_to_end(flags: &[&str]) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(gennaker());
    command.args(["demo", "--exit"]).args(flags).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(MAX, command.output()).await.context("the demo ends by itself")??;
    let output = String::from_utf8(ended.stdout)?;
    anyhow::ensure!(ended.status.success(), "{}\n{output}\n{}", ended.status, String::from_utf8_lossy(&ended.stderr));
    Ok(output)
}

async fn kept() -> Outcome {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let output = run_to_end(&["--port", &port.to_string(), "--keep"]).await?;
    let address = output.lines().find_map(|line| line.strip_prefix("http://127.0.0.1:")).context("the URL")?;
    let (other, token) = address.split_once("/#token=gnk_").context("a ready token in the URL's fragment")?;
    anyhow::ensure!(other.parse::<u16>()? != port && !token.is_empty(), "{address}");
    let dir = data_dir(&output)?;
    anyhow::ensure!(output.contains(&format!("Data is left in {}", dir.display())), "{output}");
    anyhow::ensure!(dir.join("server.log").is_file() && dir.join("data").is_dir(), "{} is not left", dir.display());
    let left = processes_of(&dir);
    anyhow::ensure!(left.is_empty(), "processes are left: {left:?}");
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

async fn on_a_terminal() -> Outcome {
    let size = nix::pty::Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = nix::pty::openpty(&size, None)?;
    let mut command = tokio::process::Command::new(gennaker());
    command.args(["demo", "--exit"]).env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::null());
    command.stdout(terminal.slave).kill_on_drop(true);
    let mut child = command.spawn()?;
    // The other end is the child's alone from here on, so that its end ends the reading.
    drop(command);
    let reader = tokio::task::spawn_blocking(move || {
        let (mut terminal, mut shown, mut part) = (std::fs::File::from(terminal.master), Vec::new(), [0; 4096]);
        // EIO when the other end is closed.
        while let Ok(read @ 1..) = terminal.read(&mut part) {
            shown.extend_from_slice(&part[..read]);
        }
        shown
    });
    let status = tokio::time::timeout(MAX, child.wait()).await.context("the demo ends by itself")??;
    let shown = String::from_utf8(reader.await?)?;
    anyhow::ensure!(status.success(), "{status}\n{shown}");
    let (drawn, summary) = shown.rsplit_once("Summary").context("a summary")?;
    anyhow::ensure!(drawn.contains("Deploy red/black") && drawn.contains(" of 3 healthy"), "the tree: {drawn}");
    anyhow::ensure!(escapes(drawn).any(|escape| is_up(&escape)), "the tree is drawn in its place: {drawn:?}");
    // What is to stay has colours and nothing else.
    let strange: Vec<_> = escapes(summary).filter(|escape| !escape.ends_with('m')).collect();
    anyhow::ensure!(strange.is_empty(), "{strange:?} in the summary: {summary:?}");
    anyhow::ensure!(summary.contains("0 failed") && summary.contains("hello-v001"), "{summary}");
    Ok(())
}

/// The sequences that begin with `ESC [`, each up to its final letter.
fn escapes(text: &str) -> impl Iterator<Item = String> {
    text.split("\x1b[").skip(1).map(|rest| {
        let end = rest.find(|sign: char| sign.is_ascii_alphabetic()).map_or(rest.len(), |end| end + 1);
        rest[..end].to_owned()
    })
}

/// The cursor goes up by some lines.
fn is_up(escape: &str) -> bool {
    escape.strip_suffix('A').is_some_and(|lines| lines.parse::<u16>().is_ok())
}

/// A demo under way, and what it has said.
struct Running {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    output: String,
}

impl Running {
    fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::new(gennaker());
        command.arg("demo").args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        Ok(Self { child, lines, output: String::new() })
    }

    /// Reads until a line with that text.
    async fn says(&mut self, text: &str) -> Outcome {
        let reading = async {
            while let Some(next) = self.lines.next_line().await? {
                self.output.push_str(&next);
                self.output.push('\n');
                if next.contains(text) {
                    return anyhow::Ok(());
                }
            }
            anyhow::bail!("it ended:\n{}", self.output)
        };
        tokio::time::timeout(MAX, reading).await.with_context(|| format!("waiting for `{text}`"))?
    }

    /// Reads to its end.
    async fn ends(&mut self, within: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let reading = async {
            while let Some(next) = self.lines.next_line().await? {
                self.output.push_str(&next);
                self.output.push('\n');
            }
            Ok(self.child.wait().await?)
        };
        tokio::time::timeout(within, reading).await.context("it ends")?
    }
}

async fn interrupted() -> Outcome {
    for line in ["http://127.0.0.1:", "creating `hello-v001`", "Still serving"] {
        let mut demo = Running::start(&[])?;
        let pid = i32::try_from(demo.child.id().context("it runs")?)?;
        demo.says(line).await?;
        if line == "Still serving" {
            anyhow::ensure!(demo.output.contains("\nSummary\n"), "{}", demo.output);
            let (_, rest) = demo.output.split_once("The load balancer listens at http://").context("its address")?;
            let address = rest.split('/').next().unwrap_or_default();
            let client = reqwest::Client::builder().no_proxy().build()?;
            let answer = client.get(format!("http://{address}/")).send().await?;
            anyhow::ensure!(answer.status() == 200, "the application is served on: {}", answer.status());
        }
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)?;
        let status = demo.ends(Duration::from_secs(60)).await?;
        anyhow::ensure!(status.success(), "interrupted, it ended with {status}");
        gone(&data_dir(&demo.output)?)?;
    }
    Ok(())
}

async fn failing() -> Outcome {
    let mut demo = Running::start(&["--exit"])?;
    demo.says("Version 2.0.0, under").await?;
    // Those that have the traffic stand still; their sockets stay open.
    let is_old =
        |command: &str| command.split_whitespace().nth(1) == Some("sample-app") && command.contains("--version 1.0.0");
    let old = processes_of(&data_dir(&demo.output)?);
    let old: Vec<_> = old.into_iter().filter(|(_, command)| is_old(command)).collect();
    anyhow::ensure!(old.len() == 3, "{old:?}");
    for (pid, _) in old {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP)?;
    }
    let status = demo.ends(MAX).await?;
    let output = &demo.output;
    anyhow::ensure!(status.code() == Some(1), "{status}\n{output}");
    let (_, summary) = output.split_once("\nSummary\n").with_context(|| format!("a summary:\n{output}"))?;
    let requests = summary.lines().find(|line| line.starts_with("  requests ")).context("the requests")?;
    let failed =
        requests.strip_suffix(" failed").and_then(|line| line.rsplit(' ').next()).context("how many failed")?;
    anyhow::ensure!(failed.parse::<u64>()? > 0, "{requests}");
    anyhow::ensure!(summary.contains("    failed at "), "{summary}");
    gone(&data_dir(output)?)
}

fn data_dir(output: &str) -> anyhow::Result<PathBuf> {
    let line =
        output.lines().find_map(|line| line.trim().strip_prefix("Data ")).context("the demo says where its data is")?;
    Ok(PathBuf::from(line.trim()))
}

fn gone(dir: &std::path::Path) -> Outcome {
    anyhow::ensure!(!dir.exists(), "{} is left", dir.display());
    let left = processes_of(dir);
    anyhow::ensure!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}
