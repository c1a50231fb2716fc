//! Pages of other sites: which may use the API from a browser, over HTTP, event streams and
//! WebSockets; and under which policy pages of this server are.

use libtest_mimic::Trial;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::{Options, Outcome, Server, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("cors", "a_page_of_an_allowed_origin_may_ask_and_read", allowed),
        trial("cors", "pages_of_other_origins_are_refused_and_without_a_setting_all_are", refused),
        trial("cors", "a_websockets_origin_is_judged_by_the_same_list", sockets),
        trial("cors", "pages_at_the_public_url_are_the_servers_own", public_url),
        trial("cors", "every_page_is_under_a_strict_policy_and_asks_for_nothing_from_elsewhere", policy),
    ]
}

const CONSOLE: &str = "https://console.example";

async fn server() -> anyhow::Result<Server> {
    let flags = vec!["--cors-allowed-origins".to_owned(), format!("{CONSOLE},http://127.0.0.1:5173")];
    Server::start_with(Options { flags, ..Options::default() }).await
}

async fn ask(server: &Server, origin: &str, accept: &str) -> anyhow::Result<Response> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let query = if accept.contains("event") { "subscription { notifications { cursor } }" } else { "{ __typename }" };
    Ok(client
        .post(format!("{}/graphql", server.url()))
        .bearer_auth(server.token())
        .header("origin", origin)
        .header("accept", accept)
        .json(&json!({ "query": query }))
        .send()
        .await?)
}

async fn preflight(server: &Server, origin: &str) -> anyhow::Result<Response> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    Ok(client
        .request(Method::OPTIONS, format!("{}/graphql", server.url()))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type")
        .send()
        .await?)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn allowed() -> Outcome {
    let server = server().await?;
    let before = preflight(&server, CONSOLE).await?;
    anyhow::ensure!(before.status() == StatusCode::NO_CONTENT, "{before:?}");
    let headers = before.headers();
    anyhow::ensure!(header(headers, "access-control-allow-origin") == CONSOLE, "{headers:?}");
    anyhow::ensure!(header(headers, "access-control-allow-methods").contains("POST"), "{headers:?}");
    for name in ["authorization", "content-type", "last-event-id"] {
        anyhow::ensure!(header(headers, "access-control-allow-headers").contains(name), "{headers:?}");
    }
    anyhow::ensure!(!headers.contains_key("access-control-allow-credentials"), "no cookies are used");
    for accept in ["application/json", "text/event-stream"] {
        let answer = ask(&server, CONSOLE, accept).await?;
        anyhow::ensure!(answer.status() == StatusCode::OK, "{accept}: {answer:?}");
        let headers = answer.headers();
        anyhow::ensure!(header(headers, "access-control-allow-origin") == CONSOLE, "{headers:?}");
        anyhow::ensure!(header(headers, "vary").contains("origin"), "{headers:?}");
    }
    // A refusal is told to the page too.
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.post(format!("{}/graphql", server.url())).header("origin", CONSOLE).send().await?;
    anyhow::ensure!(answer.status() == StatusCode::UNAUTHORIZED, "{answer:?}");
    anyhow::ensure!(header(answer.headers(), "access-control-allow-origin") == CONSOLE);
    Ok(())
}

async fn refused() -> Outcome {
    let plain = Server::start().await?;
    let listed = server().await?;
    for (server, origin) in [(&plain, CONSOLE), (&listed, "https://evil.example"), (&listed, "http://console.example")]
    {
        for answer in [preflight(server, origin).await?, ask(server, origin, "application/json").await?] {
            anyhow::ensure!(answer.status() == StatusCode::FORBIDDEN, "{origin}: {answer:?}");
            anyhow::ensure!(!answer.headers().contains_key("access-control-allow-origin"), "{answer:?}");
            let text = answer.text().await?;
            anyhow::ensure!(text.contains(origin) && text.contains("cors-allowed-origins"), "{text}");
        }
    }
    // Pages of the server itself and what is no page need no setting.
    let own = ask(&plain, &plain.url(), "application/json").await?;
    anyhow::ensure!(own.status() == StatusCode::OK, "{own:?}");
    plain.client().query("{ __typename }", json!({})).await?;
    Ok(())
}

/// As behind a proxy that ends TLS and asks under the server's own address.
async fn public_url() -> Outcome {
    let flags = vec!["--public-url=https://cd.example/gennaker".to_owned()];
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    for (origin, status) in [("https://cd.example", 200), ("http://cd.example", 403), ("https://cd.example:8443", 403)]
    {
        let answer = ask(&server, origin, "application/json").await?;
        anyhow::ensure!(answer.status() == status, "{origin}: {answer:?}");
    }
    connects(&server, &[("https://cd.example", 101), ("https://evil.example", 403)]).await
}

async fn sockets() -> Outcome {
    let server = server().await?;
    let own = server.url();
    connects(&server, &[(CONSOLE, 101), (&own, 101), ("https://evil.example", 403), ("null", 403)]).await
}

async fn connects(server: &Server, origins: &[(&str, u16)]) -> Outcome {
    for &(origin, status) in origins {
        let mut request = format!("{}/graphql/ws", server.url().replacen("http", "ws", 1)).into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse()?);
        request.headers_mut().insert("origin", origin.parse()?);
        let got = match tokio_tungstenite::connect_async(request).await {
            Ok((_, answer)) => answer.status().as_u16(),
            Err(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
            Err(error) => return Err(error.into()),
        };
        anyhow::ensure!(got == status, "{origin}: {got}, not {status}");
    }
    Ok(())
}

async fn policy() -> Outcome {
    let server = Server::start().await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    for path in ["/", "/assets/explorer.js", "/assets/explorer.css", "/graphql", "/no/such/page", "/healthz"] {
        let answer = client.get(format!("{}{path}", server.url())).send().await?;
        let policy = header(answer.headers(), "content-security-policy").to_owned();
        anyhow::ensure!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        anyhow::ensure!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        anyhow::ensure!(!policy.contains("http") && !policy.contains('*'), "{path}: {policy}");
        anyhow::ensure!(!policy.contains("unsafe-eval"), "{path}: {policy}");
        let scripts = policy.split(';').find(|part| part.trim().starts_with("script-src")).unwrap_or_default();
        anyhow::ensure!(!scripts.contains("unsafe"), "{path}: {policy}");
        anyhow::ensure!(header(answer.headers(), "x-content-type-options") == "nosniff", "{path}");
        if header(answer.headers(), "content-type").starts_with("text/html") {
            let page = answer.text().await?;
            anyhow::ensure!(!page.contains("://") && !page.contains("src=\"//"), "{path} names another site");
        }
    }
    Ok(())
}
