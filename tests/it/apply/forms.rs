//! The forms in which documents come: YAML, JSON, directories of both, and what `export --json` writes.

use serde_json::{Value, json};

use super::{SHOP, apply, shop, write};
use crate::harness::{Outcome, Server};

pub async fn json_and_directories() -> Outcome {
    let server = Server::start().await?;
    // Indented by tabs, as some programs write it, and with what YAML would read otherwise.
    let stages = "[\n\t\t{ \"key\": \"w\", \"kind\": \"wait\", \"config\": { \"seconds\": 0 } }\n\t]";
    let pipeline = |name: &str| {
        format!(
            "{{\n\t\"kind\": \"Pipeline\",\n\t\"application\": \"shop\",\n\t\"name\": \"{name}\",\n\t\
             \"description\": \"a: b # c \\u00e9\\/\",\n\t\"stages\": {stages}\n}}\n"
        )
    };
    let one = write(&server, "one.json", "{\"kind\": \"Application\", \"name\": \"shop\", \"description\": \"yes\"}")?;
    let done = apply(&server, &["-f", one.to_str().unwrap_or_default()]).await?.with_status(0)?;
    anyhow::ensure!(done.out.contains("created application shop\n"), "{}", done.out);
    let data = server.client().query("{ application(name: \"shop\") { description } }", json!({})).await?;
    anyhow::ensure!(data["application"]["description"] == "yes", "{data}");

    write(&server, "files/1.yaml", SHOP)?;
    write(&server, "files/2.json", &pipeline("first"))?;
    write(&server, "files/below/3.yml", &pipeline("second").replace('\t', "  "))?;
    write(&server, "files/readme.txt", "no document")?;
    let files = server.dir().join("files");
    let files = files.to_str().unwrap_or_default();
    let done = apply(&server, &["-f", files]).await?.with_status(0)?;
    for line in ["changed application shop\n", "created pipeline shop/first\n", "created pipeline shop/second\n"] {
        anyhow::ensure!(done.out.contains(line), "{}", done.out);
    }
    let query = "{ pipeline(application: \"shop\", name: \"first\") { definition { description } } }";
    let data = server.client().query(query, json!({})).await?;
    anyhow::ensure!(data["pipeline"]["definition"]["description"] == "a: b # c é/", "{data}");

    // Neither an empty file nor half of one stands for nothing.
    for (text, line, wanted) in [
        ("", 0, "there is no document in it"),
        (" \n", 0, "there is no document in it"),
        ("{\n  \"kind\": \"App", 2, ""),
    ] {
        let path = write(&server, "files/4.json", text)?;
        let path = path.display();
        let wanted = if line == 0 { format!("{path}: {wanted}") } else { format!("{path}:") };
        for flags in [&[][..], &["--prune"]] {
            let done = apply(&server, &[&["-f", files], flags].concat()).await?.with_status(2)?;
            anyhow::ensure!(done.err.contains(&wanted), "{wanted}\n{}", done.err);
        }
    }
    Ok(())
}

pub async fn exported_json() -> Outcome {
    let server = Server::start().await?;
    write(&server, "shop.yaml", &shop(server.load_balancer_ports()))?;
    let file = server.dir().join("shop.yaml");
    apply(&server, &["-f", file.to_str().unwrap_or_default()]).await?.with_status(0)?;
    let exported = server.gennaker(&["export", "--json"]).await?.with_status(0)?;
    let documents = exported.json()?["documents"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(documents == 4, "{}", exported.out);
    let path = write(&server, "export.json", &exported.out)?;
    for (args, input) in [(["-f", "-"], exported.out.as_str()), (["-f", path.to_str().unwrap_or_default()], "")] {
        let done = server.gennaker_with(&[&["apply", "--json"], &args[..]].concat(), input).await?.with_status(0)?;
        let objects = done.json()?["objects"].as_array().cloned().unwrap_or_default();
        anyhow::ensure!(objects.len() == 4 && objects.iter().all(|it| it["action"] == "unchanged"), "{}", done.out);
    }
    // What is wrong in it has its own line.
    let mut wrong = exported.json()?;
    wrong["documents"][0]["nme"] = json!("shop");
    let text = serde_json::to_string_pretty(&wrong)?;
    let line = text.lines().position(|line| line.contains("\"nme\"")).map_or(0, |at| at + 1);
    let path = write(&server, "export.json", &text)?;
    let done = apply(&server, &["-f", path.to_str().unwrap_or_default()]).await?.with_status(2)?;
    let wanted = format!("{}:{line}: ", path.display());
    anyhow::ensure!(done.err.contains(&wanted) && done.err.contains("did you mean `name`"), "{wanted}\n{}", done.err);
    // What was left out of the export is missing, and that is said.
    wrong["documents"] = Value::Array(Vec::new());
    let path = write(&server, "export.json", &wrong.to_string())?;
    let done = apply(&server, &["-f", path.to_str().unwrap_or_default()]).await?.with_status(2)?;
    anyhow::ensure!(done.err.contains("there is no document in it"), "{}", done.err);
    Ok(())
}
