//! The API as clients meet it: a real server on a real socket, a real database and engine, and
//! time that only the test moves.

mod documents;
mod events;
mod nodes;
mod over_http;
mod secrets;
mod socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::http::{App, routes as http_routes};
use super::{Context, Options, SocketOptions};
use crate::auth::token;
use crate::clock::Clock;
use crate::engine::{self, Engine};
use crate::inventory::Inventory;
use crate::model::{Cursor, Principal, PrincipalId, PrincipalKind, Role, StreamId};
use crate::outbound::{self, Outbound};
use crate::secrets::Secrets;
use crate::stages;
use crate::store::{Commit, Durability, Store, Write};
use crate::triggers;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server, gone with the test.
pub(super) struct Server {
    address: SocketAddr,
    pub app: Arc<App>,
    clock: Clock,
    store: Store,
    pub token: String,
    principal: Principal,
    directory: PathBuf,
    stop: CancellationToken,
    client: reqwest::Client,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(config: Options) -> Self {
        let start = DateTime::<Utc>::from_timestamp(1_800_000_000, 0).expect("an instant");
        let clock = Clock::manual(start);
        let directory = std::env::temp_dir().join(format!("gennaker-api-{}", uuid::Uuid::new_v4().simple()));
        let options = crate::store::Options {
            database_url: None,
            data_dir: directory.clone(),
            durability: Durability::Normal,
            queue_max: 4096,
        };
        let store = Store::open(&options, clock.clone()).await.expect("the store opens");
        let principal = Principal {
            id: PrincipalId::new(),
            name: "ada".into(),
            kind: PrincipalKind::User,
            roles: vec![Role::Admin],
            created_at: start,
        };
        let (row, token) = token::create(principal.id, "test", start, None).expect("a token");
        let writes = vec![Write::InsertPrincipal(principal.clone()), Write::InsertToken(row)];
        store.commit(Commit { writes, ..Commit::default() }).await.expect("committed");

        let inventory = Inventory::new(Vec::new(), clock.clone());
        let registry = stages::registry(stages::Deps {
            inventory: inventory.clone(),
            outbound: Outbound::new(outbound::Options::default()),
            secrets: Secrets::new(Vec::new()),
        });
        let registry = triggers::kinds(registry);
        let engine = Engine::new(engine::Options::default(), store.clone(), registry.clone(), clock.clone());
        let stop = CancellationToken::new();
        let context = Context {
            store: store.clone(),
            commands: engine.commands(),
            registry,
            inventory,
            notifiers: Default::default(),
            clock: clock.clone(),
            config,
            probes: crate::api::probes::Probes::default(),
            folds: crate::api::Folds::default(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let app = Arc::new(App::new(context));
        let router = http_routes(Arc::clone(&app));
        let running = stop.clone();
        let _tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = engine.run(running).await;
            })),
            AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = axum::serve(listener, router).await;
            })),
        ];
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { address, app, clock, store, token, principal, directory, stop, client, _tasks }
    }

    /// Small queues and little patience.
    pub fn narrow() -> Options {
        Options {
            socket: SocketOptions {
                queue_max: 2,
                stall_max: Duration::from_millis(200),
                operations_max: 3,
                ..SocketOptions::default()
            },
            ..Options::default()
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn post(&self) -> reqwest::RequestBuilder {
        self.client.post(self.url("/graphql")).bearer_auth(&self.token).timeout(PATIENCE)
    }

    /// The answer to a document.
    async fn ask(&self, query: &str, variables: Value) -> Value {
        let response = self.post().json(&json!({"query": query, "variables": variables})).send().await;
        response.expect("an answer").json().await.expect("JSON")
    }

    /// The data of an answer that must have no errors.
    async fn data(&self, query: &str, variables: Value) -> Value {
        let mut answer = self.ask(query, variables).await;
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].take()
    }

    /// An application `hello` with a pipeline `wait` of one stage; a started execution's id.
    pub async fn start_waiting(&self, seconds: u64) -> String {
        self.data("mutation { createApplication(input: {name: \"hello\"}) { userErrors { message } } }", Value::Null)
            .await;
        let saved = self
            .data(
                "mutation($config: JSON!) { savePipeline(input: {
                    application: {name: \"hello\"}, name: \"wait\",
                    stages: [{key: \"pause\", kind: \"wait\", config: $config}],
                    notifications: [{on: [STARTED, COMPLETED]}]
                 }) { pipeline { id revision } userErrors { code message field } } }",
                json!({"config": {"seconds": seconds}}),
            )
            .await;
        assert_eq!(saved["savePipeline"]["userErrors"], json!([]), "{saved}");
        let started = self
            .data(
                "mutation { startPipeline(input: {pipeline: {name: {application: \"hello\", name: \"wait\"}}})
                 { execution { id } isReplay userErrors { code message field } } }",
                Value::Null,
            )
            .await;
        started["startPipeline"]["execution"]["id"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned()
    }
}

impl Server {
    /// Lets the execution of [`Server::start_waiting`] run to its end.
    pub async fn finish(&self, id: &str, seconds: u64) {
        events::until_running(self, id).await;
        self.clock.advance(Duration::from_secs(seconds));
        let query = "query($id: ID!) { node(id: $id) { ... on Execution { status } } }";
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.data(query, json!({"id": id})).await["node"]["status"] != "SUCCEEDED" {
            assert!(tokio::time::Instant::now() < deadline, "the execution ends");
        }
    }

    /// A cursor of the first execution's stream.
    pub async fn cursor_at(&self, seq: i64) -> String {
        let stream = StreamId::Execution(events::execution_id(self).await).key();
        Cursor { epoch: self.store.epoch(), stream, seq }.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Three in the morning in Berlin is another instant in summer than in winter.
#[tokio::test]
async fn a_timetable_goes_by_the_clocks_of_its_zone() {
    let server = Server::start().await;
    let save = "mutation($config: JSON!) { savePipeline(input: {
        application: {name: \"hello\"}, name: \"nightly\",
        stages: [{key: \"pause\", kind: \"wait\", config: {seconds: 0}}],
        triggers: [{key: \"night\", kind: \"cron\", config: $config}]
     }) { userErrors { message field } } }";
    server
        .data("mutation { createApplication(input: {name: \"hello\"}) { userErrors { message } } }", Value::Null)
        .await;
    let config = json!({"expression": "0 3 * * *", "timeZone": "Europe/Berlin"});
    let saved = server.data(save, json!({"config": config})).await;
    assert_eq!(saved["savePipeline"]["userErrors"], json!([]), "{saved}");
    let query = "{ pipeline(application: \"hello\", name: \"nightly\") { triggers { nextAt nextRuns(first: 80) } } }";
    let trigger = server.data(query, Value::Null).await["pipeline"]["triggers"][0].take();
    // It is the 15th of January 2027, eight in the morning; the clocks go forward on the 28th of March.
    let mut wanted = Vec::new();
    let mut day = chrono::NaiveDate::from_ymd_opt(2027, 1, 16).expect("a day");
    let summer = chrono::NaiveDate::from_ymd_opt(2027, 3, 28).expect("a day");
    while wanted.len() < 80 {
        wanted.push(format!("{day}T0{}:00:00+00:00", if day < summer { 2 } else { 1 }));
        day = day.succ_opt().expect("a day");
    }
    assert!(day > summer);
    assert_eq!(trigger, json!({"nextAt": wanted[0], "nextRuns": wanted}));
}

/// `errors[0].extensions.code`.
fn code(answer: &Value) -> &str {
    answer["errors"][0]["extensions"]["code"].as_str().unwrap_or_default()
}
