//! The commands beside a server that gives few items at a time.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Options, Outcome, Server, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("pages", "commands_take_whole_lists_of_a_server_with_small_pages", whole_lists)]
}

const MANY: usize = 12;

fn documents(artifact: &std::path::Path) -> Vec<Value> {
    let names = || (1..=MANY).map(|number| format!("{number:02}"));
    let mut documents: Vec<_> =
        names().map(|name| json!({ "kind": "Application", "name": format!("app{name}") })).collect();
    documents.extend(
        names().map(|name| json!({ "kind": "SecurityGroup", "name": format!("app01-g{name}"), "inbound": [] })),
    );
    let pipeline = |name: String, stage: Value| json!({ "kind": "Pipeline", "application": "app01", "name": name, "stages": [stage] });
    let wait = json!({ "key": "w", "kind": "wait", "config": { "seconds": 0 } });
    documents.extend(names().map(|name| pipeline(format!("p{name}"), wait.clone())));
    let clusters = names().map(|name| {
        json!({
            "stack": "main", "detail": format!("d{name}"), "strategy": { "kind": "none" },
            "capacity": { "min": 0, "desired": 0, "max": 0 },
            "launch": { "artifact": { "path": artifact }, "command": ["./app.sh"] },
        })
    });
    let clusters: Vec<_> = clusters.collect();
    let deploy = json!({ "key": "d", "kind": "deploy", "config": { "clusters": clusters } });
    documents.push(pipeline("groups".to_owned(), deploy));
    documents
}

fn count(value: &Value, path: &str) -> usize {
    value.pointer(path).and_then(Value::as_array).map_or(0, Vec::len)
}

async fn whole_lists() -> Outcome {
    let flags = ["--max-page", "10"].map(str::to_owned).to_vec();
    let server = Server::start_with(Options { flags, ..Options::default() }).await?;
    let artifact = server.dir().join("app.sh");
    std::fs::write(&artifact, "#!/bin/sh\nexec sleep 1000\n")?;
    let documents = documents(&artifact);
    let text = |documents: &[Value]| documents.iter().map(|it| format!("---\n{it}\n")).collect::<String>();
    let apply = async |flags: &[&str], documents: &[Value]| {
        server.gennaker_with(&[&["apply", "-f", "-"], flags].concat(), &text(documents)).await?.with_status(0)
    };
    let lines = |out: &str, start: &str| out.lines().filter(|line| line.starts_with(start)).count();
    let done = apply(&[], &documents).await?;
    anyhow::ensure!(lines(&done.out, "created ") == documents.len(), "{}", done.out);
    let done = apply(&[], &documents).await?;
    anyhow::ensure!(lines(&done.out, "unchanged ") == documents.len(), "{}", done.out);

    server.gennaker(&["run", "app01/groups", "--wait"]).await?.with_status(0)?;
    for _ in 0..MANY {
        server.gennaker(&["run", "app01/p01", "--wait"]).await?.with_status(0)?;
    }
    let done = server.gennaker(&["status", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(count(&done, "/applications") == MANY, "{done}");
    let first = done["applications"].as_array().into_iter().flatten().find(|it| it["name"] == "app01");
    let first = first.cloned().unwrap_or_default();
    anyhow::ensure!(count(&first, "/serverGroups/nodes") == MANY, "{first}");
    anyhow::ensure!(first["pipelines"]["totalCount"] == MANY + 1, "{first}");
    let done = server.gennaker(&["status", "app01", "--json"]).await?.with_status(0)?.json()?;
    for (list, wanted) in [("pipelines", MANY + 1), ("serverGroups", MANY), ("executions", 10)] {
        let found = count(&done, &format!("/application/{list}/nodes"));
        anyhow::ensure!(found == wanted, "{found} {list}, not {wanted}: {done}");
    }
    let done = server.gennaker(&["status", "app01/p01", "--last", "12", "--json"]).await?.with_status(0)?.json()?;
    anyhow::ensure!(count(&done, "/pipeline/executions/nodes") == MANY, "{done}");
    let done = server.gennaker(&["status", "app01"]).await?.with_status(0)?;
    anyhow::ensure!(done.out.contains("app01-main-d12-v000") && !done.out.contains(" more"), "{}", done.out);

    let done = server.gennaker(&["export"]).await?.with_status(0)?;
    anyhow::ensure!(lines(&done.out, "kind: ") == documents.len(), "{}", done.out);
    let back = server.gennaker_with(&["apply", "-f", "-"], &done.out).await?.with_status(0)?;
    anyhow::ensure!(lines(&back.out, "unchanged ") == documents.len(), "{}", back.out);
    // What is last in its list is not taken for missing, and what is there for unmentioned.
    let fewer: Vec<_> =
        documents.iter().filter(|it| it["name"] != "p12" && it["name"] != "app01-g12").cloned().collect();
    let done = apply(&["--prune"], &fewer).await?;
    let deleted: Vec<_> = done.out.lines().filter(|line| line.starts_with("deleted ")).collect();
    anyhow::ensure!(deleted == ["deleted pipeline app01/p12", "deleted security group app01-g12"], "{}", done.out);
    Ok(())
}
