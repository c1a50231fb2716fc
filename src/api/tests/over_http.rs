//! GraphQL over HTTP, and the explorer's files.

use std::time::Instant;

use reqwest::StatusCode;
use reqwest::header;

use super::*;

#[tokio::test]
async fn nothing_is_answered_without_a_token() {
    let server = Server::start().await;
    let bare = || server.client.post(server.url("/graphql")).json(&json!({"query": "{__schema{types{name}}}"}));
    let (_, unknown) = token::create(server.principal.id, "", server.clock.now(), None).expect("a token");
    for request in
        [bare(), bare().bearer_auth("nonsense"), bare().bearer_auth(&unknown), bare().basic_auth("ada", Some("x"))]
    {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers()[header::WWW_AUTHENTICATE].to_str().is_ok_and(|value| value.starts_with("Bearer")));
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(code(&answer), "UNAUTHENTICATED");
        assert!(answer.get("data").is_none());
    }
    assert_eq!(
        server.data("{ viewer { name roles } }", Value::Null).await["viewer"],
        json!({"name": "ada", "roles": ["ADMIN"]})
    );
    assert_eq!(server.client.get(server.url("/healthz")).send().await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_ends_by_revocation_at_once_and_by_time() {
    let server = Server::start().await;
    let make = "mutation($at: DateTime) { createToken(input: {principal: {name: \"ada\"}, description: \"bot\", expiresAt: $at})
                { created { text token { id description } } userErrors { code message } } }";
    let made = server.data(make, json!({"at": server.clock.now() + chrono::TimeDelta::hours(1)})).await;
    let text = made["createToken"]["created"]["text"].as_str().expect("a text").to_owned();
    let viewer = || async {
        let request = server.post().bearer_auth(&text).json(&json!({"query": "{viewer{name}}"}));
        let request = request.build().map(|mut request| {
            let value = format!("Bearer {text}").parse().expect("a value");
            request.headers_mut().insert(header::AUTHORIZATION, value);
            request
        });
        server.client.execute(request.expect("a request")).await.expect("an answer").status()
    };
    assert_eq!(viewer().await, StatusCode::OK);
    server.clock.advance(Duration::from_secs(3_600));
    assert_eq!(viewer().await, StatusCode::UNAUTHORIZED, "expired");

    let past = server.data(make, json!({"at": server.clock.now()})).await;
    assert_eq!(past["createToken"]["userErrors"][0]["code"], "INVALID");
    let made = server.data(make, json!({})).await;
    let id = made["createToken"]["created"]["token"]["id"].clone();
    let other = made["createToken"]["created"]["text"].as_str().expect("a text").to_owned();
    let ask = || {
        server.client.post(server.url("/graphql")).bearer_auth(&other).json(&json!({"query": "{viewer{name}}"})).send()
    };
    assert_eq!(ask().await.expect("an answer").status(), StatusCode::OK);
    let revoked = server
        .data(
            "mutation($id: ID!) { revokeToken(input: {token: $id}) { token { revokedAt } userErrors { code } } }",
            json!({"id": id}),
        )
        .await;
    assert!(revoked["revokeToken"]["token"]["revokedAt"].is_string(), "{revoked}");
    assert_eq!(ask().await.expect("an answer").status(), StatusCode::UNAUTHORIZED, "revoked");
    let listed = server
        .data(
            "{ tokens { totalCount nodes { description } } auditEntries { nodes { principalName action detail } } }",
            Value::Null,
        )
        .await;
    assert_eq!(listed["tokens"]["totalCount"], 3);
    assert!(!listed.to_string().contains(&other[40..]), "no secret is listed");
}

#[tokio::test]
async fn faults_have_a_status_and_a_code() {
    let server = Server::start().await;
    let modern = "application/graphql-response+json";
    let post = |body: &str| {
        server
            .post()
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, modern)
            .body(body.to_owned())
    };
    let document = |text: &str| post(&json!({"query": text}).to_string());
    let get = |query: &str| {
        server
            .client
            .get(server.url(&format!("/graphql?{query}")))
            .bearer_auth(&server.token)
            .header(header::ACCEPT, modern)
    };
    let long = format!("{{viewer{{name}}}} #{}", "x".repeat(70_000));
    for (request, status, expected) in [
        (post("nonsense"), 400, "BAD_REQUEST"),
        (post("[{\"query\":\"{viewer{name}}\"}]"), 400, "BAD_REQUEST"),
        (post("{\"query\":1}"), 400, "BAD_REQUEST"),
        (document(""), 400, "BAD_REQUEST"),
        (document("{"), 400, "GRAPHQL_PARSE_FAILED"),
        (document("{nope}"), 400, "GRAPHQL_VALIDATION_FAILED"),
        (document("query($a: Int!){viewer{name}}"), 400, "GRAPHQL_VALIDATION_FAILED"),
        (document("query A{viewer{name}} query B{viewer{name}}"), 400, "OPERATION_RESOLUTION_FAILURE"),
        (document(&long), 400, "COST_LIMIT_EXCEEDED"),
        (document("subscription{notifications{cursor}}"), 400, "BAD_REQUEST"),
        (post(&"x".repeat(1_100_000)), 413, "BAD_REQUEST"),
        (
            server.post().header(header::CONTENT_TYPE, "text/plain").body("{\"query\":\"{viewer{name}}\"}"),
            415,
            "BAD_REQUEST",
        ),
        (server.post().body("{\"query\":\"{viewer{name}}\"}"), 415, "BAD_REQUEST"),
        (
            server.post().header(header::ACCEPT, "text/html").json(&json!({"query": "{viewer{name}}"})),
            406,
            "BAD_REQUEST",
        ),
        (server.client.put(server.url("/graphql")).bearer_auth(&server.token), 405, "BAD_REQUEST"),
        (
            get("query=mutation%7BcreateApplication(input:%7Bname:%22x%22%7D)%7BuserErrors%7Bmessage%7D%7D%7D"),
            405,
            "BAD_REQUEST",
        ),
        (get("query="), 400, "BAD_REQUEST"),
        (server.client.get(server.url("/nowhere")), 404, "NOT_FOUND"),
    ] {
        let response = request.send().await.expect("an answer");
        let (found, allow) = (response.status().as_u16(), response.headers().get(header::ALLOW).cloned());
        let kind = response.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!((found, code(&answer)), (status, expected), "{answer}");
        assert!(kind.contains("json"), "{kind}");
        assert!(answer.get("data").is_none(), "{answer}");
        assert_eq!(allow.is_some(), status == 405, "{answer}");
    }
    // The older media type knows no status but 200 for a document that fails.
    let response = server
        .post()
        .header(header::ACCEPT, "application/json")
        .json(&json!({"query": "{"}))
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let response = get("query=%7Bviewer%7Bname%7D%7D&operationName=").send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers()[header::CONTENT_TYPE].to_str().expect("text").starts_with(modern));
}

#[tokio::test]
async fn a_small_document_that_doubles_again_and_again_is_refused_fast() {
    let server = Server::start().await;
    let mut text = String::from("{...G0}");
    for level in 0..22 {
        text.push_str(&format!("fragment G{level} on Query{{...G{0} ...G{0}}}", level + 1));
    }
    text.push_str("fragment G22 on Query{__typename}");
    let started = Instant::now();
    let answer = server.ask(&text, Value::Null).await;
    assert_eq!(code(&answer), "COST_LIMIT_EXCEEDED");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    for attack in [
        format!("{{{}}}", (0..1_000).map(|i| format!("a{i}:viewer{{name}} ")).collect::<String>()),
        format!("{{viewer{{name {}}}}}", "@skip(if:false) ".repeat(1_000)),
        format!("{{viewer{{{}}}}}", "nope ".repeat(10_000)),
        format!("{{node(id:{}1{}){{id}}}}", "[".repeat(5_000), "]".repeat(5_000)),
    ] {
        let answer = server.ask(&attack, Value::Null).await;
        assert!(code(&answer).ends_with("_LIMIT_EXCEEDED"), "{}", &answer.to_string()[..200]);
        assert!(answer.to_string().len() < 10_000);
    }
}

#[tokio::test]
async fn what_tools_ask_of_the_schema_is_within_the_limits() {
    let server = Server::start().await;
    let of = (0..9).fold("name".to_owned(), |inner, _| format!("kind name ofType {{ {inner} }}"));
    let introspection = format!(
        "query IntrospectionQuery {{ __schema {{
           description queryType {{ name }} mutationType {{ name }} subscriptionType {{ name }}
           types {{ ...FullType }}
           directives {{ name description isRepeatable locations args(includeDeprecated: true) {{ ...InputValue }} }}
         }} }}
         fragment FullType on __Type {{ kind name description specifiedByURL isOneOf
           fields(includeDeprecated: true) {{ name description args(includeDeprecated: true) {{ ...InputValue }} type {{ ...TypeRef }} isDeprecated deprecationReason }}
           inputFields(includeDeprecated: true) {{ ...InputValue }} interfaces {{ ...TypeRef }}
           enumValues(includeDeprecated: true) {{ name description isDeprecated deprecationReason }} possibleTypes {{ ...TypeRef }} }}
         fragment InputValue on __InputValue {{ name description type {{ ...TypeRef }} defaultValue isDeprecated deprecationReason }}
         fragment TypeRef on __Type {{ {of} }}"
    );
    let data = server.data(&introspection, Value::Null).await;
    assert!(data["__schema"]["types"].as_array().is_some_and(|types| types.len() > 60));
}

#[tokio::test]
async fn unknown_names_are_answered_with_the_nearest() {
    let server = Server::start().await;
    server.start_waiting(30).await;
    let answer = server.ask("{ application(name: \"helo\") { id } }", Value::Null).await;
    assert_eq!((code(&answer), &answer["data"]["application"]), ("NOT_FOUND", &Value::Null));
    assert_eq!(answer["errors"][0]["message"], "there is no application `helo`; did you mean `hello`?");
    assert_eq!(answer["errors"][0]["path"], json!(["application"]));
    let answer = server.ask("{ pipeline(application: \"hello\", name: \"wiat\") { id } }", Value::Null).await;
    assert!(answer["errors"][0]["message"].as_str().is_some_and(|text| text.contains("`wait`")), "{answer}");
    let start = "mutation { startPipeline(input: {pipeline: {name: {application: \"hello\", name: \"wate\"}}})
                 { execution { id } userErrors { code message field ... on UserError { message } } } }";
    let errors = server.data(start, Value::Null).await["startPipeline"]["userErrors"].take();
    assert_eq!(errors[0]["code"], "NOT_FOUND");
    assert_eq!(errors[0]["field"], json!(["pipeline", "name", "name"]));
    assert!(errors[0]["message"].as_str().is_some_and(|text| text.contains("`wait`")), "{errors}");
    let both =
        "mutation { deleteApplication(input: {application: {name: \"hello\", id: \"x\"}}) { userErrors { code } } }";
    assert_eq!(code(&server.ask(both, Value::Null).await), "GRAPHQL_VALIDATION_FAILED", "one of the two");
    let resize = "mutation { resizeServerGroup(input: {serverGroup: {name: {name: \"hello-v000\"}}, capacity: {min: 1, desired: 1, max: 1}})
                  { execution { id } userErrors { code message } } }";
    let errors = server.data(resize, Value::Null).await["resizeServerGroup"]["userErrors"].take();
    assert!(errors[0]["message"].is_string(), "{errors}");
}

#[tokio::test]
async fn everything_is_found_again_by_its_id_and_by_its_names() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    let query = "query($id: ID!) {
        node(id: $id) { id ... on Execution { number name url startedByName startedBy { id name }
            application { id } pipeline { id } pipelineRevision { id number createdByName } stages { id key kind config } } }
        execution(application: \"hello\", pipeline: \"wait\", number: 1) { id stage(key: \"pause\") { id execution { id } } }
        executions(filter: {application: {name: \"hello\"}, statuses: [NOT_STARTED, RUNNING]}) { totalCount nodes { id stages { key } } } }";
    let data = server.data(query, json!({"id": id})).await;
    let node = &data["node"];
    assert_eq!((&node["id"], &node["number"], &node["startedByName"]), (&json!(id), &json!(1), &json!("ada")));
    assert_eq!(node["stages"][0]["config"], json!({"seconds": 30}));
    assert_eq!(data["execution"]["id"], json!(id));
    assert_eq!(data["execution"]["stage"]["id"], node["stages"][0]["id"]);
    assert_eq!(data["executions"]["nodes"][0]["stages"][0]["key"], "pause");
    let ids = json!([
        node["id"],
        node["startedBy"]["id"],
        node["application"]["id"],
        node["pipeline"]["id"],
        node["pipelineRevision"]["id"],
        node["stages"][0]["id"],
    ]);
    let found = server.data("query($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }", json!({"ids": ids})).await;
    let types: Vec<_> =
        found["nodes"].as_array().expect("a list").iter().map(|node| node["__typename"].clone()).collect();
    assert_eq!(types, ["Execution", "Principal", "Application", "Pipeline", "PipelineRevision", "Stage"]);
    let back: Value = found["nodes"].as_array().expect("a list").iter().map(|node| node["id"].clone()).collect();
    assert_eq!(back, ids);
    // The link opens the explorer with a query that is within the schema.
    let (_, query) = node["url"].as_str().and_then(|url| url.split_once("?query=")).expect("a query");
    let response =
        server.client.get(server.url(&format!("/graphql?query={query}"))).bearer_auth(&server.token).send().await;
    let answer: Value = response.expect("an answer").json().await.expect("JSON");
    assert_eq!(answer["data"]["node"]["name"], "wait", "{answer}");
    assert_eq!(code(&server.ask("{ node(id: \"garbage\") { id } }", Value::Null).await), "BAD_REQUEST");
    assert_eq!(
        code(&server.ask("{ applications(first: 101) { totalCount } }", Value::Null).await),
        "PAGE_LIMIT_EXCEEDED"
    );
}

#[tokio::test]
async fn a_viewer_reads_and_does_not_change() {
    let server = Server::start().await;
    server.start_waiting(30).await;
    let viewer = Principal {
        id: PrincipalId::new(),
        name: "guest".into(),
        kind: PrincipalKind::User,
        roles: vec![Role::Viewer],
        created_at: server.clock.now(),
    };
    let (row, text) = token::create(viewer.id, "", server.clock.now(), None).expect("a token");
    let writes = vec![Write::InsertPrincipal(viewer), Write::InsertToken(row)];
    server.store.commit(Commit { writes, ..Commit::default() }).await.expect("committed");
    let ask = |query: &str| {
        let body = json!({"query": query});
        let request = server.client.post(server.url("/graphql")).bearer_auth(&text).json(&body).send();
        async { request.await.expect("an answer").json::<Value>().await.expect("JSON") }
    };
    assert_eq!(ask("{ applications { nodes { name } } }").await["data"]["applications"]["nodes"][0]["name"], "hello");
    for query in ["{ tokens { totalCount } }", "{ auditEntries { totalCount } }"] {
        assert_eq!(code(&ask(query).await), "FORBIDDEN", "{query}");
    }
    for mutation in [
        "mutation { done: createApplication(input: {name: \"x\"}) { userErrors { code } } }",
        "mutation { done: deleteApplication(input: {application: {name: \"hello\"}}) { userErrors { code } } }",
        "mutation { done: startPipeline(input: {pipeline: {name: {application: \"hello\", name: \"wait\"}}}) { userErrors { code } } }",
        "mutation { done: createToken(input: {principal: {name: \"guest\"}}) { userErrors { code } } }",
    ] {
        assert_eq!(ask(mutation).await["data"]["done"]["userErrors"][0]["code"], "FORBIDDEN", "{mutation}");
    }
    let tokens = server.data("{ tokens { nodes { id } } }", Value::Null).await;
    let of = json!({"id": tokens["tokens"]["nodes"][0]["id"]});
    let body = json!({"query": "query($id: ID!) { node(id: $id) { id } }", "variables": of});
    let answer =
        server.client.post(server.url("/graphql")).bearer_auth(&text).json(&body).send().await.expect("an answer");
    assert_eq!(answer.json::<Value>().await.expect("JSON")["data"]["node"], Value::Null, "not visible is not there");
}

#[tokio::test]
async fn the_explorer_comes_from_the_binary_under_a_strict_policy() {
    let server = Server::start().await;
    for path in [
        "/",
        "/assets/explorer.js",
        "/assets/graphiql.min.js",
        "/assets/graphiql.min.css",
        "/assets/THIRD-PARTY-LICENSES",
    ] {
        let response = server.client.get(server.url(path)).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
        assert!(policy.contains("script-src 'self';") && policy.contains("default-src 'none'"), "{policy}");
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(!response.text().await.expect("text").is_empty());
    }
}

#[tokio::test]
async fn a_token_revoked_elsewhere_is_refused_ten_seconds_later_at_the_latest() {
    let server = Server::start().await;
    let ask =
        || async { server.post().json(&json!({"query": "{viewer{name}}"})).send().await.expect("an answer").status() };
    assert_eq!(ask().await, StatusCode::OK);
    let tokens =
        server.store.tokens(&crate::store::PageRequest { after: None, before: None, limit: 10, backward: false });
    let id = tokens.await.expect("a page").items[0].1.id;
    let writes = vec![Write::RevokeToken { id, at: server.clock.now() }];
    server.store.commit(Commit { writes, ..Commit::default() }).await.expect("committed");
    server.clock.advance(Duration::from_secs(10));
    assert_eq!(ask().await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn every_kind_of_stage_shows_an_example_that_can_be_saved() {
    let server = Server::start().await;
    let make = "mutation { createApplication(input: {name: \"hello\"}) { userErrors { message } } }";
    server.data(make, Value::Null).await;
    let kinds =
        server.data("{ stageKinds { kind title description schema example timeout signals } }", Value::Null).await;
    let kinds = kinds["stageKinds"].as_array().expect("a list");
    assert!(kinds.len() >= 12, "{}", kinds.len());
    for kind in kinds {
        let stage = json!({"key": "one", "kind": kind["kind"], "config": kind["example"]});
        let input = json!({"application": {"name": "hello"}, "name": kind["kind"], "stages": [stage]});
        let save = "mutation($input: SavePipelineInput!) { savePipeline(input: $input) { pipeline { revision } userErrors { code message field } } }";
        let saved = server.data(save, json!({"input": input})).await;
        assert_eq!(saved["savePipeline"]["userErrors"], json!([]), "{kind}");
        assert_eq!(saved["savePipeline"]["pipeline"]["revision"], 1);
    }
    let strategies = server
        .data("{ strategyKinds { kind schema example } providerKinds { kind } accounts { name } }", Value::Null)
        .await;
    assert!(
        strategies["strategyKinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"] == "redBlack"))
    );
}

#[tokio::test]
async fn a_judgment_is_given_by_names_and_a_second_cancel_is_refused() {
    let server = Server::start().await;
    server.start_waiting(3_000).await;
    let save = "mutation { savePipeline(input: {application: {name: \"hello\"}, name: \"ask\", stages: [{key: \"gate\", kind: \"manualJudgment\"}]})
                { userErrors { message field } } }";
    assert_eq!(server.data(save, Value::Null).await["savePipeline"]["userErrors"], json!([]));
    let start = "mutation { startPipeline(input: {pipeline: {name: {application: \"hello\", name: \"ask\"}}, idempotencyKey: \"k\"})
                 { execution { id } isReplay } }";
    let first = server.data(start, Value::Null).await["startPipeline"].take();
    let again = server.data(start, Value::Null).await["startPipeline"].take();
    assert_eq!((&first["isReplay"], &again["isReplay"]), (&json!(false), &json!(true)));
    assert_eq!(first["execution"], again["execution"]);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let waits =
        "{ execution(application: \"hello\", pipeline: \"ask\", number: 1) { stage(key: \"gate\") { waitsFor } } }";
    while server.data(waits, Value::Null).await["execution"]["stage"]["waitsFor"] != "judge" {
        assert!(tokio::time::Instant::now() < deadline, "the stage waits");
    }
    let judge = "mutation { judgeStage(input: {stage: {key: {execution: {number: {application: \"hello\", pipeline: \"ask\", number: 1}}, key: \"gate\"}}, proceed: true, comment: \"fine\"})
                 { execution { id } userErrors { code message } } }";
    let judged = server.data(judge, Value::Null).await["judgeStage"].take();
    assert_eq!(judged["userErrors"], json!([]));
    assert_eq!(judged["execution"]["id"], first["execution"]["id"]);

    let cancel = "mutation { cancelExecution(input: {execution: {number: {application: \"hello\", pipeline: \"wait\", number: 1}}, reason: \"enough\"})
                  { execution { cancellation { byName reason mode } } userErrors { code message } } }";
    let canceled = server.data(cancel, Value::Null).await["cancelExecution"].take();
    assert_eq!(canceled["execution"]["cancellation"], json!({"byName": "ada", "reason": "enough", "mode": "UNWIND"}));
    let again = server.data(cancel, Value::Null).await["cancelExecution"].take();
    assert_eq!(again["userErrors"][0]["code"], "WRONG_STATE", "{again}");
}

#[tokio::test]
async fn a_cursor_of_another_list_is_refused_by_its_argument() {
    let server = Server::start().await;
    let id = server.start_waiting(3_600).await;
    let first = |list: &str| format!("{{ {list} {{ pageInfo {{ endCursor }} }} }}");
    let of_all = server.data(&first("executions(first: 1)"), Value::Null).await;
    let of_waits = server.data(&first("executions(first: 1, filter: {kind: PIPELINE})"), Value::Null).await;
    let cursor = |data: &Value| data["executions"]["pageInfo"]["endCursor"].as_str().expect("a cursor").to_owned();
    let (of_all, of_waits) = (cursor(&of_all), cursor(&of_waits));
    assert_ne!(of_all, of_waits);
    let application = |list: &str| format!("{{ application(name: \"hello\") {{ {list} {{ totalCount }} }} }}");
    for (document, argument) in [
        (format!("{{ applications(after: \"{of_all}\") {{ totalCount }} }}"), "after"),
        (format!("{{ executions(after: \"{of_waits}\") {{ totalCount }} }}"), "after"),
        (
            format!("{{ executions(last: 1, before: \"{of_all}\", filter: {{kind: PIPELINE}}) {{ totalCount }} }}"),
            "before",
        ),
        (application(&format!("executions(after: \"{of_all}\")")), "after"),
    ] {
        let answer = server.ask(&document, Value::Null).await;
        assert_eq!(code(&answer), "BAD_REQUEST", "{document}: {answer}");
        let message = answer["errors"][0]["message"].as_str().expect("a message");
        let named = message.starts_with(&format!("`{argument}`: ")) && message.contains("not a cursor of this list");
        assert!(named, "{document}: {message}");
    }
    // In its own list it holds, however large the page is.
    let mine = format!("{{ executions(first: 50, after: \"{of_all}\") {{ totalCount nodes {{ id }} }} }}");
    assert_eq!(server.data(&mine, Value::Null).await["executions"], json!({"totalCount": 1, "nodes": []}), "{id}");
}

#[tokio::test]
async fn values_that_do_not_hold_are_named() {
    let server = Server::start().await;
    let cancel =
        "mutation($input: CancelExecutionInput!) { cancelExecution(input: $input) { userErrors { message } } }";
    let put = "mutation($input: UpsertLoadBalancerInput!) { upsertLoadBalancer(input: $input) { userErrors { message field } } }";
    for (document, variables, wanted) in [
        (cancel, json!({}), vec!["`$input` of type `CancelExecutionInput!` is not given", "`variables`"]),
        (cancel, json!({"input": {"reason": "x"}}), vec!["`$input.execution` is not given"]),
        (put, json!({"input": {"name": "hello"}}), vec!["`$input.listeners` is not given"]),
        ("{ executions(first: 99999999999) { totalCount } }", Value::Null, vec!["`executions`", "2147483647"]),
        ("{ executions(first: 101) { totalCount } }", Value::Null, vec!["`first` is 101"]),
    ] {
        let answer = server.ask(document, variables.clone()).await;
        let message = answer["errors"][0]["message"].as_str().unwrap_or_default();
        assert!(wanted.iter().all(|part| message.contains(part)), "{variables} {answer}: {wanted:?}");
    }
    // A number that is one, but not of those allowed.
    for port in [70_000, -1] {
        let input = json!({"input": {"name": "hello", "listeners": [{"port": port}], "validateOnly": true}});
        let refused = server.data(put, input).await["upsertLoadBalancer"]["userErrors"][0].take();
        assert_eq!(refused["field"], json!(["listeners", "0", "port"]), "{refused}");
        assert!(refused["message"].as_str().is_some_and(|message| message.contains(&port.to_string())), "{refused}");
    }
}
