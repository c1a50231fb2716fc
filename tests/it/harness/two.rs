//! Two servers on one PostgreSQL database, with the application `hello`.

use std::collections::BTreeSet;

use super::{Hello, Options, Server};

/// On one machine both use one host.
pub struct Two {
    /// Ends first: the host is in the directory of `one`.
    pub other: Server,
    pub one: Server,
    /// Asks `one`.
    pub hello: Hello,
    /// Asks `other`.
    pub there: Hello,
}

impl Two {
    pub async fn start(url: &str, flags: Vec<String>) -> anyhow::Result<Self> {
        let options = Options { database_url: Some(url.to_owned()), flags, ..Options::default() };
        let one = Server::start_with(options).await?;
        let other = Server::start_beside(&one).await?;
        let hello = Hello::create(&one).await?;
        let there = hello.asked_by(other.client());
        Ok(Self { other, one, hello, there })
    }

    /// The numbers of the pipeline's executions that each of them began, `one` first, by what their
    /// logs say.
    pub fn began(&self, pipeline: &str) -> anyhow::Result<(BTreeSet<i64>, BTreeSet<i64>)> {
        let of = |server: &Server| {
            let text = std::fs::read_to_string(server.dir().join("server.log"))?;
            let before = format!("execution `{pipeline}` #");
            let began = text.split(&before).skip(1).filter_map(|rest| {
                let (number, rest) = rest.split_once(' ')?;
                rest.starts_with("is RUNNING").then(|| number.parse().ok()).flatten()
            });
            anyhow::Ok(began.collect())
        };
        Ok((of(&self.one)?, of(&self.other)?))
    }
}
