//! Reading: by id, by human key, by page. Each fails only where the database cannot be read, or holds
//! what this binary does not understand ([`Error::Corrupt`]).

use sea_orm::{AccessMode, DatabaseTransaction, IsolationLevel, QueryResult, TransactionTrait, Value};
use uuid::Uuid;

use super::page::{Key, List};
use super::sql::{all, marks, one, padded};
use super::{Error, ExecutionFilter, IdempotencyRecord, Intent, Page, PageRequest, Store, rows};
use crate::model::{
    Application, ApplicationId, AuditId, AuditRow, Event, Execution, ExecutionId, IntentId, Notification,
    NotificationId, Pipeline, PipelineId, Principal, PrincipalId, Revision, Stage, StageId, StreamId, Token, TokenId,
};

/// The most names that are listed for "did you mean".
const NAMES_MAX: i64 = 1000;
/// The most events read at once.
const EVENTS_MAX: u64 = 1000;

impl Store {
    async fn one<T>(
        &self,
        (columns, table): (&str, &str),
        condition: &str,
        values: Vec<Value>,
        read: impl Fn(&QueryResult) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let sql = format!("SELECT {columns} FROM {table} WHERE {condition}");
        one(&self.inner.read, &sql, values).await?.as_ref().map(read).transpose()
    }

    async fn names(&self, table: &str, condition: &str, mut values: Vec<Value>) -> Result<Vec<String>, Error> {
        values.push(rows::int(NAMES_MAX));
        let sql = format!("SELECT name FROM {table} WHERE {condition} ORDER BY name LIMIT ?");
        all(&self.inner.read, &sql, values).await?.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
    }

    // --- applications and pipelines -------------------------------------------------------------

    /// The application of that id.
    pub async fn application(&self, id: ApplicationId) -> Result<Option<Application>, Error> {
        let values = vec![rows::id(id.uuid())];
        self.one((rows::APPLICATION, "application"), "id = ?", values, rows::read_application).await
    }

    /// The application of that name, as it is spelled.
    pub async fn application_by_name(&self, name: &str) -> Result<Option<Application>, Error> {
        let values = vec![rows::text(name)];
        self.one((rows::APPLICATION, "application"), "name = ?", values, rows::read_application).await
    }

    /// All names, at most 1,000, for "did you mean".
    pub async fn application_names(&self) -> Result<Vec<String>, Error> {
        self.names("application", "1 = 1", Vec::new()).await
    }

    /// By name.
    pub async fn applications(&self, page: &PageRequest) -> Result<Page<Application>, Error> {
        list("application", rows::APPLICATION, Key::Name, false)
            .page(&self.inner.read, page, |row| {
                let application = rows::read_application(row)?;
                Ok((application.name.clone(), application))
            })
            .await
    }

    /// The pipeline of that id, with its newest definition.
    pub async fn pipeline(&self, id: PipelineId) -> Result<Option<Pipeline>, Error> {
        self.one((rows::PIPELINE, "pipeline"), "id = ?", vec![rows::id(id.uuid())], rows::read_pipeline).await
    }

    /// The application's pipeline of that name, as it is spelled.
    pub async fn pipeline_by_name(&self, application: ApplicationId, name: &str) -> Result<Option<Pipeline>, Error> {
        let values = vec![rows::id(application.uuid()), rows::text(name)];
        self.one((rows::PIPELINE, "pipeline"), "application_id = ? AND name = ?", values, rows::read_pipeline).await
    }

    /// All names, at most 1,000, for "did you mean".
    pub async fn pipeline_names(&self, application: ApplicationId) -> Result<Vec<String>, Error> {
        self.names("pipeline", "application_id = ?", vec![rows::id(application.uuid())]).await
    }

    /// By name; of all applications when none is given.
    pub async fn pipelines(
        &self,
        application: Option<ApplicationId>,
        page: &PageRequest,
    ) -> Result<Page<Pipeline>, Error> {
        let mut list = list("pipeline", rows::PIPELINE, Key::NameAndId, false);
        if let Some(application) = application {
            list.filter = "application_id = ?".to_owned();
            list.values = vec![rows::id(application.uuid())];
        }
        list.page(&self.inner.read, page, |row| {
            let pipeline = rows::read_pipeline(row)?;
            Ok((format!("{}/{}", pipeline.name, pipeline.id.uuid().simple()), pipeline))
        })
        .await
    }

    /// What the pipeline said as of that revision.
    pub async fn revision(&self, pipeline: PipelineId, number: i64) -> Result<Option<Revision>, Error> {
        let values = vec![rows::id(pipeline.uuid()), rows::int(number)];
        self.one((rows::REVISION, "revision"), "pipeline_id = ? AND number = ?", values, rows::read_revision).await
    }

    /// Newest first.
    pub async fn revisions(&self, pipeline: PipelineId, page: &PageRequest) -> Result<Page<Revision>, Error> {
        let mut list = list("revision", rows::REVISION, Key::Number, true);
        list.filter = "pipeline_id = ?".to_owned();
        list.values = vec![rows::id(pipeline.uuid())];
        list.page(&self.inner.read, page, |row| {
            let revision = rows::read_revision(row)?;
            Ok((revision.number.to_string(), revision))
        })
        .await
    }

    // --- executions -------------------------------------------------------------------------------

    /// With its stages.
    pub async fn execution(&self, id: ExecutionId) -> Result<Option<Execution>, Error> {
        self.whole("id = ?", vec![rows::id(id.uuid())]).await
    }

    /// With its stages. Operations: pipeline none, number within the application.
    pub async fn execution_by_number(
        &self,
        application: ApplicationId,
        pipeline: Option<PipelineId>,
        number: i64,
    ) -> Result<Option<Execution>, Error> {
        let (condition, values) = match pipeline {
            Some(pipeline) => (
                "pipeline_id = ? AND number = ? AND application_id = ?",
                vec![rows::id(pipeline.uuid()), rows::int(number), rows::id(application.uuid())],
            ),
            None => (
                "application_id = ? AND number = ? AND kind = 'OPERATION'",
                vec![rows::id(application.uuid()), rows::int(number)],
            ),
        };
        self.whole(condition, values).await
    }

    /// An execution with its stages and the newest sequence number of its stream, read at one instant.
    pub async fn execution_snapshot(&self, id: ExecutionId) -> Result<Option<(Execution, i64)>, Error> {
        Ok(self.execution(id).await?.map(|execution| {
            let seq = execution.event_seq;
            (execution, seq)
        }))
    }

    /// Execution and stages as of one instant.
    async fn whole(&self, condition: &str, values: Vec<Value>) -> Result<Option<Execution>, Error> {
        let tx = self.begin_read().await?;
        let sql = format!("SELECT {} FROM execution WHERE {condition}", rows::EXECUTION);
        let mut execution = None;
        if let Some(row) = one(&tx, &sql, values).await? {
            let mut found = rows::read_execution(&mut rows::Reader::new(&row, "execution"))?;
            let sql = format!("SELECT {} FROM stage WHERE execution_id = ? ORDER BY position, id", rows::STAGE);
            let stages = all(&tx, &sql, vec![rows::id(found.id.uuid())]).await?;
            found.stages = stages.iter().map(rows::read_stage).collect::<Result<_, _>>()?;
            execution = Some(found);
        }
        tx.commit().await?;
        Ok(execution)
    }

    /// A transaction in which every look sees the same.
    async fn begin_read(&self) -> Result<DatabaseTransaction, Error> {
        let db = &self.inner.read;
        Ok(match db.get_database_backend() {
            sea_orm::DbBackend::Postgres => {
                db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await?
            }
            _ => db.begin().await?,
        })
    }

    /// Newest first, without stages (see [`Store::stages`]).
    pub async fn executions(&self, filter: &ExecutionFilter, page: &PageRequest) -> Result<Page<Execution>, Error> {
        let mut list = list("execution", rows::EXECUTION, Key::Id, true);
        let mut add = |condition: &str, value: Value| {
            list.filter.push_str(" AND ");
            list.filter.push_str(condition);
            list.values.push(value);
        };
        if let Some(application) = filter.application {
            add("application_id = ?", rows::id(application.uuid()));
        }
        if let Some(pipeline) = filter.pipeline {
            add("pipeline_id = ?", rows::id(pipeline.uuid()));
        }
        if let Some(kind) = filter.kind {
            add("kind = ?", rows::named(&kind));
        }
        if !filter.statuses.is_empty() {
            list.filter.push_str(&format!(" AND status IN ({})", marks(filter.statuses.len())));
            list.values.extend(filter.statuses.iter().map(|status| rows::text(status.as_str())));
        }
        list.page(&self.inner.read, page, |row| {
            let execution = rows::read_execution(&mut rows::Reader::new(row, "execution"))?;
            Ok((execution.id.uuid().simple().to_string(), execution))
        })
        .await
    }

    /// The stages of several executions at once, for loaders; by execution, then by position.
    pub async fn stages(&self, executions: &[ExecutionId]) -> Result<Vec<Stage>, Error> {
        let mut stages = Vec::new();
        for some in executions.chunks(256) {
            let values = padded(some.iter().map(|execution| rows::id(execution.uuid())).collect());
            let sql = format!(
                "SELECT {} FROM stage WHERE execution_id IN ({}) ORDER BY execution_id, position, id",
                rows::STAGE,
                marks(values.len())
            );
            for row in all(&self.inner.read, &sql, values).await? {
                stages.push(rows::read_stage(&row)?);
            }
        }
        Ok(stages)
    }

    /// The stage of that id, whole.
    pub async fn stage(&self, id: StageId) -> Result<Option<Stage>, Error> {
        self.one((rows::STAGE, "stage"), "id = ?", vec![rows::id(id.uuid())], rows::read_stage).await
    }

    /// Intents of an execution, oldest first.
    pub async fn intents(&self, execution: ExecutionId) -> Result<Vec<Intent>, Error> {
        let sql = format!("SELECT {} FROM intent WHERE execution_id = ? ORDER BY id", rows::INTENT);
        let values = vec![rows::id(execution.uuid())];
        all(&self.inner.read, &sql, values).await?.iter().map(rows::read_intent).collect()
    }

    /// The intent of that id.
    pub async fn intent(&self, id: IntentId) -> Result<Option<Intent>, Error> {
        self.one((rows::INTENT, "intent"), "id = ?", vec![rows::id(id.uuid())], rows::read_intent).await
    }

    /// The record of a start under (principal, key), if one was kept.
    pub async fn idempotency(&self, principal: PrincipalId, key: &str) -> Result<Option<IdempotencyRecord>, Error> {
        let values = vec![rows::id(principal.uuid()), rows::text(key)];
        let condition = "principal_id = ? AND key = ?";
        self.one((rows::IDEMPOTENCY, "idempotency"), condition, values, rows::read_idempotency).await
    }

    // --- events and messages ------------------------------------------------------------------------

    /// Events of a stream after `seq`, in order, at most `limit` (≤ 1,000).
    pub async fn events(&self, stream: StreamId, after_seq: i64, limit: u64) -> Result<Vec<Event>, Error> {
        let sql = format!("SELECT {} FROM event WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?", rows::EVENT);
        let limit = i64::try_from(limit.min(EVENTS_MAX)).unwrap_or(i64::MAX);
        let values = vec![rows::id(stream.key()), rows::int(after_seq), rows::int(limit)];
        all(&self.inner.read, &sql, values).await?.iter().map(|row| rows::read_event(row, stream)).collect()
    }

    /// (oldest, newest) sequence number held of a stream; (1, 0) when it is empty.
    pub async fn event_bounds(&self, stream: StreamId) -> Result<(i64, i64), Error> {
        let sql = "SELECT (SELECT MIN(seq) FROM event WHERE stream = ?), (SELECT MAX(seq) FROM event WHERE stream = ?)";
        let key: Uuid = stream.key();
        let Some(row) = one(&self.inner.read, sql, vec![rows::id(key), rows::id(key)]).await? else {
            return Ok((1, 0));
        };
        let bounds: (Option<i64>, Option<i64>) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        Ok(match bounds {
            (Some(oldest), Some(newest)) => (oldest, newest),
            _ => (1, 0),
        })
    }

    /// The message of that id.
    pub async fn notification(&self, id: NotificationId) -> Result<Option<Notification>, Error> {
        let values = vec![rows::id(id.uuid())];
        self.one((rows::NOTIFICATION, "notification"), "id = ?", values, rows::read_notification).await
    }

    /// Newest first.
    pub async fn notifications(&self, page: &PageRequest) -> Result<Page<Notification>, Error> {
        list("notification", rows::NOTIFICATION, Key::Id, true)
            .page(&self.inner.read, page, |row| {
                let notification = rows::read_notification(row)?;
                Ok((notification.id.uuid().simple().to_string(), notification))
            })
            .await
    }

    // --- principals, tokens, audit --------------------------------------------------------------------

    /// The principal of that id.
    pub async fn principal(&self, id: PrincipalId) -> Result<Option<Principal>, Error> {
        self.one((rows::PRINCIPAL, "principal"), "id = ?", vec![rows::id(id.uuid())], rows::read_principal).await
    }

    /// The principal of that name, as it is spelled.
    pub async fn principal_by_name(&self, name: &str) -> Result<Option<Principal>, Error> {
        self.one((rows::PRINCIPAL, "principal"), "name = ?", vec![rows::text(name)], rows::read_principal).await
    }

    /// All names, at most 1,000, for "did you mean".
    pub async fn principal_names(&self) -> Result<Vec<String>, Error> {
        self.names("principal", "1 = 1", Vec::new()).await
    }

    /// By name.
    pub async fn principals(&self, page: &PageRequest) -> Result<Page<Principal>, Error> {
        list("principal", rows::PRINCIPAL, Key::Name, false)
            .page(&self.inner.read, page, |row| {
                let principal = rows::read_principal(row)?;
                Ok((principal.name.clone(), principal))
            })
            .await
    }

    /// The token of that id, also where it was revoked or has expired.
    pub async fn token(&self, id: TokenId) -> Result<Option<Token>, Error> {
        self.one((rows::TOKEN, "token"), "id = ?", vec![rows::id(id.uuid())], rows::read_token).await
    }

    /// Whether the principal has, or had, a token.
    pub async fn has_token(&self, principal: PrincipalId) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM token WHERE principal_id = ? LIMIT 1";
        Ok(one(&self.inner.read, sql, vec![rows::id(principal.uuid())]).await?.is_some())
    }

    /// Oldest first.
    pub async fn tokens(&self, page: &PageRequest) -> Result<Page<Token>, Error> {
        list("token", rows::TOKEN, Key::Id, false)
            .page(&self.inner.read, page, |row| {
                let token = rows::read_token(row)?;
                Ok((token.id.uuid().simple().to_string(), token))
            })
            .await
    }

    /// The audit log's row of that id.
    pub async fn audit_row(&self, id: AuditId) -> Result<Option<AuditRow>, Error> {
        self.one((rows::AUDIT, "audit"), "id = ?", vec![rows::id(id.uuid())], rows::read_audit).await
    }

    /// Newest first.
    pub async fn audit(&self, page: &PageRequest) -> Result<Page<AuditRow>, Error> {
        list("audit", rows::AUDIT, Key::Id, true)
            .page(&self.inner.read, page, |row| {
                let row = rows::read_audit(row)?;
                Ok((row.id.uuid().simple().to_string(), row))
            })
            .await
    }
}

pub(super) fn list<'a>(table: &'a str, columns: &'a str, key: Key, descending: bool) -> List<'a> {
    List { table, columns, filter: "1 = 1".to_owned(), values: Vec::new(), key, descending }
}
