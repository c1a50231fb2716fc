//! Something that pipelines call, which answers at once and counts by path.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

/// See the module. Ends when dropped.
pub struct Calls {
    pub address: String,
    counts: Counts,
    _task: AbortOnDropHandle<()>,
}

impl Calls {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let counts = Counts::default();
        let router = Router::new().fallback(count).with_state(Arc::clone(&counts));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, counts, _task: AbortOnDropHandle::new(task) })
    }

    /// The calls so far, by path.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn total(&self) -> usize {
        self.counts().values().sum()
    }

    /// A pipeline whose executions call, wait, and call again; each by its number.
    pub fn pipeline(&self, seconds: u32) -> Value {
        let call = |key: &str, requires: &[&str]| {
            let url = format!("http://{}/${{ execution.number }}/{key}", self.address);
            json!({ "key": key, "kind": "webhook", "requires": requires, "config": { "url": url } })
        };
        let pause = json!({ "key": "pause", "kind": "wait", "requires": ["first"], "config": { "seconds": seconds } });
        json!({ "stages": [call("first", &[]), pause, call("second", &["pause"])] })
    }

    /// The flags that let a server call it.
    pub fn flags(&self) -> Vec<String> {
        vec!["--outbound-allow".to_owned(), self.address.clone()]
    }
}

async fn count(State(counts): State<Counts>, uri: Uri) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(uri.path().to_owned()).or_default() += 1;
}
