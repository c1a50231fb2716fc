//! `schema.graphql` is what the binary prints, and the example of every kind can be saved.

use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Outcome, Server, gennaker, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("schema", "schema_graphql_is_what_gennaker_schema_prints", fresh),
        trial("schema", "every_example_of_a_kind_can_be_saved", examples),
    ]
}

async fn fresh() -> Outcome {
    let printed = std::process::Command::new(gennaker()).arg("schema").output()?;
    anyhow::ensure!(printed.status.success());
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/schema.graphql"))?;
    anyhow::ensure!(
        String::from_utf8(printed.stdout)? == kept,
        "schema.graphql is stale; run `cargo run -- schema > schema.graphql` and look at the difference"
    );
    Ok(())
}

async fn examples() -> Outcome {
    let server = Server::start().await?;
    let hello = crate::harness::Hello::create(&server).await?;
    let data = hello.client.query("{ stageKinds { kind example } }", json!({})).await?;
    let kinds = data["stageKinds"].as_array().cloned().unwrap_or_default();
    anyhow::ensure!(kinds.len() >= 12, "{kinds:#?}");
    for kind in kinds {
        let definition = json!({
            "stages": [{ "key": "it", "kind": kind["kind"], "config": kind["example"] }],
        });
        let name = format!("example of {}", kind["kind"].as_str().unwrap_or_default());
        if let Err(error) = hello.save(&name, &definition).await {
            anyhow::bail!("{kind:#}: {error}");
        }
    }
    // What stands within a stage, and beside the stages.
    for (family, least) in [("strategyKinds", 2), ("providerKinds", 1), ("triggerKinds", 2), ("notifierKinds", 1)] {
        let data = hello.client.query(&format!("{{ {family} {{ kind example }} }}"), json!({})).await?;
        let kinds = data[family].as_array().cloned().unwrap_or_default();
        anyhow::ensure!(kinds.len() >= least, "{family}: {kinds:#?}");
        for kind in kinds {
            let (name, example) = (kind["kind"].as_str().unwrap_or_default(), &kind["example"]);
            let mut definition = hello.pipeline();
            match family {
                "strategyKinds" => {
                    let mut strategy = example.clone();
                    strategy["kind"] = kind["kind"].clone();
                    definition["stages"][0]["config"]["clusters"][0]["strategy"] = strategy;
                }
                "providerKinds" => definition["stages"][0]["config"]["clusters"][0]["launch"] = example.clone(),
                "triggerKinds" => {
                    definition["triggers"] = json!([{
                        "key": "it", "kind": kind["kind"], "config": example, "parameters": { "version": "1.0.0" },
                    }]);
                }
                _ => definition["notifications"] = json!([{ "on": ["FAILED"], name: example }]),
            }
            if let Err(error) = hello.save(&format!("example of {name}"), &definition).await {
                anyhow::bail!("{family}: {kind:#}: {error}");
            }
        }
    }
    Ok(())
}
