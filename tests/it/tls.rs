//! TLS: requests and WebSockets over it, a certificate that changes while the server runs, and who
//! may listen beyond loopback.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::{Options, Outcome, Server, gennaker, get, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("tls", "requests_and_websockets_are_served_with_the_certificate", served),
        trial("tls", "a_new_certificate_is_used_without_a_restart_and_a_bad_one_never", renewed),
        trial("tls", "sighup_tells_of_a_renewed_certificate_and_keeps_the_one_before_a_broken_one", reloaded),
        trial("tls", "beyond_loopback_the_server_needs_tls_or_known_proxies_or_a_word", beyond_loopback),
        trial("tls", "requests_of_others_than_the_trusted_proxies_are_refused", proxies_only),
        trial("tls", "commands_speak_to_a_server_whose_certificate_they_are_told_to_trust", commands),
        trial("tls", "commands_say_what_to_do_where_tls_is_spoken_on_one_side_only", one_side_only),
        trial("tls", "a_client_that_does_not_shake_hands_is_let_go", silent),
    ]
}

const MAX: Duration = Duration::from_secs(30);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
}

/// A pair of files that a trial may change.
struct Pair {
    dir: PathBuf,
}

impl Pair {
    fn new() -> anyhow::Result<Self> {
        let name = format!("gennaker-it-tls-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let pair = Self { dir: std::env::temp_dir().canonicalize()?.join(name) };
        std::fs::create_dir(&pair.dir)?;
        pair.put("first")?;
        Ok(pair)
    }

    fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }

    fn put(&self, which: &str) -> anyhow::Result<()> {
        std::fs::copy(fixture(&format!("tls-{which}.pem")), self.certificate())?;
        std::fs::copy(fixture(&format!("tls-{which}.key")), self.key())?;
        Ok(())
    }

    async fn server(&self) -> anyhow::Result<Server> {
        self.server_that_looks_every("1").await
    }

    async fn server_that_looks_every(&self, seconds: &str) -> anyhow::Result<Server> {
        let text = |path: PathBuf| path.display().to_string();
        let flags =
            ["--tls-cert", &text(self.certificate()), "--tls-key", &text(self.key()), "--tls-check-seconds", seconds];
        let flags = flags.map(str::to_owned).to_vec();
        Server::start_with(Options { flags, tls: true, ..Options::default() }).await
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A connection by TLS that trusts that certificate only.
async fn connect(server: &Server, which: &str) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture(&format!("tls-{which}.pem")))?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let address = server.url().trim_start_matches("https://").to_owned();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost")?;
    Ok(tokio::time::timeout(MAX, TlsConnector::from(Arc::new(config)).connect(name, stream)).await??)
}

fn client(which: &str) -> anyhow::Result<reqwest::Client> {
    let root = reqwest::Certificate::from_pem(&std::fs::read(fixture(&format!("tls-{which}.pem")))?)?;
    Ok(reqwest::Client::builder().no_proxy().tls_certs_only([root]).build()?)
}

async fn ask(server: &Server, which: &str) -> anyhow::Result<Value> {
    let answer = client(which)?
        .post(format!("{}/graphql", server.url()))
        .bearer_auth(server.token())
        .json(&json!({ "query": "{ __typename }" }))
        .send()
        .await?;
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}

async fn served() -> Outcome {
    let pair = Pair::new()?;
    let server = pair.server().await?;
    let answer = ask(&server, "first").await?;
    anyhow::ensure!(answer["data"]["__typename"] == "Query", "{answer}");
    anyhow::ensure!(server.log().contains("https://127.0.0.1"), "{}", server.log());
    anyhow::ensure!(ask(&server, "second").await.is_err(), "another certificate is not trusted");

    let stream = connect(&server, "first").await?;
    anyhow::ensure!(stream.get_ref().1.alpn_protocol().is_none_or(|protocol| protocol == b"http/1.1"));
    let mut request = format!("{}/graphql/ws", server.url().replacen("http", "ws", 1)).into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "graphql-transport-ws".parse()?);
    request.headers_mut().insert("origin", server.url().parse()?);
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let authorization = format!("Bearer {}", server.token());
    let init = json!({ "type": "connection_init", "payload": { "authorization": authorization } });
    socket.send(Message::text(init.to_string())).await?;
    let subscribe = json!({ "id": "1", "type": "subscribe", "payload": { "query": "{ __typename }" } });
    socket.send(Message::text(subscribe.to_string())).await?;
    let mut came = Vec::new();
    while came.len() < 3 {
        let message = tokio::time::timeout(MAX, socket.next()).await?.ok_or_else(|| anyhow::anyhow!("closed"))??;
        if let Message::Text(text) = message {
            came.push(serde_json::from_str::<Value>(&text)?["type"].as_str().unwrap_or_default().to_owned());
        }
    }
    anyhow::ensure!(came == ["connection_ack", "next", "complete"], "{came:?}");

    // Who speaks no TLS gets no answer, and disturbs nobody.
    let plain = reqwest::Client::builder().no_proxy().build()?;
    anyhow::ensure!(plain.get(server.url().replacen("https", "http", 1)).send().await.is_err());
    ask(&server, "first").await?;
    Ok(())
}

async fn renewed() -> Outcome {
    let pair = Pair::new()?;
    let server = pair.server().await?;
    ask(&server, "first").await?;
    // An open connection outlives the change.
    let kept = client("first")?;
    let health = || kept.get(format!("{}/healthz", server.url())).send();
    health().await?;
    pair.put("second")?;
    wait_for("the second certificate", MAX, || async { ask(&server, "second").await.ok() }).await?;
    anyhow::ensure!(connect(&server, "first").await.is_err(), "the first one is gone");
    anyhow::ensure!(health().await?.status() == 200, "the open connection goes on");

    std::fs::write(pair.certificate(), "no certificate")?;
    let log = wait_for("a word about the bad file", MAX, || async {
        Some(server.log()).filter(|log| log.contains("cannot be used; the one before stays"))
    })
    .await?;
    anyhow::ensure!(log.contains("cert.pem"), "{log}");
    ask(&server, "second").await?;
    server.signal(Signal::SIGHUP)?;
    wait_for("a word about the settings", MAX, || async {
        Some(server.log()).filter(|log| log.contains("all stays as it is"))
    })
    .await?;
    ask(&server, "second").await?;

    pair.put("first")?;
    server.signal(Signal::SIGHUP)?;
    wait_for("the first certificate again", MAX, || async { ask(&server, "first").await.ok() }).await?;
    Ok(())
}

/// By the signal alone: the server's own look comes too late.
async fn reloaded() -> Outcome {
    let pair = Pair::new()?;
    let server = pair.server_that_looks_every("86400").await?;
    let said = async |words: &str| {
        wait_for(words, MAX, || async { Some(server.log()).filter(|log| log.contains(words)) }).await
    };
    server.signal(Signal::SIGHUP)?;
    said("nothing has changed that could be taken over").await?;
    pair.put("second")?;
    server.signal(Signal::SIGHUP)?;
    let certificate = pair.certificate();
    let words = "changed: the TLS certificate in";
    said(&format!("{words} {}, valid until 2120-01-01 00:00 UTC", certificate.display())).await?;
    ask(&server, "second").await?;

    std::fs::write(&certificate, "no certificate")?;
    server.signal(Signal::SIGHUP)?;
    let log = said("all stays as it is, also the TLS certificate in use: ").await?;
    anyhow::ensure!(log.contains(&format!("{}: holds no certificate", certificate.display())), "{log}");
    ask(&server, "second").await?;
    Ok(())
}

async fn beyond_loopback() -> Outcome {
    let check = |flags: &[&str]| {
        let mut command = Command::new(gennaker());
        command.env_remove("DATABASE_URL").env_remove("GENNAKER_DATABASE_URL").env("GENNAKER_CONFIG", "/dev/null");
        command.args(["config", "check", "--listen", "0.0.0.0:7777"]).args(flags).output()
    };
    let output = check(&[])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.code() == Some(2), "{}: {text}", output.status);
    for way in ["--tls-cert", "--trusted-proxies", "--insecure"] {
        anyhow::ensure!(text.contains(way), "{text}");
    }
    let (certificate, key) = (fixture("tls-first.pem"), fixture("tls-first.key"));
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    for flags in
        [&["--insecure"][..], &["--trusted-proxies", "10.0.0.0/8"], &["--tls-cert", &certificate, "--tls-key", &key]]
    {
        let output = check(flags)?;
        anyhow::ensure!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let other = fixture("tls-second.key").display().to_string();
    for flags in [&["--tls-cert", certificate.as_str()][..], &["--tls-cert", &certificate, "--tls-key", &other]] {
        let output = check(flags)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.code() == Some(2) && text.contains("--tls-key"), "{flags:?}: {text}");
    }
    let output = check(&["--insecure", "--tls-cert", "/no/certificate", "--tls-key", "/no/key"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for words in ["--tls-cert: /no/certificate: ", "--tls-key: /no/key: "] {
        anyhow::ensure!(text.matches(words).count() == 1, "{words} is not once in {text}");
    }
    Ok(())
}

async fn proxies_only() -> Outcome {
    let flags = ["--trusted-proxies", "192.0.2.0/24"].map(str::to_owned).to_vec();
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    let (status, answer) = server.client().post("{ __typename }", &json!({})).await?;
    anyhow::ensure!(status == 403 && answer.to_string().contains("trusted-proxies"), "{status} {answer}");
    // The machine itself may ask whether the server lives, and nothing else.
    for (path, wanted) in [("/healthz", 200), ("/readyz", 403)] {
        let (status, answer) = get(&server, path, None).await?;
        anyhow::ensure!(status == wanted, "{path}: {status} {answer}");
    }
    let flags = ["--trusted-proxies", "192.0.2.0/24,127.0.0.1"].map(str::to_owned).to_vec();
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    server.client().query("{ __typename }", json!({})).await?;
    Ok(())
}

/// A command of the binary with nothing of the environment's words on servers but what is given.
fn client_command(server: &Server, args: &[&str]) -> Command {
    let mut command = server.remote_command();
    for name in ["GENNAKER_TOKEN", "GENNAKER_TOKEN_FILE", "GENNAKER_CA_FILE"] {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Runs it beside the trial; its exit code, and what it said.
async fn run(command: Command) -> anyhow::Result<(Option<i32>, String)> {
    let mut command = tokio::process::Command::from(command);
    let output = tokio::time::timeout(MAX, command.kill_on_drop(true).output()).await??;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(text)?))
}

async fn commands() -> Outcome {
    let pair = Pair::new()?;
    let server = pair.server().await?;
    let text = |path: PathBuf| path.display().to_string();
    let (trusted, other) = (text(fixture("tls-first.pem")), text(fixture("tls-second.pem")));
    let token = pair.dir.join("token");
    std::fs::write(&token, format!("{}\n", server.token()))?;
    let token = text(token);
    let wrong = pair.dir.join("wrong-token");
    std::fs::write(&wrong, "gnk_wrong\n")?;
    let file = pair.dir.join("shop.yaml");
    std::fs::write(
        &file,
        "kind: Application\nname: shop\n---\nkind: Pipeline\napplication: shop\nname: breathe\nstages:\n  - { key: in, \
         kind: wait, config: { seconds: 1 } }\n",
    )?;
    // Told by flags, then by variables; `--wait` watches over a WebSocket.
    let (code, said) = run(client_command(
        &server,
        &["apply", "-f", &text(file), "--server", &server.url(), "--ca-file", &trusted, "--token-file", &token],
    ))
    .await?;
    anyhow::ensure!(code == Some(0) && said.contains("created pipeline shop/breathe"), "{code:?} {said}");
    let by_variables = |args: &[&str]| {
        let mut command = client_command(&server, args);
        command.env("GENNAKER_CA_FILE", &trusted).env("GENNAKER_TOKEN_FILE", &token);
        command
    };
    let (code, said) = run(by_variables(&["run", "shop/breathe", "--wait"])).await?;
    anyhow::ensure!(code == Some(0) && said.contains("breathe #1 succeeded"), "{code:?} {said}");
    // A flag stands above the variable, also above the other flag's.
    let (code, said) = run(by_variables(&["status", "--token", "gnk_wrong"])).await?;
    anyhow::ensure!(code == Some(2) && said.contains("--token-file"), "{code:?} {said}");
    let mut command = client_command(&server, &["status", "--token-file", &token, "--ca-file", &trusted]);
    command.env("GENNAKER_TOKEN", "gnk_wrong").env("GENNAKER_TOKEN_FILE", &wrong).env("GENNAKER_CA_FILE", &other);
    let (code, said) = run(command).await?;
    anyhow::ensure!(code == Some(0) && said.contains("shop"), "{code:?} {said}");
    let (code, said) = run(client_command(&server, &["status", "--token", "x", "--token-file", &token])).await?;
    anyhow::ensure!(code == Some(2) && said.contains("one of them is enough"), "{code:?} {said}");

    // Not told, or told another one: no word goes over, and it is said what to do.
    for flags in [&[][..], &["--ca-file", &other]] {
        let (code, said) =
            run(client_command(&server, &[&["status", "--token-file", &token][..], flags].concat())).await?;
        anyhow::ensure!(code == Some(5), "{flags:?}: {code:?} {said}");
        for words in [&*format!("{} cannot be reached", server.url()), "UnknownIssuer", "--ca-file", "GENNAKER_CA_FILE"]
        {
            anyhow::ensure!(said.contains(words), "{flags:?} {words}: {said}");
        }
    }
    // A name that the certificate is not for.
    let url = server.url().replace("127.0.0.1", "127.0.0.2");
    let (code, said) = run(client_command(&server, &["status", "--server", &url, "--ca-file", &trusted])).await?;
    anyhow::ensure!(code == Some(5), "{code:?} {said}");
    // A file that is none of certificates.
    let (code, said) = run(client_command(&server, &["status", "--ca-file", &token])).await?;
    anyhow::ensure!(code == Some(2) && said.contains(&token) && said.contains("PEM"), "{code:?} {said}");
    Ok(())
}

async fn one_side_only() -> Outcome {
    let pair = Pair::new()?;
    let (tls, plain) = (pair.server().await?, Server::start().await?);
    let trusted = fixture("tls-first.pem").display().to_string();
    let url = plain.url().replacen("http:", "https:", 1);
    let (code, said) = run(client_command(&plain, &["status", "--server", &url, "--ca-file", &trusted])).await?;
    let hint = format!("it does not speak TLS there: write {}", plain.url());
    anyhow::ensure!(code == Some(5) && said.contains(&hint), "{code:?} {said}");
    let url = tls.url().replacen("https:", "http:", 1);
    let (code, said) = run(client_command(&tls, &["status", "--server", &url])).await?;
    let hint = format!("if it speaks TLS, write {}", tls.url());
    anyhow::ensure!(code == Some(5) && said.contains(&hint), "{code:?} {said}");
    Ok(())
}

async fn silent() -> Outcome {
    let pair = Pair::new()?;
    let server = pair.server().await?;
    let mut silent = TcpStream::connect(server.url().trim_start_matches("https://")).await?;
    // Others are served meanwhile.
    ask(&server, "first").await?;
    let mut rest = Vec::new();
    tokio::time::timeout(MAX, silent.read_to_end(&mut rest)).await??;
    Ok(())
}
