//! Messages on their way: one row for each message and target of a channel.

pub const UP: &str = r#"
CREATE TABLE delivery (
  id {uuid} PRIMARY KEY NOT NULL,
  notification_id {uuid} NOT NULL REFERENCES notification (id) ON DELETE CASCADE,
  execution_id {uuid} NOT NULL,
  channel text NOT NULL,
  target text NOT NULL,
  state text NOT NULL,
  attempts bigint NOT NULL,
  next_at bigint,
  lease_owner {uuid},
  last_error text,
  created_at bigint NOT NULL,
  sent_at bigint
)

CREATE INDEX delivery_notification ON delivery (notification_id, id)

CREATE INDEX delivery_execution ON delivery (execution_id, id)

CREATE INDEX delivery_state ON delivery (state, id)

CREATE INDEX delivery_next ON delivery (next_at) WHERE next_at IS NOT NULL
"#;
