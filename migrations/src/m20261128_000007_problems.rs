//! Messages may be about a load balancer instead of an execution; and what people were told last of
//! each problem of a load balancer.

pub const UP: &str = r#"
ALTER TABLE notification ADD COLUMN about_id {uuid}

ALTER TABLE notification ADD COLUMN about_name text

ALTER TABLE notification ADD COLUMN about_number bigint

UPDATE notification SET about_id = execution_id, about_name = execution_name, about_number = execution_number

ALTER TABLE notification DROP COLUMN execution_id

ALTER TABLE notification DROP COLUMN execution_name

ALTER TABLE notification DROP COLUMN execution_number

ALTER TABLE notification RENAME COLUMN about_id TO execution_id

ALTER TABLE notification RENAME COLUMN about_name TO execution_name

ALTER TABLE notification RENAME COLUMN about_number TO execution_number

ALTER TABLE notification ADD COLUMN account text

ALTER TABLE notification ADD COLUMN location text

ALTER TABLE notification ADD COLUMN load_balancer text

CREATE TABLE told_problem (
  account text NOT NULL,
  location text NOT NULL,
  load_balancer text NOT NULL,
  kind text NOT NULL,
  about text NOT NULL,
  message text NOT NULL,
  is_over bigint NOT NULL,
  begun_at bigint NOT NULL,
  told_at bigint NOT NULL,
  revision bigint NOT NULL,
  PRIMARY KEY (account, location, load_balancer, kind, about)
)
"#;
