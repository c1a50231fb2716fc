//! The demo, as a person gives it, but ending by itself.

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
        trial("demo", "ctrl_c_ends_it_at_any_time_and_leaves_nothing", interrupted),
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

async fn interrupted() -> Outcome {
    for (line, wait) in [("Look inside", 0), ("Version 2.0.0", 700)] {
        let mut command = tokio::process::Command::new(gennaker());
        command.arg("demo").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id().context("it runs")?)?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut output = String::new();
        tokio::time::timeout(MAX, async {
            while let Some(next) = lines.next_line().await? {
                output.push_str(&next);
                output.push('\n');
                if next.contains(line) && output.contains("Data ") || output.contains("Data ") && output.contains(line)
                {
                    break;
                }
            }
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("waiting for `{line}`"))??;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)?;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let status =
            tokio::time::timeout(Duration::from_secs(60), child.wait()).await.context("it ends when asked")??;
        anyhow::ensure!(status.success(), "interrupted, it ended with {status}");
        gone(&data_dir(&output)?)?;
    }
    Ok(())
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
