//! Whatever has an id is found again by it, by those who may see it.

use super::*;
use crate::api::graphql::ids::Key;
use crate::model::{ExecutionId, IntentId, StageId};
use crate::store::Intent;

const NODE: &str = "query($id: ID!) { node(id: $id) { __typename id } }";

impl Server {
    /// A token of a new principal with that role.
    async fn token_of(&self, name: &str, role: Role) -> String {
        let now = self.clock.now();
        let kind = PrincipalKind::Service;
        let principal =
            Principal { id: PrincipalId::new(), name: name.into(), kind, roles: vec![role], created_at: now };
        let (row, text) = token::create(principal.id, "test", now, None).expect("a token");
        let writes = vec![Write::InsertPrincipal(principal), Write::InsertToken(row)];
        self.store.commit(Commit { writes, ..Commit::default() }).await.expect("committed");
        text
    }

    async fn node_as(&self, token: &str, id: &Value) -> Value {
        let body = json!({"query": NODE, "variables": {"id": id}});
        let response = self.client.post(self.url("/graphql")).bearer_auth(token).timeout(PATIENCE).json(&body);
        let mut answer: Value = response.send().await.expect("an answer").json().await.expect("JSON");
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"]["node"].take()
    }
}

#[tokio::test]
async fn messages_and_audit_entries_are_found_by_id_by_those_who_may() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    server.finish(&id, 31).await;
    let lists = "{ notifications { nodes { id } } auditEntries { nodes { id } } }";
    let lists = server.data(lists, Value::Null).await;
    let viewer = server.token_of("vic", Role::Viewer).await;
    let (message, entry) = (&lists["notifications"]["nodes"][0]["id"], &lists["auditEntries"]["nodes"][0]["id"]);

    let found = json!({"__typename": "Notification", "id": message});
    assert_eq!(server.data(NODE, json!({"id": message})).await["node"], found);
    assert_eq!(server.node_as(&viewer, message).await, found, "a viewer reads messages");

    let found = json!({"__typename": "AuditEntry", "id": entry});
    assert_eq!(server.data(NODE, json!({"id": entry})).await["node"], found);
    assert_eq!(server.node_as(&viewer, entry).await, Value::Null, "the audit log is for admins");
}

#[tokio::test]
async fn an_intent_is_found_by_id_within_its_execution_only() {
    let server = Server::start().await;
    server.start_waiting(30).await;
    let execution = events::execution_id(&server).await;
    let now = server.clock.now();
    let intent = Intent {
        id: IntentId::new(),
        execution,
        stage: StageId::new(),
        attempt: 1,
        key: "create".into(),
        what: "create server group hello-v000".into(),
        lease_number: 1,
        created_at: now,
        deadline: now,
        closed_at: None,
        outcome: None,
    };
    let writes = vec![Write::InsertIntent(intent.clone())];
    server.store.commit(Commit { writes, ..Commit::default() }).await.expect("committed");
    let id = |execution: ExecutionId| json!(Key::Intent(execution, intent.id).id());
    let found = server.data(NODE, json!({"id": id(execution)})).await;
    assert_eq!(found["node"], json!({"__typename": "Intent", "id": id(execution)}));
    let other = server.data(NODE, json!({"id": id(ExecutionId::new())})).await;
    assert_eq!(other["node"], Value::Null);
}

#[tokio::test]
async fn a_mistyped_principal_is_met_with_the_nearest_names() {
    let server = Server::start().await;
    let create = "mutation { createToken(input: {principal: {name: \"adda\"}}) { userErrors { message } } }";
    let answer = server.data(create, Value::Null).await;
    let message = answer["createToken"]["userErrors"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("did you mean `ada`?"), "{answer}");
}

#[tokio::test]
async fn one_id_that_is_none_takes_no_other_along() {
    let server = Server::start().await;
    let id = server.start_waiting(30).await;
    let query = "query($ids: [ID!]!) { nodes(ids: $ids) { id } viewer { name } }";
    let body = json!({"query": query, "variables": {"ids": ["garbage", id]}});
    let response = server.client.post(server.url("/graphql")).bearer_auth(&server.token).timeout(PATIENCE).json(&body);
    let answer: Value = response.send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(answer["data"], json!({"nodes": [null, {"id": id}], "viewer": {"name": "ada"}}), "{answer}");
    assert_eq!(answer["errors"][0]["path"], json!(["nodes", 0]), "{answer}");
}
