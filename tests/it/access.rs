//! Who may come in, what they may do there, and what is left behind about it.

use std::time::Duration;

use gennaker::cli::client::Client;
use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::documents::{CANCEL, JUDGE};
use crate::harness::{self, Hello, Outcome, Server, follow, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("access", "without_a_token_nothing_is_answered", no_token),
        trial("access", "a_viewer_looks_and_changes_nothing", viewer),
        trial("access", "a_revoked_token_is_refused_soon", revoked),
        trial("access", "what_was_done_stands_in_the_audit_log_with_its_principal", audit),
        trial("access", "secrets_are_resolved_for_the_instance_and_shown_nowhere", secrets),
    ]
}

async fn no_token() -> Outcome {
    let server = Server::start().await?;
    let forged = format!("gnk_{}_{}", "0".repeat(32), "A".repeat(43));
    for token in [None, Some("x"), Some(forged.as_str())] {
        let client = server.client().with_token(token);
        let (status, answer) = client.post("{ viewer { name } }", &json!({})).await?;
        anyhow::ensure!(status == 401, "{token:?}: {status} {answer}");
        anyhow::ensure!(answer.get("data").is_none_or(Value::is_null), "{answer}");
        let refused = match client.subscribe("subscription { notifications { cursor } }", &json!({})).await {
            Err(_) => true,
            Ok(mut subscription) => tokio::time::timeout(Duration::from_secs(20), subscription.next()).await?.is_err(),
        };
        anyhow::ensure!(refused, "{token:?} got a subscription");
    }
    Ok(())
}

fn as_principal(server: &Server, principal: &str, role: &str) -> anyhow::Result<Client> {
    Ok(server.client().with_token(Some(&harness::as_principal(server, principal, role)?)))
}

async fn viewer() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let viewer = as_principal(&server, "vera", "viewer")?;
    let data = viewer.query("{ viewer { name roles } applications(first: 5) { nodes { name } } }", json!({})).await?;
    anyhow::ensure!(data["viewer"]["name"] == "vera", "{data}");
    anyhow::ensure!(data["applications"]["nodes"] == json!([{ "name": "hello" }]), "{data}");
    let vera = hello.asked_by(viewer);
    let refusals = [
        vera.start(setup::PIPELINE, json!({ "version": "1.0.0" })).await.err(),
        vera.save("mine", &json!({ "stages": [] })).await.err(),
    ];
    for error in refusals {
        let error = error.ok_or_else(|| anyhow::anyhow!("a viewer changed something"))?;
        anyhow::ensure!(error.code() == Some("FORBIDDEN"), "{error} {:?}", error.code());
        anyhow::ensure!(error.to_string().contains("vera"), "{error}");
    }
    let data = hello.client.query("{ executions(first: 5) { totalCount } }", json!({})).await?;
    // Those that made the load balancer and its security group.
    anyhow::ensure!(data["executions"]["totalCount"] == 2, "{data}");
    Ok(())
}

async fn revoked() -> Outcome {
    let server = Server::start().await?;
    let client = as_principal(&server, "rob", "operator")?;
    client.query("{ viewer { name } }", json!({})).await?;
    let listed = server.command().args(["token", "list"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let line = listed.lines().find(|line| line.contains(" rob ")).unwrap_or_default();
    let id = line.split_whitespace().next().unwrap_or_default();
    anyhow::ensure!(id.starts_with("tk_") && line.contains("valid"), "{listed}");
    anyhow::ensure!(!listed.contains("gnk_"), "{listed}");
    let revoked = server.command().args(["token", "revoke", id]).output()?;
    anyhow::ensure!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    wait_for("the refusal", Duration::from_secs(30), || async {
        let (status, _) = client.post("{ viewer { name } }", &json!({})).await.ok()?;
        (status == 401).then_some(())
    })
    .await?;
    let unknown = server.command().args(["token", "revoke", &format!("tk_{}", "0".repeat(32))]).output()?;
    anyhow::ensure!(unknown.status.code() == Some(2), "{}", unknown.status);
    Ok(())
}

async fn audit() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let definition = json!({ "stages": [{ "key": "w", "kind": "wait", "config": { "seconds": 0 } }] });
    hello.save("short", &definition).await?;
    let olga = hello.asked_by(as_principal(&server, "olga", "operator")?);
    let execution = olga.start("short", Value::Null).await?;
    follow(&olga.client, &execution, Duration::from_secs(60)).await?.succeeded()?;
    let data = olga
        .client
        .query(
            "query($id: ID!) { node(id: $id) { ... on Execution { startedBy { name } } } }",
            json!({ "id": execution }),
        )
        .await?;
    anyhow::ensure!(data["node"]["startedBy"]["name"] == "olga", "{data}");
    let data = hello.client.query(AUDIT, json!({})).await?;
    let rows = data["auditEntries"]["nodes"].as_array().cloned().unwrap_or_default();
    anyhow::ensure!(rows.iter().any(|row| row["action"] == "START" && row["principalName"] == "olga"), "{rows:#?}");
    anyhow::ensure!(rows.iter().any(|row| row["action"] == "SAVE" && row["principalName"] == "admin"), "{rows:#?}");
    each_command_is_audited(&hello, &olga).await?;
    // The log is for administrators.
    let error = olga.client.query(AUDIT, json!({})).await.expect_err("an operator reads no audit log");
    anyhow::ensure!(error.code() == Some("FORBIDDEN"), "{error} {:?}", error.code());
    Ok(())
}

const AUDIT: &str = "{ auditEntries(first: 100) { nodes { action principalName detail } } }";

/// One row for each command, of who gave it.
async fn each_command_is_audited(admin: &Hello, olga: &Hello) -> Outcome {
    let rows = async || -> anyhow::Result<Vec<Value>> {
        let mut data = admin.client.query(AUDIT, json!({})).await?;
        let mut rows: Vec<Value> = serde_json::from_value(data["auditEntries"]["nodes"].take())?;
        rows.reverse();
        Ok(rows)
    };
    let before = rows().await?.len();
    let ask = json!([{ "key": "ask", "kind": "manualJudgment", "config": { "instructions": "Go on?" } }]);
    admin.save("asks", &json!({ "stages": ask })).await?;
    let execution = olga.start("asks", Value::Null).await?;
    let stage = olga.asks(&execution).await?;
    let judgment = json!({ "stage": { "id": stage }, "proceed": true, "comment": "looks well" });
    olga.client.mutate(JUDGE, judgment).await?;
    follow(&olga.client, &execution, Duration::from_secs(60)).await?.succeeded()?;
    who_decided(olga, &execution).await?;
    let execution = admin.start("asks", Value::Null).await?;
    olga.asks(&execution).await?;
    olga.client.mutate(CANCEL, json!({ "execution": { "id": execution }, "reason": "not today" })).await?;
    let query = "query($id: ID!) { viewer { id }
        node(id: $id) { ... on Execution { stages { judgment { proceed } } cancellation { byName by { id name } } } } }";
    let data = olga.client.query(query, json!({ "id": execution })).await?;
    let cancel = &data["node"]["cancellation"];
    anyhow::ensure!(cancel["byName"] == "olga" && cancel["by"]["name"] == "olga", "{data}");
    anyhow::ensure!(cancel["by"]["id"] == data["viewer"]["id"], "{data}");
    anyhow::ensure!(data["node"]["stages"][0]["judgment"].is_null(), "nobody has judged it: {data}");
    let create = "mutation Create($input: CreateTokenInput!) {
        createToken(input: $input) { created { token { id } } userErrors { message field code } } }";
    let made = admin.client.mutate(create, json!({ "principal": { "name": "olga" } })).await?;
    let token = &made["created"]["token"]["id"];
    let revoke = "mutation Revoke($input: RevokeTokenInput!) {
        revokeToken(input: $input) { token { id } userErrors { message field code } } }";
    admin.client.mutate(revoke, json!({ "token": token })).await?;
    let rows = rows().await?.split_off(before);
    let told: Vec<_> = rows.iter().map(|row| (row["action"].as_str(), row["principalName"].as_str())).collect();
    let wanted = [
        ("SAVE", "admin"),
        ("START", "olga"),
        ("JUDGE", "olga"),
        ("START", "admin"),
        ("CANCEL", "olga"),
        ("ADMINISTER", "admin"),
        ("ADMINISTER", "admin"),
    ];
    anyhow::ensure!(told == wanted.map(|(action, who)| (Some(action), Some(who))), "{rows:#?}");
    anyhow::ensure!(rows[5]["detail"]["createToken"].is_string(), "{}", rows[5]);
    anyhow::ensure!(rows[6]["detail"]["revokeToken"] == rows[5]["detail"]["createToken"], "{}", rows[6]);
    Ok(())
}

/// The judgment of the execution's first stage names olga, by her id too.
async fn who_decided(olga: &Hello, execution: &str) -> Outcome {
    let query = "query($id: ID!) { viewer { id } node(id: $id) { ... on Execution { stages {
        startedAt endedAt judgment { proceed input comment at byName by { id name } } } } } }";
    let data = olga.client.query(query, json!({ "id": execution })).await?;
    let stage = &data["node"]["stages"][0];
    let judgment = &stage["judgment"];
    anyhow::ensure!(judgment["proceed"] == true && judgment["input"].is_null(), "{data}");
    anyhow::ensure!(judgment["comment"] == "looks well" && judgment["byName"] == "olga", "{data}");
    anyhow::ensure!(judgment["by"] == json!({ "id": data["viewer"]["id"], "name": "olga" }), "{data}");
    let instant = |value: &Value| value.as_str()?.parse::<chrono::DateTime<chrono::Utc>>().ok();
    let (began, at, ended) = (instant(&stage["startedAt"]), instant(&judgment["at"]), instant(&stage["endedAt"]));
    anyhow::ensure!(began.is_some() && began <= at && at <= ended, "{data}");
    Ok(())
}

async fn secrets() -> Outcome {
    let secret = "correct-horse-battery-staple";
    let server = Server::start_with(crate::harness::Options {
        environment: vec![("GENNAKER_SECRET_HELLO".to_owned(), secret.to_owned())],
        ..Default::default()
    })
    .await?;
    let hello = Hello::create(&server).await?;
    let mut definition = hello.pipeline();
    let cluster = definition.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    cluster["launch"]["environment"] = json!({ "HELLO_KEY": "secret://env/GENNAKER_SECRET_HELLO" });
    hello.save("secret", &definition).await?;
    let execution = hello.start("secret", json!({ "version": "1.0.0" })).await?;
    let followed = follow(&hello.client, &execution, Duration::from_secs(120)).await?;
    followed.succeeded()?;
    // The instances have it …
    let instances: Vec<_> = server
        .processes()
        .into_iter()
        .filter(|(_, command)| command.split_whitespace().nth(1) == Some("sample-app"))
        .collect();
    anyhow::ensure!(instances.len() == 3, "{instances:?}");
    for (pid, _) in &instances {
        let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        anyhow::ensure!(environment.contains(&format!("HELLO_KEY={secret}")), "the instance has its secret");
        anyhow::ensure!(!environment.contains("GENNAKER_SECRET_HELLO"), "and nothing of the server's");
    }
    // … and nobody else.
    let everything = format!("{:?} {}", followed.events, server.log());
    anyhow::ensure!(!everything.contains(secret), "the secret is in events or in the log");
    let data = hello
        .client
        .query(
            "query($id: ID!) { node(id: $id) { ... on Execution { stages { config outputs } } } }",
            json!({ "id": execution }),
        )
        .await?;
    anyhow::ensure!(!data.to_string().contains(secret), "the secret is in stages");
    for file in std::fs::read_dir(server.data_dir())?.flatten() {
        if file.file_type()?.is_file() {
            let bytes = std::fs::read(file.path())?;
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            anyhow::ensure!(!found, "the secret is in {}", file.path().display());
        }
    }
    Ok(())
}
