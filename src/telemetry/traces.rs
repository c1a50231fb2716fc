//! Traces: one for each execution, sent to a collector as OTLP over HTTP. A span is made when what
//! it tells of is over, from the rows, and its ids follow from theirs: so a trace is whole
//! although servers were killed and others went on, and nothing is held open in memory. Sending
//! never holds up the engine: spans wait in a bounded queue, and those that find no room are
//! counted and dropped.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status as SpanStatus, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::engine::{Ended, EndedHook};
use crate::measure::traces::{self as measure, Spans};
use crate::model::{Execution, ExecutionId, Failure, Stage, Status};
use crate::store::{Intent, IntentOutcome};

/// Spans that may wait for the collector.
const QUEUE_MAX: usize = 8_192;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// How long the first span of a request waits for others.
const GATHER: Duration = Duration::from_millis(500);
/// How often a request is made before its spans are given up, and the pause before the second.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// Failures are logged this often at most.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Bytes of a text in a span.
const TEXT_MAX: usize = 1_024;

/// Which collector.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whole: `http://127.0.0.1:4318/v1/traces`.
    pub endpoint: String,
    /// How long it may take to answer.
    pub timeout: Duration,
}

/// Sends spans; made by [`start`].
pub struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    queue: mpsc::Receiver<SpanData>,
    timeout: Duration,
    complained: Option<Instant>,
}

/// Makes the queue and what sends from it. Nothing is sent before [`Exporter::run`].
///
/// # Errors
/// When the collector's address or the headers from the environment cannot be used.
pub fn start(options: &Options) -> Result<(EndedHook, Exporter), String> {
    let builder = || reqwest::Client::builder().timeout(options.timeout).redirect(reqwest::redirect::Policy::none());
    // A machine without any root certificate can still send by `http`.
    let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
    let client = client.map_err(|error| error.to_string())?;
    let mut inner = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&options.endpoint)
        .with_timeout(options.timeout)
        .build()
        .map_err(|error| error.to_string())?;
    let resource = Resource::builder()
        .with_service_name("gennaker")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", Uuid::new_v4().to_string()))
        .build();
    inner.set_resource(&resource);
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let scope = InstrumentationScope::builder("gennaker").with_version(env!("CARGO_PKG_VERSION")).build();
    let hook = EndedHook(Arc::new(move |ended| {
        let Some(span) = span(&ended, &scope) else { return };
        if sender.try_send(span).is_err() {
            measure::spans(Spans::Dropped, 1);
        }
    }));
    Ok((hook, Exporter { inner, queue, timeout: options.timeout, complained: None }))
}

impl Exporter {
    /// Sends until the token is cancelled, then what is left, once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let count = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = self.queue.recv_many(&mut batch, BATCH_MAX) => count,
            };
            if count == 0 {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(GATHER) => {}
            }
            while batch.len() < BATCH_MAX
                && let Ok(span) = self.queue.try_recv()
            {
                batch.push(span);
            }
            self.export(std::mem::take(&mut batch), &stop).await;
        }
        self.queue.close();
        while self.queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
            self.export(std::mem::take(&mut batch), &stop).await;
        }
    }

    /// One request, made again while the server is not asked to end.
    async fn export(&mut self, batch: Vec<SpanData>, stop: &CancellationToken) {
        let count = batch.len();
        for attempt in 0..TRIES {
            let sent = tokio::time::timeout(self.timeout, self.inner.export(batch.clone())).await;
            let error = match sent {
                Ok(Ok(())) => return measure::spans(Spans::Exported, count),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {:?}", self.timeout),
            };
            self.complain(&error, count);
            if stop.is_cancelled() || attempt + 1 == TRIES {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PAUSE * 2_u32.pow(attempt)) => {}
            }
        }
        measure::spans(Spans::Failed, count);
    }

    fn complain(&mut self, error: &str, count: usize) {
        if self.complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!(spans = count, "the collector of traces does not take spans: {error}");
        }
    }
}

/// The trace of an execution: its id.
#[must_use]
pub fn trace_id(execution: ExecutionId) -> TraceId {
    TraceId::from_bytes(*execution.uuid().as_bytes())
}

/// The span of a thing of that id: the beginning of a hash, so that things made in the same instant
/// are far from each other.
fn span_id(what: &str, id: Uuid, attempt: i32) -> SpanId {
    let mut hash = Sha256::new();
    hash.update(what.as_bytes());
    hash.update(id.as_bytes());
    hash.update(attempt.to_be_bytes());
    let bytes = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    // All zero is no id.
    first[7] |= 1;
    SpanId::from_bytes(first)
}

fn root(execution: ExecutionId) -> SpanId {
    span_id("execution", execution.uuid(), 0)
}

fn of_stage(stage: Uuid, attempt: i32) -> SpanId {
    span_id("stage", stage, attempt)
}

/// What is over, as a span; None for what never began.
fn span(ended: &Ended, scope: &InstrumentationScope) -> Option<SpanData> {
    let made = match ended {
        Ended::Execution(execution) => of_execution(execution)?,
        Ended::Stage(stage) => of_stage_row(stage)?,
        Ended::Effect(intent) => of_effect(intent)?,
    };
    Some(SpanData {
        span_context: SpanContext::new(
            trace_id(made.execution),
            made.id,
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: made.parent,
        parent_span_is_remote: false,
        span_kind: made.kind,
        name: made.name.into(),
        start_time: SystemTime::from(made.start),
        end_time: SystemTime::from(made.end),
        attributes: made.attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: made.status,
        instrumentation_scope: scope.clone(),
    })
}

/// What differs between spans.
struct Made {
    execution: ExecutionId,
    id: SpanId,
    parent: SpanId,
    kind: SpanKind,
    name: String,
    start: DateTime<Utc>,
    end: DateTime<Utc>,
    attributes: Vec<KeyValue>,
    status: SpanStatus,
}

fn of_execution(execution: &Execution) -> Option<Made> {
    let end = execution.ended_at?;
    Some(Made {
        execution: execution.id,
        id: root(execution.id),
        parent: SpanId::INVALID,
        kind: SpanKind::Internal,
        name: format!("execution {}", cut(&execution.name)),
        start: execution.started_at.unwrap_or(execution.created_at).min(end),
        end,
        attributes: vec![
            KeyValue::new("execution.id", execution.id.to_string()),
            KeyValue::new("execution.number", execution.number),
            KeyValue::new("execution.status", execution.status.as_str()),
            KeyValue::new("application", cut(&execution.application_name)),
            KeyValue::new("started_by", cut(&execution.started_by_name)),
        ],
        status: status(execution.status, execution.failure.as_ref()),
    })
}

fn of_stage_row(stage: &Stage) -> Option<Made> {
    let (start, end) = (stage.started_at?, stage.ended_at?);
    Some(Made {
        execution: stage.execution,
        id: of_stage(stage.id.uuid(), stage.attempt),
        parent: stage.parent.map_or_else(|| root(stage.execution), |parent| of_stage(parent.uuid(), stage.attempt)),
        kind: SpanKind::Internal,
        name: format!("stage {}", stage.kind),
        start: start.min(end),
        end,
        attributes: vec![
            KeyValue::new("execution.id", stage.execution.to_string()),
            KeyValue::new("stage.id", stage.id.to_string()),
            KeyValue::new("stage.key", cut(&stage.key)),
            KeyValue::new("stage.kind", stage.kind.clone()),
            KeyValue::new("stage.name", cut(&stage.name)),
            KeyValue::new("stage.attempt", i64::from(stage.attempt)),
            KeyValue::new("stage.status", stage.status.as_str()),
        ],
        status: status(stage.status, stage.failure.as_ref()),
    })
}

fn of_effect(intent: &Intent) -> Option<Made> {
    let end = intent.closed_at?;
    let (outcome, status) = match &intent.outcome {
        Some(IntentOutcome::Done) => ("done", SpanStatus::Ok),
        Some(IntentOutcome::Failed { message }) => ("failed", SpanStatus::error(cut(message))),
        Some(IntentOutcome::Unknown) | None => ("unknown", SpanStatus::error("the outcome is not known")),
    };
    Some(Made {
        execution: intent.execution,
        id: span_id("effect", intent.id.uuid(), 0),
        parent: of_stage(intent.stage.uuid(), intent.attempt),
        kind: SpanKind::Client,
        name: format!("effect {}", cut(&intent.key)),
        start: intent.created_at.min(end),
        end,
        attributes: vec![
            KeyValue::new("execution.id", intent.execution.to_string()),
            KeyValue::new("stage.id", intent.stage.to_string()),
            KeyValue::new("effect.key", cut(&intent.key)),
            KeyValue::new("effect.what", cut(&intent.what)),
            KeyValue::new("effect.outcome", outcome),
        ],
        status,
    })
}

fn status(status: Status, failure: Option<&Failure>) -> SpanStatus {
    match (status, failure) {
        (Status::Succeeded | Status::Skipped, _) => SpanStatus::Ok,
        (_, Some(failure)) => SpanStatus::error(cut(&failure.message)),
        (status, None) => SpanStatus::error(status.as_str()),
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{IntentId, StageId};

    #[test]
    fn ids_follow_from_what_a_span_tells_of() {
        let (execution, stage) = (ExecutionId::new(), StageId::new());
        let intent = Intent {
            id: IntentId::new(),
            execution,
            stage,
            attempt: 2,
            key: "create".into(),
            what: "create x".into(),
            lease_number: 1,
            created_at: DateTime::from_timestamp(10, 0).expect("an instant"),
            deadline: DateTime::from_timestamp(20, 0).expect("an instant"),
            closed_at: None,
            outcome: None,
        };
        let scope = InstrumentationScope::builder("test").build();
        assert!(span(&Ended::Effect(Box::new(intent.clone())), &scope).is_none(), "it is not over");
        let closed = Intent { closed_at: DateTime::from_timestamp(12, 0), ..intent };
        let told = || span(&Ended::Effect(Box::new(closed.clone())), &scope).expect("over");
        assert_eq!(told(), told(), "whoever tells it");
        assert_eq!(told().span_context.trace_id(), trace_id(execution));
        assert_eq!(told().parent_span_id, of_stage(stage.uuid(), 2));
        assert_ne!(of_stage(stage.uuid(), 1), of_stage(stage.uuid(), 2), "attempts are different spans");
        assert_eq!(told().end_time.duration_since(told().start_time).expect("in order"), Duration::from_secs(2));
    }
}
