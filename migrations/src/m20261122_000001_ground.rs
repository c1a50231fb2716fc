//! The nouns: applications, pipelines, executions, stages, events, intents, messages, principals.

pub const UP: &str = r#"
CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL)

CREATE TABLE counter (key text PRIMARY KEY, value bigint NOT NULL)

CREATE TABLE application (
  id {uuid} PRIMARY KEY NOT NULL,
  name {name} NOT NULL,
  description text NOT NULL,
  email text,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  version bigint NOT NULL
)

CREATE UNIQUE INDEX application_name ON application (name)

CREATE TABLE pipeline (
  id {uuid} PRIMARY KEY NOT NULL,
  application_id {uuid} NOT NULL REFERENCES application (id) ON DELETE CASCADE,
  application_name {name} NOT NULL,
  name {name} NOT NULL,
  revision bigint NOT NULL,
  definition text NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL
)

CREATE UNIQUE INDEX pipeline_application_name ON pipeline (application_id, name)

CREATE INDEX pipeline_name ON pipeline (name, id)

CREATE TABLE revision (
  pipeline_id {uuid} NOT NULL REFERENCES pipeline (id) ON DELETE CASCADE,
  number bigint NOT NULL,
  definition text NOT NULL,
  created_at bigint NOT NULL,
  created_by {uuid} NOT NULL,
  created_by_name text NOT NULL,
  PRIMARY KEY (pipeline_id, number)
)

CREATE TABLE execution (
  id {uuid} PRIMARY KEY NOT NULL,
  kind text NOT NULL,
  application_id {uuid} NOT NULL,
  application_name text NOT NULL,
  pipeline_id {uuid},
  name text NOT NULL,
  revision bigint NOT NULL,
  number bigint NOT NULL,
  status text NOT NULL,
  finished bigint NOT NULL,
  version bigint NOT NULL,
  event_seq bigint NOT NULL,
  wake_at bigint,
  lease_owner {uuid},
  lease_number bigint NOT NULL,
  created_at bigint NOT NULL,
  started_at bigint,
  ended_at bigint,
  deadline bigint NOT NULL,
  started_by {uuid} NOT NULL,
  started_by_name text NOT NULL,
  format bigint NOT NULL,
  cancel text,
  failure text,
  notifications text NOT NULL,
  parameters text NOT NULL
)

CREATE UNIQUE INDEX execution_pipeline_number ON execution (pipeline_id, number)

CREATE UNIQUE INDEX execution_operation_number ON execution (application_id, number) WHERE kind = 'OPERATION'

CREATE INDEX execution_application ON execution (application_id, id)

CREATE INDEX execution_application_kind ON execution (application_id, kind, id)

CREATE INDEX execution_application_status ON execution (application_id, status, id)

CREATE INDEX execution_pipeline ON execution (pipeline_id, id)

CREATE INDEX execution_status ON execution (status, id)

CREATE INDEX execution_wake ON execution (wake_at) WHERE wake_at IS NOT NULL

CREATE INDEX execution_open_application ON execution (application_id) WHERE finished = 0

CREATE INDEX execution_open_pipeline ON execution (pipeline_id) WHERE finished = 0

CREATE INDEX execution_ended ON execution (ended_at) WHERE finished = 1

CREATE TABLE stage (
  id {uuid} PRIMARY KEY NOT NULL,
  execution_id {uuid} NOT NULL REFERENCES execution (id) ON DELETE CASCADE,
  key text NOT NULL,
  parent_id {uuid},
  phase text NOT NULL,
  kind text NOT NULL,
  name text NOT NULL,
  on_failure text NOT NULL,
  position bigint NOT NULL,
  attempt bigint NOT NULL,
  status text NOT NULL,
  retries bigint NOT NULL,
  timeout_seconds bigint NOT NULL,
  deadline bigint,
  started_at bigint,
  ended_at bigint,
  format bigint NOT NULL,
  requires text NOT NULL,
  wake text NOT NULL,
  progress text,
  unwinding text,
  failure text,
  tasks text NOT NULL,
  cursor text NOT NULL,
  outputs text NOT NULL,
  resolved text,
  config text NOT NULL
)

CREATE INDEX stage_execution ON stage (execution_id, position)

CREATE TABLE event (
  position {place} PRIMARY KEY NOT NULL,
  stream {uuid} NOT NULL,
  seq bigint NOT NULL,
  at bigint NOT NULL,
  format bigint NOT NULL,
  body text NOT NULL
)

CREATE UNIQUE INDEX event_stream ON event (stream, seq)

CREATE TABLE intent (
  id {uuid} PRIMARY KEY NOT NULL,
  execution_id {uuid} NOT NULL REFERENCES execution (id) ON DELETE CASCADE,
  stage_id {uuid} NOT NULL,
  attempt bigint NOT NULL,
  key text NOT NULL,
  what text NOT NULL,
  lease_number bigint NOT NULL,
  created_at bigint NOT NULL,
  deadline bigint NOT NULL,
  closed_at bigint,
  outcome text
)

CREATE INDEX intent_execution ON intent (execution_id, id)

CREATE TABLE notification (
  id {uuid} PRIMARY KEY NOT NULL,
  occasion text NOT NULL,
  application_name text NOT NULL,
  execution_id {uuid} NOT NULL,
  execution_name text NOT NULL,
  execution_number bigint NOT NULL,
  stage_id {uuid},
  subject text NOT NULL,
  message text NOT NULL,
  created_at bigint NOT NULL
)

CREATE TABLE idempotency (
  principal_id {uuid} NOT NULL,
  key text NOT NULL,
  input_hash {bytes} NOT NULL,
  execution_id {uuid} NOT NULL,
  created_at bigint NOT NULL,
  PRIMARY KEY (principal_id, key)
)

CREATE INDEX idempotency_created ON idempotency (created_at)

CREATE TABLE principal (
  id {uuid} PRIMARY KEY NOT NULL,
  name {name} NOT NULL,
  kind text NOT NULL,
  roles text NOT NULL,
  created_at bigint NOT NULL
)

CREATE UNIQUE INDEX principal_name ON principal (name)

CREATE TABLE token (
  id {uuid} PRIMARY KEY NOT NULL,
  principal_id {uuid} NOT NULL REFERENCES principal (id) ON DELETE CASCADE,
  description text NOT NULL,
  hash {bytes} NOT NULL,
  created_at bigint NOT NULL,
  expires_at bigint,
  revoked_at bigint
)

CREATE INDEX token_principal ON token (principal_id)

CREATE TABLE audit (
  id {uuid} PRIMARY KEY NOT NULL,
  at bigint NOT NULL,
  principal_id {uuid} NOT NULL,
  principal_name text NOT NULL,
  action text NOT NULL,
  resource text NOT NULL,
  detail text NOT NULL
)
"#;
