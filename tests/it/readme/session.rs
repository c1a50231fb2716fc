//! *A first session*: what stands behind `$` is typed, and what stands below it has to be the answer.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::{MARK, SESSION, section};
use crate::harness::{Outcome, Ports, gennaker, processes_of, wait_for};

/// One command may take as long as the pipeline of two seconds that it watches.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Ids, cursors and tokens are runs of so many letters and digits at the least; nothing else is.
const OPAQUE: usize = 32;

/// One shell, in which a variable or a function stays.
struct Shell {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Shell {
    fn start(dir: &Path, ports: &Ports) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::new("bash");
        command
            .current_dir(dir)
            .env("GENNAKER_DATA_DIR", dir.join("data"))
            .env("GENNAKER_CONFIG", "/dev/null")
            .env("GENNAKER_LISTEN", format!("127.0.0.1:{}", ports.server()))
            .env("GENNAKER_SERVER", format!("http://127.0.0.1:{}", ports.server()))
            .env("GENNAKER_PORT_RANGE", ports.instances())
            .env_remove("GENNAKER_HOST_DIR")
            .env_remove("DATABASE_URL")
            .env_remove("GENNAKER_DATABASE_URL")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        Ok(Self { child, lines })
    }

    /// What a command writes.
    async fn run(&mut self, command: &str) -> anyhow::Result<Vec<String>> {
        let stdin = self.child.stdin.as_mut().context("a pipe")?;
        stdin.write_all(format!("{command}\necho '{MARK}'\n").as_bytes()).await?;
        let mut output = Vec::new();
        let reading = async {
            while let Some(line) = self.lines.next_line().await? {
                if line == MARK {
                    return Ok(());
                }
                output.push(line);
            }
            anyhow::bail!("the shell ended")
        };
        tokio::time::timeout(COMMAND_MAX, reading).await.with_context(|| format!("`{command}` does not end"))??;
        Ok(output)
    }
}

/// The text between the fences of a section.
fn fenced(section: &str) -> Vec<Vec<&str>> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for line in section.lines() {
        if line.starts_with("```") {
            inside = !inside;
            if inside {
                blocks.push(Vec::new());
            }
        } else if let Some(block) = blocks.last_mut().filter(|_| inside) {
            block.push(line);
        }
    }
    blocks
}

/// Commands, each with what is shown below it; empty lines are left out.
fn exchanges<'a>(block: &[&'a str]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut exchanges: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in block.iter().filter(|line| !line.is_empty()) {
        match (line.strip_prefix("$ "), exchanges.last_mut()) {
            (Some(command), _) => exchanges.push((command, Vec::new())),
            (None, Some((_, shown))) => shown.push(line),
            (None, None) => {}
        }
    }
    exchanges
}

/// The opaque parts of a line.
fn opaque(line: &str) -> impl Iterator<Item = &str> {
    let parts = line.split(|sign: char| !sign.is_ascii_alphanumeric() && !"_-=".contains(sign));
    parts.filter(|part| part.len() >= OPAQUE)
}

/// The line with its opaque parts alike. How far an execution is when somebody begins to look is not
/// the README's to say.
fn plain(line: &str) -> String {
    let mut text = opaque(line).fold(line.to_owned(), |text, part| text.replace(part, "<opaque>"));
    if text.contains("ExecutionSnapshot") {
        for status in ["NOT_STARTED", "RUNNING", "SUCCEEDED"] {
            text = text.replace(status, "<status>");
        }
    }
    text
}

/// Whether the lines are those that are shown; `…` alone stands for any number of them.
fn compare(shown: &[&str], output: &[String]) -> Result<(), String> {
    // The last event has no data, and a line for them.
    let says_nothing = |line: &str| line.is_empty() || line == "data: ";
    let output: Vec<_> = output.iter().filter(|line| !says_nothing(line)).map(|line| plain(line)).collect();
    let parts: Vec<Vec<String>> =
        shown.split(|line| *line == "…").map(|part| part.iter().map(|line| plain(line)).collect()).collect();
    let mut rest = &output[..];
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let found = match (index, last) {
            (0, true) => (rest == part).then_some(0),
            (0, false) => rest.starts_with(part).then_some(0),
            (_, true) => rest.ends_with(part).then(|| rest.len() - part.len()),
            (_, false) => rest.windows(part.len()).position(|lines| lines == part),
        };
        let Some(at) = found else { return Err(part.join("\n")) };
        rest = &rest[at + part.len()..];
    }
    Ok(())
}

pub async fn first_session() -> Outcome {
    let dir = std::env::temp_dir().canonicalize()?.join(format!("gennaker-it-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(dir.join("target"))?;
    let outcome = run(&dir).await;
    for (pid, _) in processes_of(&dir) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    std::fs::remove_dir_all(&dir)?;
    outcome
}

async fn run(dir: &Path) -> Outcome {
    let ports = Ports::take()?;
    // What the first line of the section makes is there already.
    std::os::unix::fs::symlink(gennaker().parent().context("a directory")?, dir.join("target/release"))?;
    let section = section(SESSION)?;
    let blocks = fenced(&section);
    let [start, session] = &blocks[..] else { anyhow::bail!("{} blocks in the section", blocks.len()) };
    let ["cargo build --release", path, serve] = start[..] else { anyhow::bail!("another start: {start:?}") };
    let mut shell = Shell::start(dir, &ports)?;
    shell.run(path).await?;
    shell.run(&format!("{serve} > server.log 2>&1 &")).await?;
    let token = wait_for("the token", COMMAND_MAX, || async {
        let log = std::fs::read_to_string(dir.join("server.log")).ok()?;
        let (_, rest) = log.split_once("#token=")?;
        rest.lines().next().filter(|_| rest.contains('\n')).map(|token| token.trim().to_owned())
    })
    .await?;

    let exchanges = exchanges(session);
    anyhow::ensure!(exchanges.len() >= 6, "only {} commands", exchanges.len());
    // What the README shows, and what it is here.
    let mut names = vec![("gnk_…".to_owned(), token)];
    for (command, shown) in exchanges {
        let typed = names.iter().fold(command.to_owned(), |text, (shown, real)| text.replace(shown, real));
        let output = shell.run(&typed).await?;
        if let Err(wanted) = compare(&shown, &output) {
            anyhow::bail!("{typed}\n{}\nis to have: {wanted}", output.join("\n"));
        }
        // Ids that later commands name.
        if let ([shown], [real]) = (&shown[..], &output[..]) {
            names.extend(opaque(shown).map(str::to_owned).zip(opaque(real).map(str::to_owned)));
        }
    }
    shell.run("kill %1; wait").await?;
    shell.run("gennaker host stop --instances").await?;
    wait_for("the end of all that was started", Duration::from_secs(20), || async {
        processes_of(dir).iter().all(|(_, command)| command.trim() == "bash").then_some(())
    })
    .await
}
