//! Who may work on what: owners (starts of servers), queues before clusters, reserved names.

pub const UP: &str = r#"
CREATE TABLE owner (id {uuid} PRIMARY KEY NOT NULL, beat bigint NOT NULL)

CREATE TABLE cluster_claim (
  account text NOT NULL,
  location text NOT NULL,
  cluster text NOT NULL,
  stage_id {uuid} NOT NULL,
  execution_id {uuid} NOT NULL,
  arrival bigint NOT NULL,
  PRIMARY KEY (account, location, cluster, stage_id)
)

CREATE INDEX cluster_claim_arrival ON cluster_claim (account, location, cluster, arrival)

CREATE INDEX cluster_claim_stage ON cluster_claim (stage_id)

CREATE INDEX cluster_claim_execution ON cluster_claim (execution_id)

CREATE TABLE name_reservation (
  account text NOT NULL,
  location text NOT NULL,
  name text NOT NULL,
  stage_id {uuid} NOT NULL,
  attempt bigint NOT NULL,
  PRIMARY KEY (account, location, name)
)

CREATE INDEX name_reservation_stage ON name_reservation (stage_id, attempt)
"#;
