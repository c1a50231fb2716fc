//! What the commands share that speak to a server over its API: where it is, who asks, how answers
//! and errors are written.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::client::{Client, Error};
use super::{Failure, Outcome, block_on, told};

/// Bytes of a file with a token, at the most.
const TOKEN_FILE_BYTES: u64 = 4 * 1024;

/// Where the server is and who asks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub(super) struct RemoteArgs {
    /// The server: `http://…` or `https://…`
    #[arg(long, env = "GENNAKER_SERVER", default_value = "http://127.0.0.1:7777", value_name = "URL")]
    server: String,
    /// The token; a flag can be seen by others on this machine, so prefer the variable or a file
    #[arg(long, env = "GENNAKER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Read the token from this file instead
    #[arg(long, env = "GENNAKER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) that an `https` server may be signed by, besides those of the system
    #[arg(long, env = "GENNAKER_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Answer with one JSON document, also for errors: {"error": {"code", "message"}}
    #[arg(long)]
    pub json: bool,
}

impl RemoteArgs {
    /// A client of that server.
    pub fn client(&self) -> Result<Client, Failure> {
        let url = self.server.trim_end_matches('/');
        let holds = reqwest::Url::parse(url)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.path() == "/");
        if !holds {
            let message = format!("`{}` is no server's address; write http://HOST:PORT or https://HOST", self.server);
            return Err(Failure::Input(anyhow::anyhow!(message)));
        }
        let token = match &self.token_file {
            Some(file) => Some(read_token(file).map_err(Failure::Input)?),
            None => self.token.clone(),
        };
        Client::anywhere(url, token.as_deref(), self.ca_file.as_deref()).map_err(Failure::input)
    }

    /// Runs a command to its end; with `--json` an error is answered on standard output.
    pub fn finish(&self, command: impl Future<Output = Outcome>) -> Outcome {
        let outcome = block_on(command);
        if !self.json {
            return outcome;
        }
        let (error, status) = match outcome {
            Ok(status) => return Ok(status),
            Err(Failure::Input(error)) => (error, 2),
            Err(Failure::Failed(error)) => (error, 1),
        };
        answer(&json!({ "error": { "code": code_of(&error, status), "message": told(&error) } }));
        Ok(ExitCode::from(status))
    }
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(TOKEN_FILE_BYTES).read_to_string(&mut text))
        .with_context(|| format!("the token cannot be read from {}", file.display()))?;
    anyhow::ensure!(!text.trim().is_empty(), "the token's file {} is empty", file.display());
    Ok(text.trim().to_owned())
}

fn code_of(error: &anyhow::Error, status: u8) -> String {
    match error.downcast_ref::<Error>() {
        Some(Error::Unreachable { .. } | Error::Broken(_)) => "UNREACHABLE".to_owned(),
        Some(error) => error.code().unwrap_or("FAILED").to_owned(),
        None if status == 2 => "INVALID".to_owned(),
        None => "FAILED".to_owned(),
    }
}

/// One JSON document on standard output.
pub(super) fn answer(value: &Value) {
    print(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// A line on standard output; a closed pipe is not worth a word.
pub(super) fn print(text: &str) {
    let _ = try_print(text);
}

/// The same for what goes on for as long as somebody reads: whether that is so.
pub(super) fn try_print(text: &str) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Whether an error is the input's fault or somebody else's.
pub(super) fn fault(error: Error) -> Failure {
    let input = error.is_about_input();
    let unauthenticated = error.code() == Some("UNAUTHENTICATED") || matches!(error, Error::Status { status: 401, .. });
    let error = anyhow::Error::from(error);
    match (input, unauthenticated) {
        (true, _) => Failure::Input(error),
        (_, true) => Failure::Failed(error.context(
            "the server wants a valid token: set GENNAKER_TOKEN, or give --token-file (`gennaker token create` makes one)",
        )),
        _ => Failure::Failed(error),
    }
}

/// All items of a connection at `path` in the data, page by page. The document takes `after` and
/// selects `pageInfo { hasNextPage endCursor }` and `nodes`.
pub(super) async fn pages(
    client: &Client,
    document: &str,
    mut variables: Value,
    path: &str,
) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    loop {
        let mut data = client.query(document, variables.clone()).await?;
        let Some(page) = data.pointer_mut(path) else { return Ok(items) };
        if let Value::Array(nodes) = page["nodes"].take() {
            items.extend(nodes);
        }
        if page["pageInfo"]["hasNextPage"] != true {
            return Ok(items);
        }
        variables["after"] = page["pageInfo"]["endCursor"].take();
    }
}

/// `APPLICATION/PIPELINE`, `APPLICATION/PIPELINE#NUMBER` or `APPLICATION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub application: String,
    pub pipeline: Option<String>,
    pub number: Option<i64>,
}

impl std::str::FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.rsplit_once('#') {
            Some((name, number)) => {
                let number = number.parse().ok().filter(|number| *number > 0);
                (name, Some(number.ok_or("after `#` stands the execution's number, from 1")?))
            }
            None => (text, None),
        };
        let (application, pipeline) = match name.split_once('/') {
            Some((application, pipeline)) => (application, Some(pipeline)),
            None => (name, None),
        };
        if application.is_empty() || pipeline.is_some_and(str::is_empty) {
            return Err("write APPLICATION/PIPELINE, with #NUMBER for one execution".to_owned());
        }
        Ok(Self { application: application.to_owned(), pipeline: pipeline.map(str::to_owned), number })
    }
}

impl Target {
    /// The selector of its execution.
    pub fn execution(&self) -> Result<Value, Failure> {
        let Some(number) = self.number else {
            return Err(Failure::Input(anyhow::anyhow!(
                "say which execution: {self}#NUMBER (`gennaker status {self}` lists them)"
            )));
        };
        Ok(json!({ "number": { "application": self.application, "pipeline": self.pipeline, "number": number } }))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.application)?;
        if let Some(pipeline) = &self.pipeline {
            write!(f, "/{pipeline}")?;
        }
        self.number.map_or(Ok(()), |number| write!(f, "#{number}"))
    }
}

/// A span of time as people write it: `90s`, `30m`, `2h`, `500ms`.
pub(super) fn span(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let fault = || format!("`{text}` is no span of time; write 90s, 30m or 2h");
    let number: u64 = text[..digits].parse().map_err(|_| fault())?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(fault()),
    };
    let millis = number.checked_mul(millis).filter(|millis| (1..=30 * 86_400_000).contains(millis));
    millis.map(std::time::Duration::from_millis).ok_or_else(|| format!("`{text}` is not between 1ms and 720h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for text in ["shop", "shop/deploy", "shop/deploy web#12", "shop#3"] {
            assert_eq!(text.parse::<Target>().expect("a target").to_string(), text);
        }
        for text in ["", "/x", "shop/", "shop/deploy#x", "shop/deploy#0"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_have_a_unit() {
        assert_eq!(span("90s"), Ok(std::time::Duration::from_secs(90)));
        assert_eq!(span("2h"), Ok(std::time::Duration::from_secs(7200)));
        for text in ["", "5", "m", "1d", "-1s", "0s", "99999999999999h"] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
