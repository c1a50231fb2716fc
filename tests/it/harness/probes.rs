//! What a server says to those who watch it.

use std::time::Duration;

use anyhow::Context as _;
use reqwest::StatusCode;
use serde_json::Value;

use super::{Exposition, Server};

/// A plain request.
pub async fn get(server: &Server, path: &str, token: Option<&str>) -> anyhow::Result<(StatusCode, String)> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
    let mut request = client.get(format!("{}{path}", server.url()));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await?;
    Ok((answer.status(), answer.text().await?))
}

/// Its metrics.
pub async fn scrape(server: &Server) -> anyhow::Result<Exposition> {
    let (status, text) = get(server, "/metrics", Some(server.token())).await?;
    anyhow::ensure!(status == StatusCode::OK, "{status}: {text}");
    Exposition::read(&text)
}

/// Whether it can work, and what is wrong.
pub async fn ready(server: &Server) -> anyhow::Result<(StatusCode, Value)> {
    let (status, text) = get(server, "/readyz", None).await?;
    Ok((status, serde_json::from_str(&text).context(text)?))
}
