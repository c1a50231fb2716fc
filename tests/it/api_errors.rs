//! Bad input: the answer says what, where and what to do, and the state before stays.

use std::time::Duration;

use anyhow::Context as _;
use gennaker::cli::client::Error;
use gennaker::cli::demo::setup;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::documents::{CREATE, SAVE};
use crate::harness::{Hello, Outcome, Server, follow, gennaker, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("api_errors", "an_unknown_application_is_answered_with_the_nearest_name", unknown_application),
        trial("api_errors", "malformed_names_are_refused", malformed_names),
        trial("api_errors", "a_definition_that_does_not_hold_is_refused_with_its_path", definitions),
        trial("api_errors", "what_is_only_validated_is_refused_alike_and_never_done", validated_only),
        trial("api_errors", "an_unknown_key_is_answered_with_the_nearest_one", unknown_keys),
        trial("api_errors", "a_missing_parameter_is_named", missing_parameter),
        trial("api_errors", "a_missing_artifact_fails_the_deploy_and_says_which", missing_artifact),
        trial("api_errors", "an_artifact_outside_the_roots_is_refused", artifact_outside),
        trial("api_errors", "a_wrong_sha256_fails_the_deploy", wrong_sha256),
        trial("api_errors", "a_taken_port_is_named", taken_port),
        trial("api_errors", "a_taken_listen_address_ends_the_server_with_a_word", taken_listen_address),
        trial("api_errors", "flags_that_do_not_hold_end_with_exit_code_2", bad_flags),
        trial("api_errors", "a_document_that_is_no_graphql_is_a_client_error", no_graphql),
    ]
}

const MAX: Duration = Duration::from_secs(60);

async fn unknown_application() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let input = json!({
        "application": { "name": "helo" },
        "name": "x",
        "stages": [],
    });
    let error = hello.client.mutate(SAVE, input).await.expect_err("there is no helo");
    anyhow::ensure!(error.code() == Some("NOT_FOUND"), "{error} {:?}", error.code());
    anyhow::ensure!(error.to_string().contains("helo") && error.to_string().contains("hello"), "{error}");
    let error = hello.start("deploy helo", Value::Null).await.expect_err("there is no such pipeline");
    anyhow::ensure!(error.to_string().contains("deploy hello"), "{error}");
    // Accounts and principals have names too.
    for (noun, name, near) in [("account", "local", "locla"), ("principal", "admin", "admn")] {
        let query = format!("query($name: String!) {{ {noun}(name: $name) {{ id name }} }}");
        let found = hello.client.query(&query, json!({ "name": name })).await?;
        anyhow::ensure!(found[noun]["name"] == name && found[noun]["id"].is_string(), "{found}");
        let error = hello.client.query(&query, json!({ "name": near })).await.expect_err("a misspelt name");
        anyhow::ensure!(error.code() == Some("NOT_FOUND"), "{error} {:?}", error.code());
        anyhow::ensure!(error.to_string().contains(&format!("did you mean `{name}`")), "{error}");
    }
    Ok(())
}

async fn malformed_names() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    for name in ["", "he llo", "hello-world", "hello/..", "ä", &"x".repeat(300)] {
        let input = json!({ "name": name, "description": "" });
        let error = client.mutate(CREATE, input).await.expect_err("no name of an application");
        anyhow::ensure!(error.code() == Some("INVALID"), "{name}: {error} {:?}", error.code());
        anyhow::ensure!(fields(&error).contains(&"name".to_owned()), "{name}: {error:?}");
    }
    let data = client.query("{ applications(first: 10) { totalCount } }", json!({})).await?;
    anyhow::ensure!(data["applications"]["totalCount"] == 0, "{data}");
    Ok(())
}

fn fields(error: &Error) -> Vec<String> {
    let Error::Refused(errors) = error else { return Vec::new() };
    let path = errors.first().and_then(|error| error["field"].as_array()).cloned().unwrap_or_default();
    path.iter().filter_map(|part| part.as_str().map(str::to_owned)).collect()
}

async fn definitions() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let wait = |key: &str, requires: &[&str]| json!({ "key": key, "kind": "wait", "config": { "seconds": 1 }, "requires": requires });
    let with = |stages: Value| json!({ "stages": stages });
    let mut negative = hello.pipeline();
    negative.pointer_mut("/stages/0/config/clusters/0").expect("a cluster")["capacity"]["min"] = json!(-1);
    let mut disorder = hello.pipeline();
    // What a schema cannot say is checked at save time beside the expressions of labels and command.
    disorder.pointer_mut("/stages/0/config/clusters/0").expect("a cluster")["capacity"]["min"] = json!(9);
    let in_cluster = |pointer: &str, value: Value| {
        let mut definition = hello.pipeline();
        let (above, name) = pointer.rsplit_once('/').expect("a pointer");
        let above = format!("/stages/0/config/clusters/0{above}");
        definition.pointer_mut(&above).expect("it is there")[name] = value;
        definition
    };
    let version = "${ parameters.version }";
    let large = json!({ "seconds": "9".repeat(300 << 10) });
    // (definition, words the message has to contain, a part of the path)
    let cases: Vec<(Value, Vec<&str>, &str)> = vec![
        (with(json!([wait("a", &["b"]), wait("b", &["a"])])), vec!["cycle"], "stages"),
        (with(json!([wait("a", &["a"])])), vec!["a"], "stages"),
        (with(json!([wait("a", &["gone"])])), vec!["gone"], "stages"),
        (with(json!([wait("a", &[]), wait("a", &[])])), vec!["a"], "stages"),
        (with(json!([{ "key": "a", "kind": "wiat", "config": {} }])), vec!["wiat", "wait"], "kind"),
        (with(json!([{ "key": "a", "kind": "wait", "config": { "seconds": "soon" } }])), vec!["soon"], "seconds"),
        (with(json!([{ "key": "a", "kind": "wait", "config": {} }])), vec!["seconds"], "config"),
        (with(json!([{ "key": "a b", "kind": "wait", "config": { "seconds": 1 } }])), vec!["a b"], "key"),
        (with(json!([{ "key": "a", "kind": "wait", "config": large }])), vec!["`a`", "262144"], "config"),
        (negative, vec!["-1"], "capacity"),
        (disorder, vec!["min"], "capacity"),
        (in_cluster("/location", json!("mars")), vec!["mars", "`local`"], "location"),
        (in_cluster("/launch/environment", json!({ "PORT": version })), vec!["PORT"], "PORT"),
        (in_cluster("/launch/artifact", json!({ "pth": version })), vec!["pth", "path"], "artifact"),
        (in_cluster("/launch/command", json!(["../x", version])), vec![".."], "command"),
        // And what the expressions themselves read.
        (
            in_cluster("/labels", json!({ "version": "${ parameters.verison }" })),
            vec!["`parameters.verison`", "did you mean `version`?"],
            "version",
        ),
        (
            in_cluster("/labels", json!({ "version": "${ stages.deplyo.outputs.x | default('') }" })),
            vec!["`stages.deplyo`", "did you mean `deploy`?"],
            "version",
        ),
        (in_cluster("/labels", json!({ "version": "${ parametres.version }" })), vec!["`parameters`?"], "version"),
    ];
    for (definition, words, part) in cases {
        let Err(error) = hello.save("bad", &definition).await else {
            anyhow::bail!("this was saved: {definition}");
        };
        anyhow::ensure!(error.code() == Some("INVALID"), "{definition}: {error} {:?}", error.code());
        let text = error.to_string();
        anyhow::ensure!(words.iter().all(|word| text.contains(word)), "{definition}: {text} has not {words:?}");
        anyhow::ensure!(fields(&error).iter().any(|field| field == part), "{definition}: {error:?} is not at {part}");
    }
    let data = hello
        .client
        .query("{ application(name: \"hello\") { pipelines(first: 10) { nodes { name revision } } } }", json!({}))
        .await?;
    let nodes = &data["application"]["pipelines"]["nodes"];
    anyhow::ensure!(*nodes == json!([{ "name": setup::PIPELINE, "revision": 1 }]), "nothing was saved: {nodes}");
    Ok(())
}

async fn validated_only() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let client = &hello.client;
    const COUNTS: &str =
        "{ applications { totalCount nodes { version } } executions { totalCount } pipelines { totalCount } }";
    let before = client.query(COUNTS, json!({})).await?;
    let listeners = json!([{ "port": 9000 }]);
    let stages = json!([{ "key": "w", "kind": "wait", "config": { "seconds": 0 } }]);
    let after = |pipeline: &str| json!([{ "key": "t", "kind": "pipeline", "config": { "application": "new", "pipeline": pipeline } }]);
    let with = |triggers: &Value, beside: Value| json!({ "application": { "name": "new" }, "name": "x", "stages": stages, "triggers": triggers, "validateWith": beside });
    // (the mutation, an input that holds, one that does not, the fields at fault)
    for (verb, good, bad, places) in [
        (
            "createApplication",
            json!({ "name": "new" }),
            json!({ "name": "New", "email": "nobody", "description": "x".repeat(4_001) }),
            vec!["name", "description", "email"],
        ),
        ("createApplication", json!({ "name": "new" }), json!({ "name": "hello" }), vec!["name"]),
        (
            "updateApplication",
            json!({ "application": { "name": "hello" }, "description": "other" }),
            json!({ "application": { "name": "hello" }, "email": "nobody" }),
            vec!["email"],
        ),
        (
            "upsertSecurityGroup",
            json!({ "name": "new-web", "inbound": [] }),
            json!({ "name": "new-v001", "inbound": [] }),
            vec!["name"],
        ),
        (
            "upsertLoadBalancer",
            json!({ "name": "new", "listeners": listeners, "securityGroups": ["new"], "validateWith": ["new"] }),
            json!({ "name": "new", "listeners": [], "securityGroups": ["new"] }),
            vec!["listeners", "securityGroups.0"],
        ),
        (
            "savePipeline",
            with(&after("y"), json!([{ "application": "new", "name": "y" }])),
            with(&after("y"), json!([])),
            vec!["triggers.0.config.pipeline"],
        ),
        (
            "savePipeline",
            with(
                &after("x y"),
                json!([{ "application": "new", "name": "x y", "startedBy": [{ "application": "hello", "name": "z" }] }]),
            ),
            with(
                &after("y"),
                json!([{ "application": "new", "name": "y", "startedBy": [{ "application": "new", "name": "x" }] }]),
            ),
            vec!["triggers.0.config.pipeline"],
        ),
    ] {
        let input_type = format!("{}{}Input", verb[..1].to_uppercase(), &verb[1..]);
        let document = format!(
            "mutation ($input: {input_type}!) {{ {verb}(input: $input) {{ __typename userErrors {{ code message field }} }} }}"
        );
        let only = |mut input: Value| {
            input["validateOnly"] = json!(true);
            input
        };
        client.mutate(&document, only(good)).await?;
        let Err(Error::Refused(errors)) = client.mutate(&document, only(bad.clone())).await else {
            anyhow::bail!("{verb} takes {bad}");
        };
        let at = |error: &Value| {
            let parts = error["field"].as_array().into_iter().flatten().filter_map(Value::as_str);
            parts.collect::<Vec<_>>().join(".")
        };
        let found: Vec<_> = errors.iter().map(at).collect();
        anyhow::ensure!(found == places, "{verb}: {errors:?}");
    }
    anyhow::ensure!(client.query(COUNTS, json!({})).await? == before, "something was done");
    // What is said about a set goes with a look only.
    let mut input = with(&json!([]), json!([{ "application": "new", "name": "y" }]));
    input["application"]["name"] = json!("hello");
    let error = client.mutate(SAVE, input).await.expect_err("not to be saved so");
    anyhow::ensure!(fields(&error) == ["validateWith"], "{error:?}");
    Ok(())
}

async fn unknown_keys() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let stage = |kind: &str, config: Value| json!({ "stages": [{ "key": "s", "kind": kind, "config": config }] });
    let cluster = |key: &str, value: Value| {
        let mut definition = hello.pipeline();
        // There are expressions in it beside.
        let cluster = definition.pointer_mut("/stages/0/config/clusters/0").expect("a cluster");
        match key.split_once('.') {
            Some((outer, inner)) => cluster[outer][inner] = value,
            None => cluster[key] = value,
        }
        definition
    };
    let triggered = |kind: &str, config: Value| {
        json!({ "stages": [{ "key": "s", "kind": "wait", "config": { "seconds": 0 } }],
            "triggers": [{ "key": "t", "kind": kind, "config": config }] })
    };
    for (definition, place, near) in [
        (stage("wait", json!({ "secods": 1 })), "stages.0.config.secods", "seconds"),
        (stage("webhook", json!({ "url": "http://x", "metod": "GET" })), "stages.0.config.metod", "method"),
        (stage("manualJudgment", json!({ "instruction": "" })), "stages.0.config.instruction", "instructions"),
        (cluster("capacty", json!(1)), "stages.0.config.clusters.0.capacty", "capacity"),
        (cluster("capacity.dsired", json!(1)), "stages.0.config.clusters.0.capacity.dsired", "desired"),
        (
            cluster("strategy", json!({ "kind": "redBlack", "scaledDown": true })),
            "stages.0.config.clusters.0.strategy.scaledDown",
            "scaleDown",
        ),
        (cluster("healthCheck.pth", json!("/")), "stages.0.config.clusters.0.healthCheck.pth", "path"),
        (cluster("launch.comand", json!([])), "stages.0.config.clusters.0.launch.comand", "command"),
        (
            triggered("cron", json!({ "expression": "* * * * *", "timezone": "UTC" })),
            "triggers.0.config.timezone",
            "timeZone",
        ),
        (
            triggered("pipeline", json!({ "application": "hello", "pipeline": "x", "status": ["FAILED"] })),
            "triggers.0.config.status",
            "statuses",
        ),
    ] {
        let error = hello.save("odd", &definition).await.expect_err(place);
        anyhow::ensure!(fields(&error).join(".") == place, "{place}: {error:?}");
        anyhow::ensure!(error.to_string().contains(&format!("did you mean `{near}`?")), "{error}");
    }
    let odd = triggered("cron", json!({ "expression": "0 25 * * *" }));
    let error = hello.save("odd", &odd).await.expect_err("no such hour");
    anyhow::ensure!(fields(&error).join(".") == "triggers.0.config.expression", "{error:?}");
    let said = error.to_string();
    anyhow::ensure!(said.contains("`25` is no hour") && said.contains("as `0 3 * * MON-FRI`"), "{said}");
    Ok(())
}

async fn missing_parameter() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    for parameters in [Value::Null, json!({}), json!({ "version": "1", "colour": "red" })] {
        let error = hello.start(setup::PIPELINE, parameters.clone()).await.expect_err("parameters do not hold");
        anyhow::ensure!(error.code() == Some("INVALID"), "{error} {:?}", error.code());
        let word = if parameters.get("colour").is_some() { "colour" } else { "version" };
        anyhow::ensure!(error.to_string().contains(word), "{error}");
    }
    Ok(())
}

/// Saves the pipeline with another artifact, runs it, and gives its failure.
async fn deploy_artifact(hello: &Hello, artifact: Value) -> anyhow::Result<Value> {
    let mut definition = hello.pipeline();
    let cluster = definition.pointer_mut("/stages/0/config/clusters/0").expect("the pipeline has a cluster");
    cluster["launch"]["artifact"] = artifact;
    cluster["healthTimeoutSeconds"] = json!(20);
    if let Err(error) = hello.save("artifact", &definition).await {
        // Refused at once is as good.
        return Ok(json!({ "message": error.to_string(), "hint": "refused when saved" }));
    }
    let execution = hello.start("artifact", json!({ "version": "2.0.0" })).await?;
    let followed = follow(&hello.client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    let groups = hello.groups().await?;
    anyhow::ensure!(groups.iter().all(|group| !group.enabled || group.version == "1.0.0"), "{groups:?}");
    Ok(followed.failure())
}

async fn missing_artifact() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    hello.deploy("1.0.0").await?.succeeded()?;
    let path = server.dir().join("not-built-yet");
    let failure = deploy_artifact(&hello, json!({ "path": path })).await?;
    anyhow::ensure!(failure.to_string().contains("not-built-yet"), "{failure}");
    let groups = hello.groups().await?;
    anyhow::ensure!(groups[0].enabled && groups[0].healthy == 3, "{groups:?}");
    Ok(())
}

async fn artifact_outside() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    std::os::unix::fs::symlink("/etc/hostname", server.dir().join("link"))?;
    for path in ["/etc/hostname".into(), server.dir().join("link")] {
        let failure = deploy_artifact(&hello, json!({ "path": path })).await?;
        let text = failure.to_string();
        anyhow::ensure!(text.contains("root") || text.contains("below"), "{failure}");
    }
    Ok(())
}

async fn wrong_sha256() -> Outcome {
    let server = Server::start().await?;
    let hello = Hello::create(&server).await?;
    let archive = server.dir().join("app.tar.gz");
    let made = std::process::Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(server.dir())
        .arg("server.log")
        .status()?;
    anyhow::ensure!(made.success());
    let url = format!("file://{}", archive.display());
    let failure = deploy_artifact(&hello, json!({ "url": url, "sha256": "0".repeat(64) })).await?;
    let text = failure.to_string();
    anyhow::ensure!(text.contains("sha256") || text.contains("SHA-256") || text.contains("digest"), "{failure}");
    Ok(())
}

async fn taken_port() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    setup::create_application(&client).await?;
    let (first, _) = server.load_balancer_ports();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", first))?;
    let execution = setup::upsert_security_group(&client, (first, first)).await?;
    follow(&client, &execution, MAX).await?.succeeded()?;
    let execution = setup::upsert_load_balancer(&client, (first, first)).await?;
    let followed = follow(&client, &execution, MAX).await?;
    anyhow::ensure!(followed.status() == "FAILED", "{}", followed.status());
    anyhow::ensure!(followed.failure().to_string().contains(&first.to_string()), "{}", followed.failure());
    Ok(())
}

async fn taken_listen_address() -> Outcome {
    let server = Server::start().await?;
    let address = server.url().trim_start_matches("http://").to_owned();
    let other = server.dir().join("other");
    let ended = server
        .command()
        .env("GENNAKER_DATA_DIR", &other)
        .env("GENNAKER_HOST_DIR", other.join("host"))
        .args(["serve", "--listen", &address])
        .output()?;
    let text = String::from_utf8_lossy(&ended.stderr);
    anyhow::ensure!(ended.status.code() == Some(1), "{}: {text}", ended.status);
    anyhow::ensure!(text.contains(&address) && text.contains("--listen"), "{text}");

    // Nor do two servers share a data directory.
    let ended = server.command().args(["serve", "--listen", "127.0.0.1:0"]).output()?;
    let text = String::from_utf8_lossy(&ended.stderr);
    anyhow::ensure!(ended.status.code() == Some(1) && text.contains("in use"), "{}: {text}", ended.status);
    Ok(())
}

async fn bad_flags() -> Outcome {
    // Ports that the system gives to outgoing connections.
    let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let first = ephemeral.split_whitespace().next().context("a first one")?;
    let ephemeral = format!("{first}-{}", first.parse::<u16>()? + 10);
    let dir = std::env::temp_dir().join("gennaker-it-no-host");
    let cases: [&[&str]; 8] = [
        &["serve", "--listen", "0.0.0.0:1"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--port-range", "9-8"],
        &["serve", "--port-range", &ephemeral],
        &["host", "--port-range", &ephemeral, "--dir", &dir.to_string_lossy()],
        &["serve", "--database-url", "mysql://x"],
        &["serve", "--artifact-root", "/does/not/exist"],
        &["server"],
    ];
    for case in cases {
        let ended = std::process::Command::new(gennaker())
            .args(case)
            .env_remove("DATABASE_URL")
            .env_remove("GENNAKER_DATABASE_URL")
            .output()?;
        anyhow::ensure!(ended.status.code() == Some(2), "{case:?} ended with {}", ended.status);
        let text = String::from_utf8_lossy(&ended.stderr);
        anyhow::ensure!(!text.is_empty(), "{case:?} says why");
        let says_which = text.contains("--port-range") && text.contains("ip_local_port_range");
        anyhow::ensure!(!case.contains(&ephemeral.as_str()) || says_which, "{case:?}: {text}");
    }
    anyhow::ensure!(!dir.exists(), "nothing was begun");
    for case in [&["--help"][..], &["serve", "--help"], &["demo", "--help"], &["token", "create", "--help"]] {
        let ended = std::process::Command::new(gennaker()).args(case).output()?;
        anyhow::ensure!(ended.status.success() && !ended.stdout.is_empty(), "{case:?} ended with {}", ended.status);
    }
    Ok(())
}

async fn no_graphql() -> Outcome {
    let server = Server::start().await?;
    let client = server.client();
    for document in ["", "{", "{ nothing }", "query { application }", "subscription { notifications { cursor } }"] {
        let (status, answer) = client.post(document, &json!({})).await?;
        anyhow::ensure!((400..500).contains(&status), "{document}: {status} {answer}");
        anyhow::ensure!(answer["errors"][0]["message"].is_string(), "{document}: {answer}");
    }
    Ok(())
}
