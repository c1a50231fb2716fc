//! `gennaker apply` and `export`, with the real binary against a real server.

mod forms;
mod together;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{Done, Hello, Outcome, Server, as_principal, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("apply", "files_are_brought_over_once_and_are_unchanged_then", twice),
        trial("apply", "a_document_that_does_not_hold_is_refused_with_file_and_line_before_anything_is_done", refused),
        trial("apply", "what_is_exported_is_applied_back_unchanged", round_trip),
        trial("apply", "prune_deletes_what_no_file_mentions_and_a_dry_run_does_not", prune),
        trial("apply", "after_a_failure_it_says_what_is_done_and_goes_on_when_run_again", goes_on),
        trial("apply", "a_hidden_secret_is_neither_exported_nor_applied", masked),
        trial("apply", "what_an_export_left_out_stays_also_with_prune", kept),
        trial("apply", "export_names_files_of_what_is_gone_and_removes_only_what_it_wrote", stale_files),
        trial("apply", "a_pipe_among_the_files_of_a_directory_is_refused_by_its_name", pipe),
        trial("apply", "all_that_does_not_hold_is_told_at_once_and_nothing_is_done", all_at_once),
        trial("apply", "whoever_may_not_save_is_told_before_anything_is_done", may_not_save),
        trial("apply", "a_trigger_may_wait_for_what_the_same_files_make", chains),
        trial("apply", "pipelines_that_would_start_each_other_are_refused_before_anything_is_done", circle),
        trial("apply", "a_trigger_without_its_source_is_exported_with_a_warning_and_mended_by_apply", dead_trigger),
        trial("apply", "every_sort_of_field_goes_out_and_in_unchanged", every_field),
        trial("apply", "prune_does_not_delete_what_a_file_needs", prune_keeps_needed),
        trial("apply", "prune_refuses_what_is_in_use_before_anything_is_done", prune_keeps_used),
        trial("apply", "two_load_balancers_with_one_port_are_refused_before_anything_is_done", one_port),
        trial("apply", "five_at_once_make_each_object_once_and_none_fails", together::five_at_once),
        trial("apply", "json_and_yaml_are_read_from_files_and_directories", forms::json_and_directories),
        trial("apply", "what_is_exported_as_json_is_applied_back_unchanged", forms::exported_json),
        trial("apply", "what_was_deleted_is_made_again", together::made_again),
        trial("apply", "a_port_goes_from_one_load_balancer_to_another", together::one_port_from_one_to_another),
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
        ("  interval: soon", "  interval: PT0.50S", 31, "a span of time such as PT30S or PT0.5S, not `soon`"),
        ("    requires: [wiat]", "    requires: [wait]", 17, "did you mean `wait`"),
        ("    onFailure: continue", "    onFailure: CONTINUE", 18, "did you mean `CONTINUE`"),
        ("      seconds: many", "      seconds: 0", 21, "seconds"),
        ("  - on: [NOPE]", "  - on: [COMPLETED, FAILED]", 23, "FAILED, CANCELED, APPROVAL_NEEDED, not `NOPE`"),
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
    let limited = "kind: Application\nname: shop\n---\nkind: Pipeline\napplication: shop\nname: deploy\nstages:\n  - key: deploy\n    \
                   kind: deploy\n    config:\n      clusters:\n        - capacity: { min: 1, desired: 1, max: 1 }\n          \
                   launch:\n            artifact: { path: /srv/x }\n            command: [./x]\n            \
                   limits: { memoryBytes: 512 }\n";
    let path = write(&server, "limited.yaml", limited)?;
    let done = apply(&server, &["-f", path.to_str().unwrap_or_default()]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("limited.yaml:16: pipeline shop/deploy: "), "{}", done.err);
    let said = "512 bytes are too few for any program; give at least 1048576 (1 MiB)";
    anyhow::ensure!(done.err.contains(said), "{}", done.err);
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
    let stand_in = std::fs::read_to_string(std::path::Path::new(out).join("hello/3-pipeline.hidden.yaml"))?;
    anyhow::ensure!(stand_in.contains("leftOut:") && !stand_in.contains("***"), "{stand_in}");
    let back = apply(&server, &["-f", out]).await?.with_status(0)?;
    anyhow::ensure!(back.out.lines().all(|line| line.starts_with("unchanged ")), "{}", back.out);
    anyhow::ensure!(back.out.contains(setup::PIPELINE), "{}", back.out);
    // Addresses are hidden by role: no reference helps.
    let mail = json!([{ "on": ["FAILED"], "email": { "to": ["vera@example.org"] } }]);
    let definition = json!({ "notifications": mail, "stages": [
        { "key": "w", "kind": "wait", "config": { "seconds": 0 }, "notifications": mail }] });
    hello.save("mails", &definition).await?;
    let viewer = as_principal(&server, "vera", "viewer")?;
    let done = server.gennaker(&["export", "--token", &viewer]).await?.with_status(1)?;
    let line = done.err.lines().find(|line| line.contains("hello/mails")).unwrap_or_default();
    anyhow::ensure!(line.contains("role may not see") && !line.contains("secret://"), "{}", done.err);
    for place in ["notifications.0.email.to.0", "stages.0.notifications.0.email.to.0"] {
        anyhow::ensure!(line.contains(place), "{}", done.err);
    }
    Ok(())
}

/// The pipelines of the server, by name.
async fn pipelines(server: &Server) -> anyhow::Result<Vec<String>> {
    let data = server.client().query("{ pipelines { nodes { name } } }", json!({})).await?;
    let nodes = data["pipelines"]["nodes"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<_> = nodes.iter().filter_map(|node| node["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

async fn kept() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.save("plain", &json!({ "stages": [{ "key": "w", "kind": "wait", "config": { "seconds": 0 } }] })).await?;
    let source = json!({ "application": "hello", "pipeline": "plain" });
    let hidden = json!({ "stages": [{ "key": "call", "kind": "webhook", "config": {
            "url": "http://example.org/", "method": "POST", "body": { "password": "hunter22" } } }],
        "triggers": [{ "key": "after", "kind": "pipeline", "config": source }] });
    hello.save("hidden", &hidden).await?;
    let all = pipelines(&server).await?;
    anyhow::ensure!(all.iter().any(|name| name == "hidden"), "{all:?}");

    // Over a pipe, as YAML and as JSON, and what a program picks out of the latter.
    let yaml = server.gennaker(&["export"]).await?.with_status(1)?.out;
    let json = server.gennaker(&["export", "--json"]).await?.with_status(1)?;
    let picked = json.json()?["documents"].as_array().cloned().unwrap_or_default();
    let picked: String = picked.iter().map(|document| format!("---\n{document}\n")).collect();
    for text in [&yaml, &json.out, &picked] {
        anyhow::ensure!(!text.contains("***") && !text.contains("hunter22"), "{text}");
        let done = server.gennaker_with(&["apply", "-f", "-", "--prune"], text).await?.with_status(0)?;
        anyhow::ensure!(done.out.lines().all(|line| line.starts_with("unchanged ")), "{}", done.out);
        let said = "unchanged pipeline hello/hidden: left out of the export, so it stays";
        anyhow::ensure!(done.out.contains(said), "{}", done.out);
        let done =
            server.gennaker_with(&["apply", "-f", "-", "--prune", "--json"], text).await?.with_status(0)?.json()?;
        let object =
            done["objects"].as_array().into_iter().flatten().find(|object| object["name"] == "hidden").cloned();
        let object = object.unwrap_or_default();
        let reason = object["reason"].as_str().unwrap_or_default();
        anyhow::ensure!(object["action"] == "unchanged" && reason.contains("left out"), "{object}");
    }
    anyhow::ensure!(pipelines(&server).await? == all);
    // What it needs is not deleted either.
    let without: Vec<&str> = yaml.split("---\n").filter(|document| !document.contains("name: plain")).collect();
    let done = server.gennaker_with(&["apply", "-f", "-", "--prune"], &without.join("---\n")).await?.with_status(2)?;
    let said = "pipeline hello/hidden: it needs pipeline hello/plain, which --prune would delete";
    anyhow::ensure!(done.err.contains(said), "{}", done.err);
    anyhow::ensure!(pipelines(&server).await? == all);

    // By a directory. A file that somebody has written whole is not overwritten, and stands for it too.
    let out = server.dir().join("exported");
    let dir = out.to_str().unwrap_or_default();
    let stand_in = out.join("hello/3-pipeline.hidden.yaml");
    for _ in 0..2 {
        server.gennaker(&["export", "-o", dir]).await?.with_status(1)?;
        anyhow::ensure!(std::fs::read_to_string(&stand_in)?.contains("leftOut:"));
    }
    apply(&server, &["-f", dir, "--prune"]).await?.with_status(0)?;
    anyhow::ensure!(pipelines(&server).await? == all);
    let whole = "kind: Pipeline\napplication: hello\nname: hidden\nstages: []\n";
    std::fs::write(&stand_in, whole)?;
    let again = server.gennaker(&["export", "-o", dir]).await?.with_status(1)?;
    anyhow::ensure!(again.err.contains("3-pipeline.hidden.yaml is left as it is"), "{}", again.err);
    anyhow::ensure!(std::fs::read_to_string(&stand_in)? == whole);

    // It says nothing but that, and another server has nothing that could stay.
    let stands_for = "kind: Pipeline\napplication: hello\nname: hidden\nleftOut: [a]\n";
    for (text, line, said) in [
        (format!("{stands_for}stages: []\n"), 5, "`stages` stands beside `leftOut`"),
        (stands_for.replace("[a]", "true"), 4, "`leftOut` is a list"),
        (stands_for.replace("application: hello\n", ""), 1, "`application` is missing"),
        (stands_for.replace("name: hidden", "name: nothing"), 4, "an export left it out, and this server has none"),
    ] {
        let path = write(&server, "stand-in.yaml", &text)?;
        let done = apply(&server, &["-f", path.to_str().unwrap_or_default(), "--prune"]).await?.with_status(2)?;
        let place = format!("{}:{line}: ", path.display());
        anyhow::ensure!(done.err.contains(&place) && done.err.contains(said), "{place}{said}\n{}", done.err);
    }
    anyhow::ensure!(pipelines(&server).await? == all);
    Ok(())
}

async fn stale_files() -> Outcome {
    let server = Server::start().await?;
    // As long as a name may be, and none of its characters is plain in a file's name.
    let long = |last: char| format!("{}{last}", "\u{e4}".repeat(99));
    let names = ["a".to_owned(), "b".to_owned(), "c".to_owned(), long('\u{f6}'), long('\u{fc}')];
    let made: String = names.iter().map(|name| after(name, &[])).collect();
    let file = write(&server, "a.yaml", &format!("{SHOP}{made}"))?;
    apply(&server, &["-f", file.to_str().unwrap_or_default()]).await?.with_status(0)?;
    let other = write(&server, "b.yaml", &format!("{SHOP}{}", after("a", &[])).replace("shop", "old"))?;
    apply(&server, &["-f", other.to_str().unwrap_or_default()]).await?.with_status(0)?;
    let out = server.dir().join("exported");
    let dir = out.to_str().unwrap_or_default();
    let export = async |flags: &[&str]| server.gennaker(&[&["export", "-o", dir], flags].concat()).await;
    export(&[]).await?.with_status(0)?;
    let back = apply(&server, &["-f", dir]).await?.with_status(0)?;
    anyhow::ensure!(back.out.lines().count() == 8, "{}", back.out);
    anyhow::ensure!(back.out.lines().all(|line| line.starts_with("unchanged ")), "{}", back.out);
    let at = |name: &str| out.join("shop").join(name);
    let (a, b, c, d) =
        (at("3-pipeline.a.yaml"), at("3-pipeline.b.yaml"), at("3-pipeline.c.yaml"), at("3-pipeline.d.yaml"));
    let shortened = |name: &str| {
        let digest = hex::encode(Sha256::digest(name));
        at(&format!("3-pipeline.{}%C3-{}.yaml", "%C3%A4".repeat(17), &digest[..16]))
    };
    let (gone_long, kept_long) = (shortened(&names[3]), shortened(&names[4]));
    anyhow::ensure!(gone_long.exists() && kept_long.exists(), "{}{}", gone_long.display(), kept_long.display());
    let known = || entries_of(&out);
    let all = known()?;
    let is_sorted = all.is_sorted_by(|(_, before), (_, after)| before < after);
    anyhow::ensure!(all.len() == 8 && is_sorted, "{all:?}");
    anyhow::ensure!(all.iter().any(|(_, path)| path == "shop/3-pipeline.b.yaml"), "{all:?}");
    // One was changed by hand since, and still is as an export would write it; one was copied and made
    // another's, and never applied; and there are files of others, also where a pipeline's would be.
    let copy = std::fs::read_to_string(&b)?;
    let changed = std::fs::read_to_string(&c)?.replace("seconds: 0", "seconds: 1");
    anyhow::ensure!(changed.contains("seconds: 1"), "{changed}");
    std::fs::write(&c, &changed)?;
    std::fs::write(&d, copy.replace("name: b\n", "name: d\n"))?;
    std::fs::write(at("mine.yaml"), &copy)?;
    std::fs::write(at("3-pipeline.z.yaml"), &copy)?;
    std::fs::write(at("README"), "of Vera")?;
    std::fs::write(out.join("3-pipeline.b.yaml"), &copy)?;
    for (application, name) in [("shop", "b"), ("shop", "c"), ("old", "a"), ("shop", &long('\u{f6}'))] {
        delete_pipeline(&server, application, name).await?;
    }
    let old = out.join("old/3-pipeline.a.yaml");

    let line = |done: &Done, path: &PathBuf| {
        done.err.lines().find(|line| line.contains(&path.display().to_string())).map(str::to_owned)
    };
    let stays = "was changed since, or was not written by an export";
    let done = export(&[]).await?.with_status(1)?;
    for (path, is_ours) in [(&b, true), (&c, false), (&d, false), (&old, true), (&gone_long, true)] {
        let said = line(&done, path).unwrap_or_default();
        anyhow::ensure!(said.contains("would make it") && path.exists(), "{}: {}", path.display(), done.err);
        let held = (said.contains("export with --prune"), said.contains(stays));
        anyhow::ensure!(held == (is_ours, !is_ours), "{}: {}", path.display(), done.err);
    }
    anyhow::ensure!(done.err.lines().count() == 5, "{}", done.err);
    anyhow::ensure!(known()? == all, "{:?}", known()?);
    // Only what is exported is looked at, and of the rest it is remembered what was written.
    for scope in [&["--application", "old"][..], &["--kind", "Pipeline", "--application", "old"]] {
        let done = export(scope).await?.with_status(1)?;
        anyhow::ensure!(line(&done, &old).is_some() && done.err.lines().count() == 1, "{}", done.err);
    }
    export(&["--kind", "Application", "--prune"]).await?.with_status(0)?;
    server.gennaker(&["export", "--prune"]).await?.with_status(2)?;
    anyhow::ensure!(known()? == all, "{:?}", known()?);

    let done = export(&["--prune", "--json"]).await?.with_status(1)?;
    let answer = done.json()?;
    let removed = json!([old, gone_long, b]);
    anyhow::ensure!(answer["removed"] == removed && answer["stale"] == json!([c, d]), "{answer}");
    anyhow::ensure!(!b.exists() && !old.exists() && !gone_long.exists(), "{answer}");
    for path in [&c, &d] {
        let said = line(&done, path).unwrap_or_default();
        anyhow::ensure!(said.contains(&format!("{stays}: it stays")), "{}", done.err);
    }
    let others = [at("mine.yaml"), at("3-pipeline.z.yaml"), at("README"), out.join("3-pipeline.b.yaml")];
    for path in others.iter().chain([&a, &c, &d, &kept_long]) {
        anyhow::ensure!(path.exists(), "{} was removed", path.display());
    }
    anyhow::ensure!(std::fs::read_to_string(&c)? == changed);
    let left: Vec<_> = all.iter().filter(|(_, path)| out.join(path).exists()).cloned().collect();
    anyhow::ensure!(left.len() == 5 && known()? == left, "{:?}", known()?);
    // Without its memory nothing is known to be an export's.
    std::fs::remove_file(&d)?;
    std::fs::write(&b, &copy)?;
    std::fs::remove_file(out.join(".gennaker-export"))?;
    let done = export(&["--prune"]).await?.with_status(1)?;
    anyhow::ensure!(b.exists() && line(&done, &b).is_some_and(|line| line.contains(stays)), "{}", done.err);
    for path in others.iter().chain([&b, &c]) {
        std::fs::remove_file(path)?;
    }
    let done = export(&["--prune"]).await?.with_status(0)?;
    anyhow::ensure!(!done.out.contains("removed") && done.err.is_empty(), "{}{}", done.out, done.err);
    let back = apply(&server, &["-f", dir, "--prune"]).await?.with_status(0)?;
    anyhow::ensure!(back.out.lines().all(|line| line.starts_with("unchanged ")), "{}", back.out);

    // What stands for a pipeline that was left out goes the same way.
    let hidden = json!({ "kind": "Pipeline", "application": "shop", "name": "hidden", "stages": [{
        "key": "call", "kind": "webhook", "config": {
            "url": "http://example.org/", "method": "POST", "body": { "password": "hunter22" } } }] });
    server.gennaker_with(&["apply", "-f", "-"], &format!("{SHOP}---\n{hidden}\n")).await?.with_status(0)?;
    export(&[]).await?.with_status(1)?;
    delete_pipeline(&server, "shop", "hidden").await?;
    let stand_in = at("3-pipeline.hidden.yaml");
    let done = export(&[]).await?.with_status(1)?;
    let said = line(&done, &stand_in).unwrap_or_default();
    anyhow::ensure!(said.contains("`gennaker apply` refuses it") && !said.contains("would make"), "{}", done.err);
    apply(&server, &["-f", dir]).await?.with_status(2)?;
    let done = export(&["--prune"]).await?.with_status(0)?;
    anyhow::ensure!(!stand_in.exists() && done.out.contains("removed "), "{}", done.out);
    apply(&server, &["-f", dir]).await?.with_status(0)?;
    Ok(())
}

async fn delete_pipeline(server: &Server, application: &str, name: &str) -> Outcome {
    let delete = "mutation($input: DeletePipelineInput!) { deletePipeline(input: $input) { userErrors { message } } }";
    let name = json!({ "application": application, "name": name });
    server.client().mutate(delete, json!({ "pipeline": { "name": name } })).await?;
    Ok(())
}

/// Digest and path of each file that an export remembers to have written.
fn entries_of(directory: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(directory.join(".gennaker-export"))?;
    let split = |line: &str| line.split_once("  ").map(|(digest, path)| (digest.to_owned(), path.to_owned()));
    let entries: Option<Vec<_>> = text.lines().map(split).collect();
    let entries = entries.with_context(|| format!("a line of another form: {text}"))?;
    anyhow::ensure!(entries.iter().all(|(digest, _)| digest.len() == 64), "{text}");
    Ok(entries)
}

async fn pipe() -> Outcome {
    let server = Server::start().await?;
    let dir = server.dir().join("files");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("a.yaml"), "kind: Application\nname: shop\n")?;
    nix::unistd::mkfifo(&dir.join("x.yaml"), nix::sys::stat::Mode::S_IRWXU)?;
    let args = ["-f", dir.to_str().unwrap_or_default()];
    let done =
        tokio::time::timeout(std::time::Duration::from_secs(30), apply(&server, &args)).await??.with_status(2)?;
    anyhow::ensure!(done.err.contains("x.yaml is no regular file"), "{}", done.err);
    nothing_was_done(&server).await
}

/// The line of a text in which a part of it stands, from 1.
fn line_of(text: &str, part: &str) -> usize {
    text.lines().position(|line| line.contains(part)).map_or(0, |index| index + 1)
}

async fn nothing_was_done(server: &Server) -> Outcome {
    let data = server.client().query("{ applications { totalCount } executions { totalCount } }", json!({})).await?;
    anyhow::ensure!(data["applications"]["totalCount"] == 0 && data["executions"]["totalCount"] == 0, "{data}");
    Ok(())
}

async fn all_at_once() -> Outcome {
    let server = Server::start().await?;
    let text = "\
kind: Application
name: Shop
email: nobody
---
kind: Application
name: shop
description: fine
---
kind: SecurityGroup
name: shop-v001
inbound: [{ cidr: 10.0.0.0/8, portFrom: 1, portTo: 2 }]
---
kind: SecurityGroup
name: shop
inbound:
  - { cidr: 10.0.0.0/8, portFrom: 9, portTo: 8 }
---
kind: SecurityGroup
name: shop-net
inbound:
  - { cidr: 10.0.0.0/99, portFrom: 1, portTo: 2 }
---
kind: LoadBalancer
name: shop
listeners:
  - { port: 9000, portTo: 8999 }
securityGroups: [shop, shop-nett]
---
kind: LoadBalancer
name: shop-checked
listeners: [{ port: 9100 }]
healthCheck:
  protocol: HTTP
  interval: PT0.001S
drain: PT2H
---
kind: LoadBalancer
name: shop-high
listeners: [{ port: 70000 }]
---
kind: LoadBalancer
name: shop-odd
location: mars
listeners:
  - { address: localhost, port: 9200 }
---
kind: Pipeline
application: shop
name: deploy
stages:
  - key: deploy
    kind: deploy
    config:
      clusters:
        - capacity: { min: 1, desired: 1, max: 1 }
          strategy:
            kind: redBlack
            scaledown: true
          launch: { artifact: { path: /srv/x }, command: [./x] }
  - key: wait
    kind: wait
    requires: [deplyo]
    config:
      secnds: 1
triggers:
  - key: nightly
    kind: cron
    config:
      expression: \"61 3 * * *\"
  - key: zone
    kind: cron
    config:
      expression: \"0 3 * * *\"
      timezone: Europe/Berlin
  - key: after
    kind: pipeline
    config:
      application: shop
      pipeline: biuld
";
    let path = write(&server, "shop.yaml", text)?;
    let file = path.to_str().unwrap_or_default();
    let dry = apply(&server, &["-f", file, "--dry-run"]).await?.with_status(2)?;
    // (the line, the document, what is said, the field)
    for (line, document, says, field) in [
        ("name: Shop", "application Shop", "lower-case letters", "name"),
        ("email: nobody", "application Shop", "`nobody` is not an address", "email"),
        ("name: shop-v001", "security group shop-v001", "ends like a server group's (`v001`); use `shop`", "name"),
        ("portTo: 8 }", "security group shop", "below the range's first port", "inbound.0.portTo"),
        ("10.0.0.0/99", "security group shop-net", "`10.0.0.0/99`: it is no CIDR block", "inbound.0.cidr"),
        ("portTo: 8999", "load balancer shop", "below the range's first port", "listeners.0.portTo"),
        ("shop-nett", "load balancer shop", "there is no security group `shop-nett`", "securityGroups.1"),
        ("healthCheck:", "load balancer shop-checked", "\"path\" is a required property", "healthCheck"),
        ("interval: PT0.001S", "load balancer shop-checked", "in milliseconds, 1 is less", "healthCheck.interval"),
        ("drain: PT2H", "load balancer shop-checked", "in seconds, 7200 is greater", "drain"),
        ("port: 70000", "load balancer shop-high", "70000 is greater than the maximum of 65535", "listeners.0.port"),
        ("address: localhost", "load balancer shop-odd (local/mars)", "`localhost`: invalid IP", "listeners.0.address"),
        (
            "scaledown: true",
            "pipeline shop/deploy",
            "there is no field `scaledown`; did you mean `scaleDown`?",
            "stages.0.config.clusters.0.strategy.scaledown",
        ),
        ("requires: [deplyo]", "pipeline shop/deploy", "did you mean `deploy`?", "stages.1.requires.0"),
        ("secnds: 1", "pipeline shop/deploy", "did you mean `seconds`?", "stages.1.config.secnds"),
        ("61 3 * * *", "pipeline shop/deploy", "`61` is no minute", "triggers.0.config.expression"),
        ("timezone: Eu", "pipeline shop/deploy", "did you mean `timeZone`?", "triggers.1.config.timezone"),
        ("pipeline: biuld", "pipeline shop/deploy", "has no pipeline `biuld`", "triggers.2.config.pipeline"),
    ] {
        let begins = format!("{file}:{}: {document}: ", line_of(text, line));
        let ends = format!("(at {field})");
        let told = |said: &&str| said.contains(&begins) && said.contains(says) && said.ends_with(&ends);
        anyhow::ensure!(dry.err.lines().any(|said| told(&said)), "no `{begins}…{says}…{ends}` in\n{}", dry.err);
    }
    anyhow::ensure!(dry.err.contains("`0 3 * * MON-FRI`"), "{}", dry.err);
    // Without --dry-run it is the same, and nothing is half done.
    let done = apply(&server, &["-f", file]).await?.with_status(2)?;
    anyhow::ensure!(done.err == dry.err, "{}\n{}", done.err, dry.err);
    nothing_was_done(&server).await
}

async fn may_not_save() -> Outcome {
    let server = Server::start().await?;
    let viewer = as_principal(&server, "vera", "viewer")?;
    let path = write(&server, "shop.yaml", &shop(server.load_balancer_ports()))?;
    let file = path.to_str().unwrap_or_default();
    let viewing = ["apply", "-f", file, "--dry-run", "--token", &viewer];
    let refused = server.gennaker(&viewing).await?.with_status(2)?;
    for part in ["application shop", "vera", "OPERATOR", "nothing was done"] {
        anyhow::ensure!(refused.err.contains(part), "{part}: {}", refused.err);
    }
    nothing_was_done(&server).await?;
    apply(&server, &["-f", file]).await?.with_status(0)?;
    // To look whether all is as the files say needs no more than to look.
    let same = server.gennaker(&viewing).await?.with_status(0)?;
    anyhow::ensure!(same.out.lines().all(|line| line.starts_with("unchanged ")), "{}", same.out);
    for (right, wrong, part) in [
        ("The shop,", "Our shop,", "application shop"),
        ("path: /health", "path: /healthy", "load balancer shop"),
        ("cidr: 127.0.0.0/8", "cidr: 127.0.0.0/16", "security group shop"),
        ("timeoutSeconds: 60", "timeoutSeconds: 61", "pipeline shop/deploy"),
    ] {
        write(&server, "shop.yaml", &shop(server.load_balancer_ports()).replace(right, wrong))?;
        let refused = server.gennaker(&viewing).await?.with_status(2)?;
        anyhow::ensure!(refused.err.contains(part) && refused.err.contains("vera"), "{part}: {}", refused.err);
    }
    Ok(())
}

/// A pipeline of `shop`, started by the ends of others.
fn after(name: &str, sources: &[&str]) -> String {
    let triggers: Vec<Value> = sources
        .iter()
        .map(|source| {
            let config = json!({ "application": "shop", "pipeline": source });
            json!({ "key": format!("after-{source}"), "kind": "pipeline", "config": config })
        })
        .collect();
    let stages = json!([{ "key": "w", "kind": "wait", "config": { "seconds": 0 } }]);
    let fields =
        json!({ "kind": "Pipeline", "application": "shop", "name": name, "stages": stages, "triggers": triggers });
    format!("---\n{fields}\n")
}

const SHOP: &str = "kind: Application\nname: shop\n";

/// Each trigger of the pipelines of `shop`, with the name of its source.
async fn sources(server: &Server) -> anyhow::Result<Vec<(String, String)>> {
    const TRIGGERS: &str =
        "{ application(name: \"shop\") { pipelines { nodes { name triggers { problem source { name } } } } } }";
    let data = server.client().query(TRIGGERS, json!({})).await?;
    let mut found = Vec::new();
    for node in data["application"]["pipelines"]["nodes"].as_array().into_iter().flatten() {
        for trigger in node["triggers"].as_array().into_iter().flatten() {
            anyhow::ensure!(trigger["problem"].is_null(), "{data}");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            found.push((text(&node["name"]), text(&trigger["source"]["name"])));
        }
    }
    found.sort();
    Ok(found)
}

async fn chains() -> Outcome {
    let server = Server::start().await?;
    let both = |name: &str, source: &str| (name.to_owned(), source.to_owned());
    // Whoever needs another stands before it.
    let files = [after("a", &["b", "c"]), after("b", &["c"]), after("c", &[]), format!("---\n{SHOP}")].concat();
    let path = write(&server, "shop.yaml", &files)?;
    let file = path.to_str().unwrap_or_default();
    apply(&server, &["-f", file, "--dry-run"]).await?.with_status(0)?;
    nothing_was_done(&server).await?;
    apply(&server, &["-f", file]).await?.with_status(0)?;
    anyhow::ensure!(sources(&server).await? == [both("a", "b"), both("a", "c"), both("b", "c")]);
    let again = apply(&server, &["-f", file]).await?.with_status(0)?;
    anyhow::ensure!(again.out.lines().all(|line| line.starts_with("unchanged ")), "{}", again.out);
    // The whole chain turned round, and one more in the middle of it.
    let files = [after("d", &["a"]), after("c", &["b"]), after("b", &["d"]), after("a", &[])].concat();
    write(&server, "shop.yaml", &files)?;
    apply(&server, &["-f", file]).await?.with_status(0)?;
    anyhow::ensure!(sources(&server).await? == [both("b", "d"), both("c", "b"), both("d", "a")]);
    // Something beside it that does not hold is found although the source is still to come.
    let files = [after("e", &["f"]).replace("after-f", "after f"), after("f", &[])].concat();
    write(&server, "shop.yaml", &files)?;
    let done = apply(&server, &["-f", file]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("pipeline shop/e") && done.err.contains("(at triggers.0.key)"), "{}", done.err);
    write(&server, "shop.yaml", &after("e", &["g"]))?;
    let done = apply(&server, &["-f", file, "--dry-run"]).await?.with_status(2)?;
    let wanted = "application `shop` has no pipeline `g`";
    anyhow::ensure!(done.err.contains(wanted) && done.err.contains("(at triggers.0.config.pipeline)"), "{}", done.err);
    Ok(())
}

async fn circle() -> Outcome {
    let server = Server::start().await?;
    let path =
        write(&server, "shop.yaml", &[SHOP, &after("a", &["b"]), &after("b", &["c"]), &after("c", &["a"])].concat())?;
    let file = path.to_str().unwrap_or_default();
    let done = apply(&server, &["-f", file]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("without an end: shop/a → shop/c → shop/b → shop/a"), "{}", done.err);
    anyhow::ensure!(done.err.contains("pipeline shop/a: ") && done.err.contains("triggers.0.config"), "{}", done.err);
    nothing_was_done(&server).await?;
    // One half is on the server, the other in a file.
    write(&server, "shop.yaml", &[SHOP, &after("a", &[]), &after("b", &["a"])].concat())?;
    apply(&server, &["-f", file]).await?.with_status(0)?;
    write(&server, "shop.yaml", &[after("a", &["c"]), after("c", &["b"])].concat())?;
    let done = apply(&server, &["-f", file]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("without an end: shop/a → shop/b → shop/c → shop/a"), "{}", done.err);
    anyhow::ensure!(sources(&server).await? == [("b".to_owned(), "a".to_owned())]);
    Ok(())
}

async fn dead_trigger() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    let path = write(&server, "shop.yaml", &[SHOP, &after("first", &[]), &after("second", &["first"])].concat())?;
    let file = path.to_str().unwrap_or_default();
    apply(&server, &["-f", file]).await?.with_status(0)?;
    const DELETE: &str =
        "mutation ($input: DeletePipelineInput!) { deletePipeline(input: $input) { userErrors { message } } }";
    client.mutate(DELETE, json!({ "pipeline": { "name": { "application": "shop", "name": "first" } } })).await?;

    let exported = server.gennaker(&["export"]).await?.with_status(0)?;
    anyhow::ensure!(exported.out.contains("name: second"), "{}", exported.out);
    for part in ["pipeline shop/second", "`after-first`", "shop/first, which was deleted"] {
        anyhow::ensure!(exported.err.contains(part), "{part}: {}", exported.err);
    }
    let answer = server.gennaker(&["export", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(answer["warnings"][0]["name"] == "second", "{answer}");
    anyhow::ensure!(answer["warnings"][0]["message"].as_str().is_some_and(|said| said.contains("deleted")), "{answer}");
    // Neither this server nor another takes it as it is.
    let other = Server::start().await?;
    for server in [&server, &other] {
        let refused = server.gennaker_with(&["apply", "-f", "-"], &exported.out).await?.with_status(2)?;
        let said = refused.err;
        let wanted = "application `shop` has no pipeline `first`";
        anyhow::ensure!(said.contains("pipeline shop/second: ") && said.contains(wanted), "{said}");
        anyhow::ensure!(said.contains("(at triggers.0.config.pipeline)"), "{said}");
    }
    // The files that have both bring it back to life, although the second has not changed.
    let mended = apply(&server, &["-f", file]).await?.with_status(0)?;
    anyhow::ensure!(mended.out.contains("created pipeline shop/first"), "{}", mended.out);
    let why = "changed pipeline shop/second: what its trigger `after-first` waited for was deleted";
    anyhow::ensure!(mended.out.contains(why), "{}", mended.out);
    anyhow::ensure!(sources(&server).await? == [("second".to_owned(), "first".to_owned())]);
    let same = apply(&server, &["-f", file]).await?.with_status(0)?;
    anyhow::ensure!(same.out.lines().all(|line| line.starts_with("unchanged ")), "{}", same.out);
    let quiet = server.gennaker(&["export"]).await?.with_status(0)?;
    anyhow::ensure!(quiet.err.is_empty(), "{}", quiet.err);
    Ok(())
}

async fn every_field() -> Outcome {
    let server = Server::start().await?;
    let (from, to) = server.load_balancer_ports();
    let text = format!(
        r#"kind: Application
name: shop
email: team@example.org
description: "it's: # all \\ here\ttoo"
---
kind: SecurityGroup
name: shop-net-inner
description: Who may
inbound:
  - {{ cidr: 127.0.0.0/8, protocol: HTTP, portFrom: {from}, portTo: {to} }}
  - {{ cidr: "::1/128", portFrom: 0, portTo: 65535 }}
  - {{ cidr: "FE80:0::/10", portFrom: 1, portTo: 1 }}
---
kind: LoadBalancer
name: shop
listeners:
  - {{ port: {from}, portTo: {to} }}
  - {{ address: 127.0.0.1, port: {from}, portTo: {to} }}
healthCheck:
  protocol: HTTP
  path: /health
  statuses: [200, 204]
  bodyContains: "ok: yes"
  interval: PT2S
  timeout: PT1.5S
  healthyThreshold: 2
  unhealthyThreshold: 4
securityGroups: [shop-net-inner]
drain: PT5S
---
kind: LoadBalancer
name: shop-plain
listeners: [{{ port: {from}, portTo: {to} }}]
healthCheck: {{ protocol: TCP }}
---
kind: Pipeline
application: shop
name: build it
stages: [{{ key: w, kind: wait, config: {{ seconds: 0 }} }}]
---
kind: Pipeline
application: shop
name: nightly
description: |
  Two lines,
  the second: with a colon
parameters:
  - {{ name: version, description: Which, default: "1.0", options: ["1.0", "2.0", "null"] }}
  - {{ name: count, default: 3 }}
  - {{ name: deep, default: {{ list: [1, "yes", null], none: {{}} }} }}
stages:
  - key: call
    kind: webhook
    name: "no"
    onFailure: STOP_BRANCH
    timeoutSeconds: 90
    config:
      url: "http://example.org/?a=${{ parameters.version }}"
      method: POST
      headers: {{ authorization: "secret://env/GENNAKER_SECRET_X" }}
      body: {{ a: [1, 2.5, true, null] }}
    notifications:
      - {{ on: [FAILED], email: {{ to: [ops@example.org] }} }}
  - key: judge
    kind: manualJudgment
    requires: [call]
    config: {{ instructions: "Look: well", inputs: [go, "no"] }}
    notifications: [{{ on: [APPROVAL_NEEDED], email: {{ to: [a@example.org, b@example.org] }} }}]
triggers:
  - key: timed
    kind: cron
    config: {{ expression: "0 3 * * MON-FRI", timeZone: Europe/Berlin, missed: RUN_ONCE }}
    parameters: {{ version: "2.0" }}
  - key: off
    kind: cron
    enabled: false
    config: {{ expression: "*/5 * * * *" }}
  - key: after
    kind: pipeline
    config: {{ application: shop, pipeline: build it, statuses: [FAILED, CANCELED] }}
    parameters: {{ count: "${{ trigger.execution.number }}" }}
notifications:
  - {{ on: [STARTED, COMPLETED, CANCELED], email: {{ to: [team@example.org] }} }}
  - on: [FAILED]
"#
    );
    let path = write(&server, "shop.yaml", &text)?;
    let file = path.to_str().unwrap_or_default();
    apply(&server, &["-f", file]).await?.with_status(0)?;
    let same = apply(&server, &["-f", file]).await?.with_status(0)?;
    anyhow::ensure!(same.out.lines().count() == 6, "{}", same.out);
    anyhow::ensure!(same.out.lines().all(|line| line.starts_with("unchanged ")), "{}", same.out);
    let exported = server.gennaker(&["export"]).await?.with_status(0)?;
    anyhow::ensure!(exported.err.is_empty(), "{}", exported.err);
    let out = server.dir().join("exported");
    let out = out.to_str().unwrap_or_default();
    server.gennaker(&["export", "-o", out]).await?.with_status(0)?;
    for back in [
        apply(&server, &["-f", out]).await?.with_status(0)?,
        server.gennaker_with(&["apply", "-f", "-"], &exported.out).await?.with_status(0)?,
    ] {
        anyhow::ensure!(back.out.lines().count() == 6, "{}", back.out);
        anyhow::ensure!(back.out.lines().all(|line| line.starts_with("unchanged ")), "{}", back.out);
    }
    // What one server has, another takes and gives again: the load balancers' ports aside, which are taken.
    let other = Server::start().await?;
    let kinds = ["--kind", "Application", "--kind", "SecurityGroup", "--kind", "Pipeline"];
    let parts = server.gennaker(&[&["export"], &kinds[..]].concat()).await?.with_status(0)?.out;
    other.gennaker_with(&["apply", "-f", "-"], &parts).await?.with_status(0)?;
    let again = other.gennaker(&["export"]).await?.with_status(0)?.out;
    anyhow::ensure!(again == parts, "{again}\n{parts}");
    Ok(())
}

async fn prune_keeps_needed() -> Outcome {
    let server = Server::start().await?;
    let all = shop(server.load_balancer_ports());
    let both =
        [&all, "---\nkind: SecurityGroup\nname: shop-spare\ninbound: []\n", &after("late", &["deploy"])].concat();
    let path = write(&server, "shop.yaml", &both)?;
    let file = path.to_str().unwrap_or_default();
    apply(&server, &["-f", file]).await?.with_status(0)?;
    // The pipeline and the group go from the files; those that need them stay.
    let left = [
        "kind: LoadBalancer\nname: shop\nlisteners: [{ port: 9000 }]\nsecurityGroups: [shop]\n",
        "---\nkind: SecurityGroup\nname: shop-spare\ninbound: []\n",
        &after("late", &["deploy"]),
    ];
    write(&server, "shop.yaml", &left.concat())?;
    let done = apply(&server, &["-f", file, "--prune"]).await?.with_status(2)?;
    for part in [
        "load balancer shop: it needs security group shop, which --prune would delete",
        "(at securityGroups.0)",
        "pipeline shop/late: it needs pipeline shop/deploy, which --prune would delete",
        "(at triggers.0.config.pipeline)",
    ] {
        anyhow::ensure!(done.err.contains(part), "{part}: {}", done.err);
    }
    let data = server.client().query("{ pipelines { totalCount } securityGroups { totalCount } }", json!({})).await?;
    anyhow::ensure!(data["pipelines"]["totalCount"] == 2 && data["securityGroups"]["totalCount"] == 2, "{data}");
    Ok(())
}

async fn prune_keeps_used() -> Outcome {
    const WHOLE: &str = "{ executions { totalCount } loadBalancers { nodes { name } }
        securityGroups { nodes { name } } pipelines { nodes { name } } }";
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let (from, to) = server.load_balancer_ports();
    let before = server.client().query(WHOLE, json!({})).await?;
    // Others in the place of what the server group uses; all of it would be made before anything goes.
    let others = format!(
        "kind: SecurityGroup\nname: hello-other\ninbound: []\n---\nkind: LoadBalancer\nname: hello-other\n\
         listeners: [{{ port: {from}, portTo: {to} }}]\n"
    );
    let path = write(&server, "hello.yaml", &others)?;
    let file = path.to_str().unwrap_or_default();
    for flags in [&["-f", file, "--prune", "--dry-run"][..], &["-f", file, "--prune"]] {
        let done = apply(&server, flags).await?.with_status(2)?;
        for what in ["load balancer hello", "security group hello"] {
            let wanted = format!(
                "{what}: --prune would delete it, since no file mentions it, but it is used by server group `hello-v000`;"
            );
            anyhow::ensure!(done.err.contains(&wanted), "{wanted}: {}", done.err);
        }
        let after = server.client().query(WHOLE, json!({})).await?;
        anyhow::ensure!(after == before, "{after}");
    }

    // Of those that use the group, one goes before it, one lets it go, and the third is nobody's affair.
    let balancer = |name: &str, groups: &str| {
        let listeners = format!("[{{ port: {from}, portTo: {to} }}]");
        format!("---\nkind: LoadBalancer\nname: {name}\nlisteners: {listeners}\nsecurityGroups: [{groups}]\n")
    };
    let all = [
        SHOP,
        "---\nkind: SecurityGroup\nname: shop\ninbound: []\n",
        &balancer("shop", "shop"),
        &balancer("shop-stays", "shop"),
        &balancer("hello-third", "shop"),
    ];
    let path = write(&server, "shop.yaml", &all.concat())?;
    let shop = path.to_str().unwrap_or_default();
    apply(&server, &["-f", shop]).await?.with_status(0)?;
    let left = ["kind: SecurityGroup\nname: shop-other\ninbound: []\n", &balancer("shop-stays", "shop-other")];
    write(&server, "shop.yaml", &left.concat())?;
    let done = apply(&server, &["-f", shop, "--prune"]).await?.with_status(2)?;
    let wanted = "security group shop: --prune would delete it, since no file mentions it, but it is used by \
                  load balancer `hello-third`;";
    anyhow::ensure!(done.err.contains(wanted), "{}", done.err);
    let third = write(&server, "third.yaml", &balancer("hello-third", ""))?;
    apply(&server, &["-f", third.to_str().unwrap_or_default()]).await?.with_status(0)?;
    let done = apply(&server, &["-f", shop, "--prune"]).await?.with_status(0)?;
    for part in ["deleted load balancer shop\n", "deleted security group shop\n"] {
        anyhow::ensure!(done.out.contains(part), "{part}: {}", done.out);
    }
    Ok(())
}

async fn one_port() -> Outcome {
    let server = Server::start().await?;
    let (port, to) = server.load_balancer_ports();
    let balancer =
        |name: &str, listener: &str| format!("---\nkind: LoadBalancer\nname: {name}\nlisteners: [{listener}]\n");
    let first = write(&server, "files/1.yaml", &[SHOP, &balancer("shop", &format!("{{ port: {port} }}"))].concat())?;
    let one = format!("{{ address: 127.0.0.1, port: {port}, portTo: {port} }}");
    let second = write(&server, "files/2.yaml", &balancer("shop-web", &one))?;
    let files = server.dir().join("files");
    let files = files.to_str().unwrap_or_default();
    let wanted = format!(
        "{}:4: load balancer shop-web: load balancer shop in {} is to listen at 127.0.0.1:{port} too; \
         give one of them another port (at listeners.0.port)",
        second.display(),
        first.display()
    );
    for flags in [&["-f", files, "--dry-run"][..], &["-f", files]] {
        let done = apply(&server, flags).await?.with_status(2)?;
        anyhow::ensure!(done.err.contains(&wanted), "{wanted}\n{}", done.err);
        nothing_was_done(&server).await?;
    }
    // A range has another.
    let ranged = balancer("shop-web", &format!("{{ port: {port}, portTo: {to} }}"));
    write(&server, "files/2.yaml", &ranged)?;
    apply(&server, &["-f", files]).await?.with_status(0)?;
    Ok(())
}
