//! What starts pipelines: a row per trigger with its next instant, and a row per slot, which is
//! the claim of it.

pub const UP: &str = r#"
CREATE TABLE pipeline_trigger (
  id {uuid} PRIMARY KEY NOT NULL,
  pipeline_id {uuid} NOT NULL REFERENCES pipeline (id) ON DELETE CASCADE,
  key text NOT NULL,
  kind text NOT NULL,
  enabled bigint NOT NULL,
  position bigint NOT NULL,
  source_id {uuid},
  statuses text NOT NULL,
  next_at bigint,
  last_at bigint,
  last_execution_id {uuid},
  last_error text,
  last_error_at bigint,
  last_missed_at bigint
)

CREATE UNIQUE INDEX pipeline_trigger_key ON pipeline_trigger (pipeline_id, key)

CREATE INDEX pipeline_trigger_next ON pipeline_trigger (next_at) WHERE next_at IS NOT NULL

CREATE INDEX pipeline_trigger_source ON pipeline_trigger (source_id) WHERE source_id IS NOT NULL

CREATE TABLE trigger_slot (
  trigger_id {uuid} NOT NULL REFERENCES pipeline_trigger (id) ON DELETE CASCADE,
  slot text NOT NULL,
  source_id {uuid},
  created_at bigint NOT NULL,
  done_at bigint,
  execution_id {uuid},
  error text,
  PRIMARY KEY (trigger_id, slot)
)

CREATE INDEX trigger_slot_pending ON trigger_slot (created_at) WHERE done_at IS NULL

CREATE INDEX trigger_slot_done ON trigger_slot (done_at) WHERE done_at IS NOT NULL

ALTER TABLE execution ADD COLUMN triggered text
"#;
