//! A collector of traces: OTLP over HTTP, decoded and kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio_util::task::AbortOnDropHandle;

#[derive(Default)]
struct Kept {
    requests: usize,
    tenants: Vec<String>,
    /// By id, since the same may be told twice.
    spans: BTreeMap<Vec<u8>, Span>,
    /// Two that differ have the same id.
    conflicts: Vec<String>,
}

type Shared = Arc<Mutex<Kept>>;

pub struct Collector {
    port: u16,
    kept: Shared,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let kept = Shared::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&kept));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { port, kept, _task: AbortOnDropHandle::new(task) })
    }

    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn endpoint(&self) -> String {
        format!("{}/v1/traces", self.base())
    }

    pub fn requests(&self) -> usize {
        self.kept.lock().expect("a lock").requests
    }

    /// The header `x-tenant` of each request.
    pub fn headers(&self) -> Vec<String> {
        self.kept.lock().expect("a lock").tenants.clone()
    }

    fn spans(&self) -> Vec<Span> {
        let kept = self.kept.lock().expect("a lock");
        assert!(kept.conflicts.is_empty(), "what is told twice is the same: {:?}", kept.conflicts);
        kept.spans.values().cloned().collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.spans().into_iter().map(|span| span.name).collect()
    }

    pub fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    pub fn trace(&self, id: &[u8]) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace_id == id).collect()
    }
}

async fn take(State(kept): State<Shared>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    let mut kept = kept.lock().expect("a lock");
    kept.requests += 1;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return (StatusCode::BAD_REQUEST, Vec::new()) };
    if header("content-type") != "application/x-protobuf" {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Vec::new());
    }
    kept.tenants.push(header("x-tenant"));
    for span in request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans) {
        let name = span.name.clone();
        match kept.spans.insert(span.span_id.clone(), span.clone()) {
            Some(before) if before != span => kept.conflicts.push(format!("{name}: {before:?} {span:?}")),
            _ => {}
        }
    }
    (StatusCode::OK, Vec::new())
}
