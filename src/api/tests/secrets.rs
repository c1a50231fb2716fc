//! Secrets are given as references; what stands in a config as it is, is refused or not shown.

use super::*;

const SAVE: &str = "mutation($config: JSON!) { savePipeline(input: {
    application: {name: \"hello\"}, name: \"call\", stages: [{key: \"hook\", kind: \"webhook\", config: $config}]
}) { pipeline { definition { document stages { config } } } userErrors { code message field } } }";

#[tokio::test]
async fn a_secret_header_has_to_be_a_reference_and_nothing_secret_is_shown() {
    let server = Server::start().await;
    server
        .data("mutation { createApplication(input: {name: \"hello\"}) { userErrors { message } } }", Value::Null)
        .await;
    let save = async |config: Value| server.data(SAVE, json!({"config": config})).await["savePipeline"].take();
    let config = |token: &str| {
        json!({"url": "https://hooks.example.com/x", "headers": {"X-Api-Key": token, "x-plain": "p"},
               "body": {"password": "in-the-body"}})
    };
    let refused = save(config("s3cr3t")).await;
    let error = &refused["userErrors"][0];
    assert_eq!(error["code"], "INVALID", "{refused}");
    assert_eq!(error["field"], json!(["stages", "0", "config", "headers", "X-Api-Key"]));
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("secret://env/") && !message.contains("s3cr3t"), "{message}");

    let reference = "secret://env/GENNAKER_SECRET_HOOK";
    let saved = save(config(reference)).await;
    assert_eq!(saved["userErrors"], json!([]), "{saved}");
    let definition = &saved["pipeline"]["definition"];
    for shown in [&definition["stages"][0]["config"], &definition["document"]["stages"][0]["config"]] {
        assert_eq!(shown["headers"]["X-Api-Key"], reference, "a reference says nothing");
        assert_eq!(shown["body"]["password"], "***");
    }
}
