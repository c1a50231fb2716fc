//! What the commands share that speak to a server over its API: where it is, who asks, how answers
//! and errors are written.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, Error};
use super::view::visible;

/// The variables with the token, and with the path of its file.
const TOKEN: &str = "GENNAKER_TOKEN";
const TOKEN_FILE: &str = "GENNAKER_TOKEN_FILE";
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
    #[arg(long, env = TOKEN, hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Read the token from this file instead
    #[arg(long, env = TOKEN_FILE, value_name = "FILE")]
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
            let message = format!(
                "`{}` is no server's address; write http://HOST:PORT or https://HOST (--server, GENNAKER_SERVER)",
                self.server
            );
            return Err(Failure::Input(anyhow::anyhow!(message)));
        }
        let token = self.token()?;
        if token.as_ref().is_some_and(|token| token.chars().any(char::is_control)) {
            return Err(Failure::Input(anyhow::anyhow!(
                "the token is none: it has a line end or another control character in it; look at --token, \
                 --token-file, {TOKEN} or {TOKEN_FILE}"
            )));
        }
        Client::anywhere(url, token.as_deref(), self.ca_file.as_deref()).map_err(Failure::input)
    }

    /// The token. A flag stands above a variable, also above the variable of the other flag.
    fn token(&self) -> Result<Option<String>, Failure> {
        let by_flag =
            |given: Option<&OsStr>, variable: &str| given.is_some() && std::env::var_os(variable).as_deref() != given;
        let token = by_flag(self.token.as_deref().map(OsStr::new), TOKEN);
        let file = by_flag(self.token_file.as_deref().map(Path::as_os_str), TOKEN_FILE);
        match &self.token_file {
            Some(_) if token && file => {
                Err(Failure::Input(anyhow::anyhow!("--token and --token-file are given; one of them is enough")))
            }
            Some(file) if !token => read_token(file).map(Some).map_err(Failure::Input),
            _ => Ok(self.token.clone()),
        }
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

/// The `code` of an error's document.
pub(super) fn code_of(error: &anyhow::Error, status: u8) -> &str {
    match error.downcast_ref::<Error>() {
        Some(error) => error.code().unwrap_or("FAILED"),
        None if status == 2 => "INVALID",
        None => "FAILED",
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

/// A word on standard error, of which parts may come from elsewhere.
pub(super) fn warn(text: &str) {
    eprintln!("gennaker: {}", visible(text));
}

/// The same as [`print`] for what goes on for as long as somebody reads: whether that is so.
pub(super) fn try_print(text: &str) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Whether an error is the input's fault, nobody's who could be asked, or somebody else's.
pub(super) fn fault(error: Error) -> Failure {
    const TOKEN_WANTED: &str =
        "the server wants a valid token: set GENNAKER_TOKEN, or give --token-file (`gennaker token create` makes one)";
    match error {
        error if error.is_no_answer() => Failure::Away(error.into()),
        error if error.code() == Some("UNAUTHENTICATED") => {
            Failure::Input(anyhow::Error::from(error).context(TOKEN_WANTED))
        }
        error if error.is_about_input() || error.code() == Some("FORBIDDEN") => Failure::Input(error.into()),
        error => Failure::Failed(error.into()),
    }
}

/// Items of a list that a command takes, at the most.
pub(super) const ITEMS_MAX: usize = 10_000;
/// What the document of [`pages`] selects of a connection beside its nodes.
pub(super) const PAGE: &str = "totalCount pageInfo { hasNextPage endCursor }";

/// Items of a list.
#[derive(Debug, Default)]
pub(super) struct Items {
    pub nodes: Vec<Value>,
    /// How many there are behind them.
    pub beyond: u64,
}

/// The first items of a connection at `path` in the data, page by page, `most` of them. The document
/// takes `after` and selects [`PAGE`] and `nodes`; it says no `first`, since the server knows how many it
/// gives at a time.
pub(super) async fn pages(
    client: &Client,
    document: &str,
    mut variables: Value,
    path: &str,
    most: usize,
) -> Result<Items, Error> {
    let mut items = Items::default();
    loop {
        let mut data = client.query(document, variables.clone()).await?;
        let Some(page) = data.pointer_mut(path) else { return Ok(items) };
        let nodes = page["nodes"].take();
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        let room = most - items.nodes.len();
        items.nodes.extend(nodes.iter().take(room).cloned());
        let goes_on = page["pageInfo"]["hasNextPage"] == true;
        if !goes_on || nodes.is_empty() || items.nodes.len() == most {
            let total = page["totalCount"].as_u64().unwrap_or_default();
            let left = total.saturating_sub(items.nodes.len() as u64);
            items.beyond = if goes_on || nodes.len() > room { left.max(1) } else { 0 };
            return Ok(items);
        }
        variables["after"] = page["pageInfo"]["endCursor"].take();
    }
}

/// All items of such a list.
pub(super) async fn all_pages(
    client: &Client,
    document: &str,
    variables: Value,
    path: &str,
) -> Result<Vec<Value>, Error> {
    let items = pages(client, document, variables, path, ITEMS_MAX).await?;
    match items.beyond {
        0 => Ok(items.nodes),
        beyond => {
            let list = path.rsplit('/').next().unwrap_or_default().to_owned();
            Err(Error::TooMany { list, count: items.nodes.len() as u64 + beyond, most: ITEMS_MAX })
        }
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
