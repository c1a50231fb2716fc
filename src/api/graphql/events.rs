//! What happens to an execution, as it happens: a snapshot, then every event after it, without a
//! gap and without overlap, from the table; the store's notice only says when to look again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_graphql::{Context, Interface, OneofObject, Result, SimpleObject, Subscription};
use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::broadcast::{self, error::RecvError};
use uuid::Uuid;

use super::connection::Connection;
use super::execution::{Execution, in_query};
use super::selectors::{ApplicationSelector, ExecutionSelector, PipelineSelector};
use super::session::{Session, not_found, session};
use super::stage::{Siblings, Stage};
use crate::api;
use crate::api::error::{Code, coded, shown, stored};
use crate::measure::{self, Invariant};
use crate::model::{self, Cursor, Event, EventBody, ExecutionId, StreamId};

/// Events read at one time.
const BATCH: u64 = 200;
/// How long a follower relies on notices before it looks by itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The cursor of the newest event that a subscription has given out, for the transport: it stands
/// in the `id:` of server-sent events and in the error that ends a slow reader.
#[derive(Clone, Default)]
pub struct LastCursor(Arc<Mutex<Option<String>>>);

impl LastCursor {
    pub fn set(&self, cursor: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor.to_owned());
    }

    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads a cursor that must belong to the stream.
pub fn parse(text: &str, stream: StreamId) -> Result<Cursor> {
    let cursor: Cursor = text.parse().map_err(|_| {
        coded(Code::BadRequest, format!("`{}` is not a cursor; give one that an event had", shown(text)))
    })?;
    if cursor.stream != stream.key() {
        return Err(coded(Code::BadRequest, "the cursor is of something else; give one that an event of this one had"));
    }
    Ok(cursor)
}

/// The end of a stream of events.
pub struct Tail {
    api: api::Context,
    stream: StreamId,
    bus: broadcast::Receiver<(StreamId, i64)>,
    /// The sequence number of the last event given out.
    pub seq: i64,
    /// How many are read at one time.
    pub batch: u64,
    read: VecDeque<Event>,
}

impl Tail {
    /// Listens from now on; to be opened before anything else is read.
    pub fn open(api: &api::Context, stream: StreamId) -> Self {
        Self { api: api.clone(), stream, bus: api.store.appended(), seq: 0, batch: BATCH, read: VecDeque::new() }
    }

    /// The next event, if there is one already.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        if self.read.is_empty() {
            self.read = self.api.store.events(self.stream, self.seq, self.batch).await.map_err(stored)?.into();
        }
        let event = self.read.pop_front();
        if let Some(event) = &event {
            self.expect(event.seq);
            self.seq = event.seq;
        }
        Ok(event)
    }

    /// The events of an execution go together, so that each is the one after the last.
    fn expect(&self, seq: i64) {
        if matches!(self.stream, StreamId::Execution(_)) && seq != self.seq + 1 {
            measure::violated(Invariant::EventGap);
            let execution = ExecutionId::from(self.stream.key());
            tracing::error!(execution.id = %execution, after = self.seq, seq, "there is a gap in the execution's events");
        }
    }

    /// Waits until the stream has grown, or for the time given.
    pub async fn wait(&mut self, at_most: Duration) {
        let clock = self.api.clock.clone();
        let (stream, seq, bus) = (self.stream, self.seq, &mut self.bus);
        let grown = async {
            loop {
                match bus.recv().await {
                    Ok((grown, to)) if grown == stream && to > seq => return,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => return std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = grown => {}
            () = clock.sleep(at_most) => {}
        }
    }

    /// The cursor of the last event given out.
    pub fn cursor(&self) -> String {
        Cursor { epoch: self.api.store.epoch(), stream: self.stream.key(), seq: self.seq }.to_string()
    }
}

/// Whose events.
#[derive(OneofObject)]
pub enum ExecutionScope {
    /// Those of one execution.
    Execution(ExecutionSelector),
    /// Those of all executions of a pipeline. Not served yet.
    Pipeline(PipelineSelector),
    /// Those of all executions of an application. Not served yet.
    Application(ApplicationSelector),
    /// Those of all executions. Not served yet.
    All(bool),
}

/// Something that happened to an execution, with the objects as they were then.
#[derive(Interface)]
#[graphql(
    field(name = "cursor", ty = "&String", desc = "Give it as `after` to go on behind this event."),
    field(name = "occurred_at", ty = "&DateTime<Utc>", desc = "When it happened."),
    field(name = "execution", ty = "&Execution", desc = "The execution as of this event.")
)]
pub enum ExecutionEvent {
    ExecutionSnapshot(ExecutionSnapshot),
    ExecutionChanged(ExecutionChanged),
    StageChanged(StageChanged),
    EventsTruncated(EventsTruncated),
}

/// The execution as it is, at the start of a subscription.
#[derive(SimpleObject)]
pub struct ExecutionSnapshot {
    /// Give it as `after` to go on behind this event.
    cursor: String,
    /// When it was read.
    occurred_at: DateTime<Utc>,
    /// The execution as of this event.
    execution: Execution,
}

/// The execution's own fields changed.
#[derive(SimpleObject)]
pub struct ExecutionChanged {
    /// Give it as `after` to go on behind this event.
    cursor: String,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    /// The execution as of this event.
    execution: Execution,
}

/// A stage began to exist or changed.
#[derive(SimpleObject)]
pub struct StageChanged {
    /// Give it as `after` to go on behind this event.
    cursor: String,
    /// When it happened.
    occurred_at: DateTime<Utc>,
    /// The execution as of this event.
    execution: Execution,
    /// The stage as of this event.
    stage: Stage,
}

/// What came after the cursor given is no longer known; a snapshot follows.
#[derive(SimpleObject)]
pub struct EventsTruncated {
    /// Where the snapshot that follows stands.
    cursor: String,
    /// When this was found.
    occurred_at: DateTime<Utc>,
    /// The execution as of the snapshot that follows.
    execution: Execution,
    /// The oldest cursor that may still be given.
    oldest_cursor: String,
}

/// The feed of executions.
#[derive(Default)]
pub struct EventSubscription;

#[Subscription]
impl EventSubscription {
    /// What happens to executions, as it happens. Without `after` it begins with a snapshot; with
    /// it, behind that event. Completes when the execution is over and everything was told.
    async fn execution_events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Whose events.")] scope: ExecutionScope,
        #[graphql(desc = "The cursor of the last event seen.")] after: Option<String>,
    ) -> Result<BoxStream<'static, Result<ExecutionEvent>>> {
        let ExecutionScope::Execution(selector) = scope else {
            let message = "this server follows one execution at a time; give `scope: { execution: { id: \"<id>\" } }`";
            return Err(coded(Code::NotImplemented, message));
        };
        let last = ctx.data_opt::<LastCursor>().cloned().unwrap_or_default();
        // A transport that resumes knows better than the document it sends again.
        let after = last.get().or(after);
        let session = session(ctx)?;
        let execution = session.select_execution_id(selector).await.map_err(in_query)?;
        // Listen first, then read: what happens in between is told twice over the bus, not lost.
        let tail = Tail::open(session.api, StreamId::Execution(execution));
        let seen = match session.api.store.execution_snapshot(execution).await.map_err(stored)? {
            Some((row, seq)) if session.sees_execution(&row) => (row, seq),
            _ => return Err(not_found(format!("{execution} is no longer kept"))),
        };
        let follower = Follower::open(tail, last, execution, seen, after).await?;
        Ok(stream::unfold(Some(follower), async |follower| {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(follower))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

/// A page of what happened to an execution, behind the event that had the cursor; from the first one
/// without. The cursors are those of the subscription, and so are the events.
pub async fn page(
    session: Session<'_>,
    id: ExecutionId,
    first: usize,
    after: Option<String>,
) -> Result<Connection<ExecutionEvent>> {
    let (stream, store) = (StreamId::Execution(id), &session.api.store);
    let tail = Tail::open(session.api, stream);
    let now = store.execution_snapshot(id).await.map_err(stored)?;
    let (row, seq) = now.ok_or_else(|| not_found(format!("{id} is no longer kept")))?;
    let (oldest, newest) = store.event_bounds(stream).await.map_err(stored)?;
    let after = after.map(|text| parse(&text, stream)).transpose()?;
    let from = after.map_or(Some(oldest - 1), |cursor| known(cursor, store.epoch(), (oldest, newest)));
    let mut follower = Follower::new(tail, LastCursor::default(), id, row);
    match from {
        Some(from) => follower.fold_to(from).await?,
        None => follower.begin_behind_gap(seq, oldest),
    }
    follower.tail.batch = u64::try_from(first).map_or(BATCH, |first| first.clamp(1, BATCH));
    let told = std::mem::take(&mut follower.first).into_iter().take(first);
    let mut items: Vec<_> = told.map(|event| (follower.tail.cursor(), event)).collect();
    while items.len() < first
        && let Some(event) = follower.tail.next().await?
    {
        let at = event.at;
        if let Some(told) = follower.tell(event.body, at) {
            items.push((follower.tail.cursor(), told));
        }
    }
    // What began with a snapshot was not folded from events alone.
    if from.is_some() {
        session.api.folds.keep(id, follower.tail.seq, &follower.own, &follower.stages);
    }
    let newest = newest.max(follower.tail.seq);
    let (has_previous, has_next) = (from.unwrap_or(seq) >= oldest, follower.tail.seq < newest);
    Ok(Connection::with_cursors(items, has_previous, has_next, u64::try_from(newest + 1 - oldest).unwrap_or(0)))
}

/// The sequence number behind which a cursor goes on; none where what came after it is no longer
/// known: of a database that was restored since, or of events that are gone.
fn known(cursor: Cursor, epoch: Uuid, (oldest, newest): (i64, i64)) -> Option<i64> {
    let is_known = cursor.epoch == epoch && oldest == 1 && (1..=newest).contains(&cursor.seq);
    is_known.then_some(cursor.seq)
}

/// One subscription to one execution: the execution folded from its events so far.
struct Follower {
    tail: Tail,
    last: LastCursor,
    id: ExecutionId,
    own: Arc<model::Execution>,
    stages: Siblings,
    /// To be told before anything is read.
    first: VecDeque<ExecutionEvent>,
}

impl Follower {
    /// Of the execution as it is now.
    fn new(tail: Tail, last: LastCursor, id: ExecutionId, mut own: model::Execution) -> Self {
        let mut stages: Vec<_> = std::mem::take(&mut own.stages).into_iter().map(Arc::new).collect();
        stages.sort_by_key(|stage| stage.position);
        Self { tail, last, id, own: Arc::new(own), stages: Arc::new(stages), first: VecDeque::new() }
    }

    async fn open(
        tail: Tail,
        last: LastCursor,
        id: ExecutionId,
        (own, seq): (model::Execution, i64),
        after: Option<String>,
    ) -> Result<Self> {
        let mut follower = Self::new(tail, last, id, own);
        let Some(after) = after else {
            follower.begin_at(seq);
            return Ok(follower);
        };
        let cursor = parse(&after, StreamId::Execution(id))?;
        let store = follower.tail.api.store.clone();
        let (oldest, newest) = store.event_bounds(StreamId::Execution(id)).await.map_err(stored)?;
        match known(cursor, store.epoch(), (oldest, newest)) {
            Some(seq) => follower.fold_to(seq).await?,
            None => follower.begin_behind_gap(seq, oldest),
        }
        Ok(follower)
    }

    /// Begins with the word that events are missing, and a snapshot.
    fn begin_behind_gap(&mut self, seq: i64, oldest: i64) {
        let execution = self.execution();
        self.begin_at(seq);
        let (epoch, stream) = (self.tail.api.store.epoch(), StreamId::Execution(self.id).key());
        self.first.push_front(ExecutionEvent::EventsTruncated(EventsTruncated {
            cursor: self.tail.cursor(),
            occurred_at: self.tail.api.clock.now(),
            execution,
            oldest_cursor: Cursor { epoch, stream, seq: oldest.max(1) }.to_string(),
        }));
    }

    /// Begins with a snapshot.
    fn begin_at(&mut self, seq: i64) {
        self.tail.seq = seq;
        self.first.push_back(ExecutionEvent::ExecutionSnapshot(ExecutionSnapshot {
            cursor: self.tail.cursor(),
            occurred_at: self.tail.api.clock.now(),
            execution: self.execution(),
        }));
    }

    /// Brings the execution to what it was at that event, from the log: from where a page has
    /// ended before, or from its beginning. What events leave out (configs) does not change and
    /// stays as it was read.
    async fn fold_to(&mut self, seq: i64) -> Result<()> {
        let known = std::mem::take(&mut self.stages);
        if let Some(folded) = self.tail.api.folds.before(self.id, seq) {
            (self.tail.seq, self.own, self.stages) = (folded.seq, folded.own, folded.stages);
        }
        while self.tail.seq < seq {
            let Some(event) = self.tail.next().await? else { break };
            self.apply(event.body);
        }
        let with_config = |stage: &Arc<model::Stage>| match known.iter().find(|known| known.id == stage.id) {
            Some(known) => Arc::new(model::Stage { config: known.config.clone(), ..model::Stage::clone(stage) }),
            None => Arc::clone(stage),
        };
        self.stages = Arc::new(self.stages.iter().map(with_config).collect());
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<ExecutionEvent>> {
        loop {
            if let Some(event) = self.first.pop_front() {
                self.last.set(&self.tail.cursor());
                return Ok(Some(event));
            }
            if let Some(event) = self.tail.next().await? {
                let at = event.at;
                let Some(told) = self.tell(event.body, at) else { continue };
                self.last.set(&self.tail.cursor());
                return Ok(Some(told));
            }
            if self.own.status.is_complete() && self.is_over().await? {
                return Ok(None);
            }
            self.tail.wait(LOOK_EVERY).await;
        }
    }

    /// Whether nothing more will be told.
    async fn is_over(&self) -> Result<bool> {
        let now = self.tail.api.store.execution_snapshot(self.id).await.map_err(stored)?;
        Ok(now.is_none_or(|(row, seq)| row.status.is_complete() && seq <= self.tail.seq))
    }

    fn tell(&mut self, body: EventBody, occurred_at: DateTime<Utc>) -> Option<ExecutionEvent> {
        let changed = self.apply(body);
        let (cursor, execution) = (self.tail.cursor(), self.execution());
        Some(match changed? {
            Changed::Execution => ExecutionEvent::ExecutionChanged(ExecutionChanged { cursor, occurred_at, execution }),
            Changed::Stage(row) => {
                let stage = Stage::new(row, Arc::clone(&self.stages), Arc::clone(&self.own));
                ExecutionEvent::StageChanged(StageChanged { cursor, occurred_at, execution, stage })
            }
        })
    }

    fn apply(&mut self, body: EventBody) -> Option<Changed> {
        match body {
            EventBody::ExecutionChanged { mut execution } => {
                execution.stages.clear();
                self.own = Arc::from(execution);
                Some(Changed::Execution)
            }
            EventBody::StageChanged { mut stage } => {
                let stages = Arc::make_mut(&mut self.stages);
                let place = stages.iter().position(|known| known.id == stage.id);
                if let Some(known) = place.map(|place| &stages[place]) {
                    if stage.config.is_null() {
                        stage.config = known.config.clone();
                    }
                    // Evaluated once, at the start: a restart evaluates anew.
                    if stage.resolved.is_none() && stage.started_at.is_some() && stage.attempt == known.attempt {
                        stage.resolved = known.resolved.clone();
                    }
                }
                let row: Arc<model::Stage> = Arc::from(stage);
                match place {
                    Some(place) => stages[place] = Arc::clone(&row),
                    None => {
                        let place = stages.partition_point(|known| known.position <= row.position);
                        stages.insert(place, Arc::clone(&row));
                    }
                }
                Some(Changed::Stage(row))
            }
            EventBody::Notified { .. } => None,
        }
    }

    fn execution(&self) -> Execution {
        Execution::of_event(Arc::clone(&self.own), Arc::clone(&self.stages))
    }
}

enum Changed {
    Execution,
    Stage(Arc<model::Stage>),
}
