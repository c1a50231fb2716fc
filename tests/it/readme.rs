//! The README's sections for newcomers, as they stand: their commands are run in one shell, and what
//! is shown of their output has to come.

use std::path::Path;
use std::time::Duration;

use libtest_mimic::Trial;

use crate::harness::mail::{MailServer, PASSWORD, USER, mail_server};
use crate::harness::{Outcome, Ports, gennaker, processes_of, trial, trial_with, wait_for};

mod session;

use session::first_session;

const SESSION: &str = "## A first session\n";
const SECTION: &str = "## Your own application in ten minutes\n";
/// Written between the outputs of blocks.
const MARK: &str = "==== block ====";

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with("readme", "the_first_session_goes_as_written", found(&["bash", "curl"]), first_session),
        trial_with("readme", "the_ten_minutes_work_as_written", tools(), ten_minutes),
        trial("readme", "the_file_of_the_ten_minutes_is_short", short),
    ]
}

fn found(tools: &[&str]) -> Result<(), String> {
    for tool in tools {
        let found = std::process::Command::new(tool).arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Err((*tool).to_owned());
        }
    }
    Ok(())
}

fn tools() -> Result<(), String> {
    found(&["bash", "curl", "python3"]).and_then(|()| mail_server())
}

/// A block to run, and what is shown of its output.
struct Block {
    script: String,
    shown: String,
}

fn section(title: &str) -> anyhow::Result<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))?;
    let start = readme.find(title).ok_or_else(|| anyhow::anyhow!("the README has no such section: {title}"))?;
    let rest = &readme[start + title.len()..];
    Ok(rest[..rest.find("\n## ").unwrap_or(rest.len())].to_owned())
}

fn blocks() -> anyhow::Result<Vec<Block>> {
    let section = section(SECTION)?;
    let mut blocks: Vec<Block> = Vec::new();
    for part in section.split("\n```").skip(1) {
        let (language, text) = part.split_once('\n').unwrap_or((part, ""));
        match language {
            "sh" => blocks.push(Block { script: text.to_owned(), shown: String::new() }),
            "text" => {
                let last = blocks.last_mut().ok_or_else(|| anyhow::anyhow!("output before any block"))?;
                last.shown = text.to_owned();
            }
            "" => {}
            other => anyhow::bail!("a block of `{other}` would not be run"),
        }
    }
    Ok(blocks)
}

/// Whether the lines come in the output in this order; `…` stands for anything, and alone on a line
/// for any lines.
fn missing(shown: &str, output: &str) -> Option<String> {
    let mut lines = output.lines();
    for wanted in shown.lines().filter(|line| !line.trim().is_empty() && *line != "…") {
        let parts: Vec<_> = wanted.split('…').map(str::trim).collect();
        let fits = |line: &str| {
            let mut rest = line;
            parts.iter().all(|part| match rest.find(part) {
                Some(at) => {
                    rest = &rest[at + part.len()..];
                    true
                }
                None => false,
            })
        };
        if !lines.any(fits) {
            return Some(wanted.to_owned());
        }
    }
    None
}

async fn short() -> Outcome {
    let blocks = blocks()?;
    let file = blocks.iter().find_map(|block| block.script.split_once("cat > shop.yaml <<END\n"));
    let (_, file) = file.ok_or_else(|| anyhow::anyhow!("the section writes no shop.yaml"))?;
    let lines = file.split("\nEND\n").next().unwrap_or_default().lines().count();
    anyhow::ensure!(lines <= 40, "the file has {lines} lines");
    Ok(())
}

async fn ten_minutes() -> Outcome {
    let blocks = blocks()?;
    anyhow::ensure!(blocks.len() >= 5, "only {} blocks", blocks.len());
    let (ports, mail) = (Ports::take()?, MailServer::start(&[]).await?);
    let dir = std::env::temp_dir().canonicalize()?.join(format!("gennaker-it-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&dir)?;
    let outcome = run(&blocks, &ports, &mail, &dir).await;
    // What the last block has not ended.
    for (pid, _) in processes_of(&dir) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    std::fs::remove_dir_all(&dir)?;
    outcome
}

async fn run(blocks: &[Block], ports: &Ports, mail: &MailServer, dir: &Path) -> Outcome {
    // As a reader who looks into the mailbox before going on: the test's mail, and the pipeline's.
    let looks =
        format!("for _ in {{1..600}}; do [ -e {}/0002-*.json ] && break; sleep 0.1; done\n", mail.mailbox().display());
    let after = |block: &Block| if block.script.contains("email:") { looks.clone() } else { String::new() };
    let script: String =
        blocks.iter().map(|block| format!("{}\n{}echo '{MARK}'\n", block.script, after(block))).collect();
    let file = dir.join("section.sh");
    std::fs::write(&file, script)?;
    let binary = gennaker().parent().map(|path| path.display().to_string()).unwrap_or_default();
    let mut command = tokio::process::Command::new("bash");
    command
        .args(["-e", "-o", "pipefail"])
        .arg(&file)
        .env("SHOP", dir.join("shop"))
        .env("SHOP_PORT", ports.load_balancers().0.to_string())
        .env("PATH", format!("{binary}:{}", std::env::var("PATH").unwrap_or_default()))
        .env("GENNAKER_LISTEN", format!("127.0.0.1:{}", ports.server()))
        .env("GENNAKER_SERVER", format!("http://127.0.0.1:{}", ports.server()))
        .env("GENNAKER_PORT_RANGE", ports.instances())
        .env("MAIL_HOST", "localhost")
        .env("GENNAKER_SMTP_PORT", mail.port().to_string())
        .env("GENNAKER_SMTP_CA_FILE", mail.ca_file())
        .env("MAIL_USER", USER)
        .env("GENNAKER_SECRET_SMTP", PASSWORD)
        .env("MAIL_TO", "ann@example.org")
        .env_remove("GENNAKER_HOST_DIR")
        .env_remove("DATABASE_URL")
        .env_remove("GENNAKER_DATABASE_URL")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(240), command.output()).await??;
    let output = String::from_utf8_lossy(&ended.stdout).into_owned();
    let error = String::from_utf8_lossy(&ended.stderr).into_owned();
    let log = std::fs::read_to_string(dir.join("shop/server.log")).unwrap_or_default();
    let log: Vec<_> = log.lines().rev().take(20).collect();
    anyhow::ensure!(ended.status.success(), "{}\n{output}\n{error}\n{log:#?}", ended.status);
    for (block, output) in blocks.iter().zip(output.split(MARK)) {
        if let Some(line) = missing(&block.shown, output) {
            anyhow::bail!("`{line}` does not come in\n{output}\n{error}");
        }
    }
    let mails = mail.mails()?;
    let subjects: Vec<_> = mails.iter().map(|mail| mail["headers"]["subject"].as_str().unwrap_or_default()).collect();
    anyhow::ensure!(mails.iter().all(|mail| mail["to"] == serde_json::json!(["ann@example.org"])), "{mails:#?}");
    anyhow::ensure!(subjects.len() == 2 && subjects[1] == "shop / deploy #3 succeeded", "{subjects:?}");
    wait_for("the end of all that was started", Duration::from_secs(20), || async {
        processes_of(dir).is_empty().then_some(())
    })
    .await
}
