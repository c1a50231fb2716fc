//! `gennaker apply` and `export`, with the real binary against a real server.

use std::path::PathBuf;

use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Done, Hello, Outcome, Server, as_principal, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("apply", "files_are_brought_over_once_and_are_unchanged_then", twice),
        trial("apply", "a_document_that_does_not_hold_is_refused_with_file_and_line_before_anything_is_done", refused),
        trial("apply", "what_is_exported_is_applied_back_unchanged", round_trip),
        trial("apply", "prune_deletes_what_no_file_mentions_and_a_dry_run_does_not", prune),
        trial("apply", "after_a_failure_it_says_what_is_done_and_goes_on_when_run_again", goes_on),
        trial("apply", "a_hidden_secret_is_neither_exported_nor_applied", masked),
    ]
}

/// A security group, a load balancer and two pipelines of `shop`.
pub fn shop(ports: (u16, u16)) -> String {
    let (from, to) = ports;
    format!(
        r#"# The shop.
kind: Pipeline
application: shop
name: deploy
description: "yes"
parameters:
  - name: version
    default: "1.0"
    options: ["1.0", "2.0"]
stages:
  - key: wait
    kind: wait
    config: {{ seconds: 0 }}
  - key: second
    kind: wait
    name: "on"
    requires: [wait]
    onFailure: CONTINUE
    timeoutSeconds: 60
    config:
      seconds: 0
notifications:
  - on: [COMPLETED, FAILED]
---
kind: LoadBalancer
name: shop
listeners: [{{ port: {from}, portTo: {to} }}]
healthCheck:
  protocol: HTTP
  path: /health
  interval: PT0.50S
securityGroups: [shop]
---
kind: SecurityGroup
name: shop
inbound:
  - cidr: 127.0.0.0/8
    portFrom: {from}
    portTo: {to}
---
kind: Application
name: shop
description: |
  The shop,
  on two lines: "quoted", #not a comment
"#
    )
}

fn write(server: &Server, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = server.dir().join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&path, text)?;
    Ok(path)
}

async fn apply(server: &Server, args: &[&str]) -> anyhow::Result<Done> {
    server.gennaker(&[&["apply"], args].concat()).await
}

fn actions(done: &Done) -> anyhow::Result<Vec<(String, String)>> {
    let answer = done.json()?;
    let objects = answer["objects"].as_array().cloned().unwrap_or_default();
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    Ok(objects.iter().map(|object| (text(object, "kind"), text(object, "action"))).collect())
}

async fn twice() -> Outcome {
    let server = Server::start().await?;
    write(&server, "files/shop.yaml", &shop(server.load_balancer_ports()))?;
    let files = server.dir().join("files");
    let files = files.to_str().unwrap_or_default();

    let dry = apply(&server, &["-f", files, "--dry-run"]).await?.with_status(0)?;
    anyhow::ensure!(dry.out.contains("created pipeline shop/deploy (dry run)"), "{}", dry.out);
    let data = server.client().query("{ applications { totalCount } executions { totalCount } }", json!({})).await?;
    anyhow::ensure!(data["applications"]["totalCount"] == 0, "a dry run changed something: {data}");
    anyhow::ensure!(data["executions"]["totalCount"] == 0, "a dry run changed something: {data}");

    let first = apply(&server, &["-f", files]).await?.with_status(0)?;
    let lines: Vec<_> = first.out.lines().filter(|line| line.starts_with("created ")).collect();
    let order = [
        "created application shop",
        "created security group shop",
        "created load balancer shop",
        "created pipeline shop/deploy",
    ];
    anyhow::ensure!(lines == order, "{}", first.out);
    anyhow::ensure!(first.out.contains("    +description: "), "{}", first.out);
    anyhow::ensure!(!first.out.contains('\x1b'), "colours belong on terminals: {}", first.out);

    let again = apply(&server, &["-f", files, "--json"]).await?.with_status(0)?;
    let unchanged: Vec<_> = actions(&again)?.into_iter().map(|(_, action)| action).collect();
    anyhow::ensure!(unchanged == ["unchanged"; 4], "{}", again.out);
    let data = server
        .client()
        .query(
            "{ executions { totalCount } pipeline(application: \"shop\", name: \"deploy\") { revision } }",
            json!({}),
        )
        .await?;
    anyhow::ensure!(data["executions"]["totalCount"] == 2, "what is unchanged is left alone: {data}");
    anyhow::ensure!(data["pipeline"]["revision"] == 1, "{data}");

    let changed = shop(server.load_balancer_ports()).replace("seconds: 0 }", "seconds: 1 }").replace("PT0.50S", "PT2S");
    let path = write(&server, "files/shop.yaml", &changed)?;
    let third = apply(&server, &["-f", path.to_str().unwrap_or_default()]).await?.with_status(0)?;
    for part in ["changed load balancer shop", "changed pipeline shop/deploy", "unchanged application shop"] {
        anyhow::ensure!(third.out.contains(part), "{part}: {}", third.out);
    }
    for part in ["    -      seconds: 0", "    +      seconds: 1", "    +  interval: PT2S", "    -  interval: PT0.5S"] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        anyhow::ensure!(third.out.lines().any(|line| squeezed(line) == squeezed(part)), "{part}: {}", third.out);
    }
    Ok(())
}

async fn refused() -> Outcome {
    let server = Server::start().await?;
    let good = shop(server.load_balancer_ports());
    let cases = [
        ("descripton: x", "description: \"yes\"", 5, "did you mean `description`"),
        ("    kind: wiat", "    kind: wait", 12, "did you mean `wait`"),
        ("    requires: [wiat]", "    requires: [wait]", 17, "did you mean `wait`"),
        ("    onFailure: continue", "    onFailure: CONTINUE", 18, "did you mean `CONTINUE`"),
        ("      seconds: many", "      seconds: 0", 21, "seconds"),
        ("securityGroups: [shop-x]", "securityGroups: [shop]", 32, "no security group `shop-x`"),
        ("kind: Aplication", "kind: Application", 41, "did you mean `Application`"),
        ("application: shpo", "application: shop", 3, "no application `shpo`"),
    ];
    for (wrong, right, line, message) in cases {
        let path = write(&server, "shop.yaml", &good.replacen(right, wrong, 1))?;
        let file = path.to_str().unwrap_or_default();
        let done = apply(&server, &["-f", file]).await?.with_status(2)?;
        let place = format!("{file}:{line}: ");
        anyhow::ensure!(done.err.contains(&place) && done.err.contains(message), "{wrong}: {}", done.err);
        let done = apply(&server, &["-f", file, "--json"]).await?.with_status(2)?;
        let answer = done.json()?;
        anyhow::ensure!(answer["error"]["code"] == "INVALID", "{answer}");
        anyhow::ensure!(answer["error"]["message"].as_str().is_some_and(|text| text.contains(&place)), "{answer}");
    }
    let path = write(&server, "broken.yaml", "kind: Application\nname: [shop\n")?;
    let done = apply(&server, &["-f", path.to_str().unwrap_or_default()]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("broken.yaml:"), "{}", done.err);
    let twice = write(&server, "twice.yaml", "kind: Application\nname: a\n---\nkind: Application\nname: a\n")?;
    let done = apply(&server, &["-f", twice.to_str().unwrap_or_default()]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("twice.yaml:4:") && done.err.contains("twice.yaml:1"), "{}", done.err);
    let none = apply(&server, &["-f", "/nowhere/at/all.yaml"]).await?.with_status(2)?;
    anyhow::ensure!(none.err.contains("/nowhere/at/all.yaml"), "{}", none.err);
    let data = server.client().query("{ applications { totalCount } executions { totalCount } }", json!({})).await?;
    anyhow::ensure!(data["applications"]["totalCount"] == 0 && data["executions"]["totalCount"] == 0, "{data}");
    Ok(())
}

async fn round_trip() -> Outcome {
    let server = Server::start().await?;
    // What the demo makes by the API, and what the files of the trials make.
    Hello::create(&server).await?;
    let (from, to) = server.load_balancer_ports();
    write(&server, "shop.yaml", &shop((from + 1, to)))?;
    let file = server.dir().join("shop.yaml");
    apply(&server, &["-f", file.to_str().unwrap_or_default()]).await?.with_status(0)?;

    let out = server.dir().join("exported");
    let out = out.to_str().unwrap_or_default();
    let exported = server.gennaker(&["export", "-o", out]).await?.with_status(0)?;
    anyhow::ensure!(exported.out.lines().count() == 8, "{}", exported.out);
    let back = apply(&server, &["-f", out, "--json"]).await?.with_status(0)?;
    let actions = actions(&back)?;
    anyhow::ensure!(actions.len() == 8, "{actions:?}");
    anyhow::ensure!(actions.iter().all(|(_, action)| action == "unchanged"), "{}", back.out);

    // The same over standard output and input, and as JSON.
    for json in [false, true] {
        let flags: &[&str] = if json { &["export", "--kind", "Pipeline", "--json"] } else { &["export"] };
        let mut text = server.gennaker(flags).await?.with_status(0)?.out;
        if json {
            let value: Value = serde_json::from_str(&text)?;
            let documents = value["documents"].as_array().cloned().unwrap_or_default();
            anyhow::ensure!(documents.len() == 2, "{value}");
            text = documents.iter().map(|document| format!("---\n{document}\n")).collect();
        }
        let back = server.gennaker_with(&["apply", "-f", "-"], &text).await?.with_status(0)?;
        anyhow::ensure!(back.out.lines().all(|line| line.starts_with("unchanged ")), "{}", back.out);
    }
    // Another server takes them as they are.
    let other = Server::start().await?;
    let pipeline = format!("{out}/hello/3-pipeline.deploy%20hello.yaml");
    let application = format!("{out}/hello/0-application.hello.yaml");
    let made = other.gennaker(&["apply", "-f", &pipeline, "-f", &application]).await?.with_status(0)?;
    anyhow::ensure!(made.out.contains("created pipeline hello/deploy hello"), "{}", made.out);
    let again = other.gennaker(&["apply", "-f", &pipeline, "-f", &application]).await?.with_status(0)?;
    anyhow::ensure!(again.out.lines().all(|line| line.starts_with("unchanged ")), "{}", again.out);
    server.gennaker(&["export", "--application", "nothing"]).await?.with_status(2)?;
    Ok(())
}

async fn prune() -> Outcome {
    let server = Server::start().await?;
    let all = shop(server.load_balancer_ports());
    let path = write(&server, "shop.yaml", &all)?;
    let file = path.to_str().unwrap_or_default().to_owned();
    apply(&server, &["-f", &file]).await?.with_status(0)?;
    let extra = "kind: Pipeline\napplication: shop\nname: old\nstages: [{key: w, kind: wait, config: {seconds: 0}}]\n";
    let extra = write(&server, "old.yaml", extra)?;
    apply(&server, &["-f", extra.to_str().unwrap_or_default()]).await?.with_status(0)?;

    let dry = apply(&server, &["-f", &file, "--prune", "--dry-run"]).await?.with_status(0)?;
    anyhow::ensure!(dry.out.starts_with("no file mentions pipeline shop/old\n"), "{}", dry.out);
    anyhow::ensure!(dry.out.contains("deleted pipeline shop/old (dry run)"), "{}", dry.out);
    let kept = apply(&server, &["-f", &file]).await?.with_status(0)?;
    anyhow::ensure!(!kept.out.contains("old"), "without --prune nothing is deleted: {}", kept.out);
    // Only pipelines are in the file: the load balancer is not its affair.
    let pipelines = write(&server, "pipelines.yaml", all.split("---").next().unwrap_or_default())?;
    let done = apply(&server, &["-f", pipelines.to_str().unwrap_or_default(), "--prune", "--json"]).await?;
    let actions = actions(&done.with_status(0)?)?;
    let wanted = [("Pipeline", "unchanged"), ("Pipeline", "deleted")];
    anyhow::ensure!(actions.iter().map(|(k, a)| (k.as_str(), a.as_str())).eq(wanted), "{actions:?}");
    let data =
        server.client().query("{ pipelines { nodes { name } } loadBalancers { totalCount } }", json!({})).await?;
    anyhow::ensure!(data["pipelines"]["nodes"] == json!([{ "name": "deploy" }]), "{data}");
    anyhow::ensure!(data["loadBalancers"]["totalCount"] == 1, "{data}");
    // With another load balancer in its place, the old one goes.
    let renamed = all.replace("kind: LoadBalancer\nname: shop", "kind: LoadBalancer\nname: shop-web");
    let path = write(&server, "shop.yaml", &renamed)?;
    let done = apply(&server, &["-f", path.to_str().unwrap_or_default(), "--prune"]).await?.with_status(0)?;
    anyhow::ensure!(done.out.contains("deleted load balancer shop\n"), "{}", done.out);
    let data = server.client().query("{ loadBalancers { nodes { name } } }", json!({})).await?;
    anyhow::ensure!(data["loadBalancers"]["nodes"] == json!([{ "name": "shop-web" }]), "{data}");
    Ok(())
}

async fn goes_on() -> Outcome {
    let server = Server::start().await?;
    let (from, _) = server.load_balancer_ports();
    // Somebody else holds the only port that the load balancer may have.
    let held = std::net::TcpListener::bind(("127.0.0.1", from))?;
    let path = write(&server, "shop.yaml", &shop((from, from)))?;
    let file = path.to_str().unwrap_or_default();
    let done = apply(&server, &["-f", file, "--json", "--timeout", "60s"]).await?.with_status(1)?;
    let found = actions(&done)?;
    let wanted =
        [("Application", "created"), ("SecurityGroup", "created"), ("LoadBalancer", "failed"), ("Pipeline", "skipped")];
    anyhow::ensure!(found.iter().map(|(k, a)| (k.as_str(), a.as_str())).eq(wanted), "{}", done.out);
    let error = done.json()?["objects"][2]["error"].clone();
    anyhow::ensure!(error.as_str().is_some_and(|error| error.contains("Upsert load balancer shop #")), "{error}");
    drop(held);
    let done = apply(&server, &["-f", file, "--json"]).await?.with_status(0)?;
    let found: Vec<_> = actions(&done)?.into_iter().map(|(_, action)| action).collect();
    anyhow::ensure!(found[..2] == ["unchanged", "unchanged"] && found[3] == "created", "{}", done.out);
    let last = apply(&server, &["-f", file, "--json"]).await?.with_status(0)?;
    anyhow::ensure!(actions(&last)?.iter().all(|(_, action)| action == "unchanged"), "{}", last.out);
    // Whoever may only look is refused.
    let viewer = as_principal(&server, "vera", "viewer")?;
    let changed = shop((from, from)).replace("The shop,", "Our shop,");
    write(&server, "shop.yaml", &changed)?;
    let done = server.gennaker(&["apply", "-f", file, "--token", &viewer]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("vera"), "{}", done.err);
    Ok(())
}

async fn masked() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    // A literal whose name says nothing to the schema of this kind, and everything to who shows it.
    let definition = json!({ "stages": [{ "key": "w", "kind": "wait", "config": { "seconds": 0 } }],
        "parameters": [{ "name": "api", "default": { "token": "abc" } }] });
    hello.save("plain", &definition).await?;
    let exported = server.gennaker(&["export", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(exported["leftOut"] == json!([]), "{exported}");
    let text = "kind: Pipeline\napplication: hello\nname: stars\nstages:\n  - key: call\n    kind: webhook\n    \
                config:\n      url: http://example.org/\n      headers:\n        authorization: \"***\"\n";
    let path = write(&server, "stars.yaml", text)?;
    let done = apply(&server, &["-f", path.to_str().unwrap_or_default()]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("stars.yaml:10:") && done.err.contains("secret://"), "{}", done.err);
    // A body that the schema leaves free may hold what is hidden when shown.
    let definition = json!({ "stages": [{ "key": "call", "kind": "webhook", "config": {
        "url": "http://example.org/", "method": "POST", "body": { "password": "hunter22" } } }] });
    hello.save("hidden", &definition).await?;
    let out = server.dir().join("exported");
    let out = out.to_str().unwrap_or_default();
    let done = server.gennaker(&["export", "-o", out]).await?.with_status(1)?;
    anyhow::ensure!(
        done.err.contains("hello/hidden") && done.err.contains("stages.0.config.body.password"),
        "{}",
        done.err
    );
    anyhow::ensure!(!std::path::Path::new(out).join("hello/3-pipeline.hidden.yaml").exists());
    let back = apply(&server, &["-f", out]).await?.with_status(0)?;
    anyhow::ensure!(back.out.lines().all(|line| line.starts_with("unchanged ")), "{}", back.out);
    anyhow::ensure!(back.out.contains(setup::PIPELINE), "{}", back.out);
    Ok(())
}
