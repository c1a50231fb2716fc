//! The fixed limits: each row of README's table beside the places where the code says it. A limit
//! that is changed in one of them only, or a row that nobody looks after, is a fault.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use libtest_mimic::Trial;

use crate::harness::{Outcome, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("fixed", "the_fixed_limits_of_the_readme_are_those_of_the_code", rows)]
}

/// A row: what is limited, the values, and in which file which text stands for each of them.
type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const ROWS: &[Row] = &[
    (
        "Longest that an execution may take, whatever its stages' timeouts are",
        "400 days",
        &[("engine/mod.rs", "DEADLINE_MAX: Duration = Duration::from_secs(400 * 86_400)")],
    ),
    (
        "Timeout of a stage, at most; what a stage of each kind has by itself is in `stageKinds`",
        "365 days",
        &[("engine/validate.rs", "TIMEOUT_MAX: u64 = 365 * 86_400")],
    ),
    ("A `wait`", "30 days", &[("stages/wait.rs", r#""maximum": 30 * 24 * 60 * 60"#)]),
    (
        "A call of a webhook; any call that a stage makes",
        "300 s; 600 s",
        &[
            ("stages/webhook.rs", r#""minimum": 1, "maximum": 300, "default": 30"#),
            ("engine/context.rs", "EFFECT_TIMEOUT_MAX: Duration = Duration::from_secs(600)"),
        ],
    ),
    (
        "What a stage whose execution failed or was cancelled may take to bring things back",
        "10 min",
        &[("engine/mod.rs", "unwind_timeout: Duration::from_secs(600)")],
    ),
    ("Further tries of a step that met something passing", "10", &[("engine/apply/step.rs", "RETRIES_MAX: i32 = 10")]),
    (
        "Stages of a pipeline; of an execution with all that they spawn; below each other",
        "100; 2,000; 8",
        &[
            ("engine/validate.rs", "STAGES_MAX: usize = 100"),
            ("engine/apply.rs", "STAGES_MAX: usize = 2_000"),
            ("engine/apply/children.rs", "DEPTH_MAX: usize = 8"),
        ],
    ),
    (
        "Parameters, triggers and notification rules of a pipeline; rules of a stage",
        "100, 20 and 20; 20",
        &[
            ("engine/validate.rs", "PARAMETERS_MAX: usize = 100"),
            ("engine/validate.rs", "TRIGGERS_MAX: usize = 20"),
            ("engine/validate.rs", "RULES_MAX: usize = 20"),
        ],
    ),
    ("Addresses in all rules of a pipeline", "100", &[("engine/validate.rs", "RECIPIENTS_MAX: usize = 100")]),
    (
        "Bytes of all parameters of an execution",
        "64 KiB",
        &[("engine/commands/start.rs", "PARAMETERS_MAX: usize = 64 * 1024")],
    ),
    (
        "Characters of the name of an application, of a pipeline, of a key",
        "64, 100, 64",
        &[
            ("engine/commands/save.rs", "APPLICATION_NAME_MAX: usize = 64"),
            ("engine/commands/save.rs", "PIPELINE_NAME_MAX: usize = 100"),
            ("engine/validate.rs", "KEY_MAX: usize = 64"),
        ],
    ),
    ("Pipelines that start each other in a row", "20", &[("engine/commands/fire.rs", "DEPTH_MAX: u32 = 20")]),
    ("Stages that wait for one cluster", "64", &[("engine/mod.rs", "cluster_queue_max: 64")]),
    (
        "Clusters of a deploy stage; listeners of a load balancer; rules of a security group",
        "20; 20; 200",
        &[
            ("stages/deploy.rs", r#""maxItems": 20"#),
            ("stages/upsert_load_balancer.rs", r#""maxItems": 20"#),
            ("stages/upsert_security_group.rs", r#""maxItems": 200"#),
        ],
    ),
    (
        "Bytes of an artifact packed; unpacked; its entries",
        "1 GiB; 4 GiB; 100,000",
        &[("providers/host/daemon/artifact.rs", "packed: 1 << 30, unpacked: 4 << 30, entries: 100_000")],
    ),
    (
        "Unused artifacts, and slots of triggers that were dealt with, are kept for",
        "10 min, 7 days",
        &[
            ("providers/host/daemon/mod.rs", "ARTIFACT_KEEP_SECONDS: u64 = 10 * 60"),
            ("app/jobs.rs", "SLOTS_KEPT: TimeDelta = TimeDelta::days(7)"),
        ],
    ),
    ("Idempotency keys are kept for", "24 h", &[("store/leases.rs", "KEYS_KEPT: TimeDelta = TimeDelta::hours(24)")]),
    (
        "Traffic of a load balancer, by seconds, is kept for",
        "10 min",
        &[("providers/host/proxy/stats.rs", "KEPT: i64 = 600")],
    ),
    (
        "Bytes of a webhook's answer that become outputs; of the end of a log in a failure",
        "64 KiB; 4 KiB",
        &[
            ("stages/webhook.rs", "BODY_BYTES_MAX: usize = 64 * 1024"),
            ("stages/create_server_group.rs", "LOG_TAIL_BYTES: usize = 4 * 1024"),
        ],
    ),
    (
        "Bytes of a GraphQL document; levels of fields; fields in a full answer",
        "64 KiB; 15; 200,000",
        &[
            ("api/precheck.rs", "document_bytes: 64 * 1024"),
            ("api/precheck.rs", "depth: 15"),
            ("api/precheck.rs", "cost: 200_000"),
        ],
    ),
    (
        "Fields at the top of a document; aliases; directives; selections",
        "20; 100; 50; 5,000",
        &[
            ("api/precheck.rs", "root_fields: 20"),
            ("api/precheck.rs", "aliases: 100"),
            ("api/precheck.rs", "directives: 50"),
            ("api/precheck.rs", "selections: 5_000"),
        ],
    ),
    (
        "From a request to its answer, subscriptions apart",
        "30 s",
        &[("api/mod.rs", "timeout: std::time::Duration::from_secs(30)")],
    ),
    (
        "Connections; of them WebSockets or event streams; subscriptions of one WebSocket",
        "10,000; 1,000; 100",
        &[
            ("listener/mod.rs", "CONNECTIONS_MAX: usize = 10_000"),
            ("api/mod.rs", "connections_max: 1_000"),
            ("api/mod.rs", "operations_max: 100"),
        ],
    ),
    (
        "The longest that a mail waits for those before it; mails sent at a time",
        "1 h; 8",
        &[
            ("store/deliveries.rs", "TURN_MAX: TimeDelta = TimeDelta::hours(1)"),
            ("notifiers/deliver.rs", "concurrency: 8"),
        ],
    ),
    (
        "Bytes of `host.log`, which is then copied to `host.log.1` and emptied; of an instance's `shim.log`, at its \
         next start",
        "10 MiB; 64 KiB",
        &[
            ("providers/host/daemon/own_log.rs", "LOG_BYTES: u64 = 10 * 1024 * 1024"),
            ("providers/host/daemon/own_log.rs", "SHIM_LOG_BYTES: u64 = 64 * 1024"),
        ],
    ),
];

async fn rows() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    let in_readme: BTreeSet<(&str, &str)> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | fixed | "))
        .collect();
    let known: BTreeSet<(&str, &str)> = ROWS.iter().map(|(what, values, _)| (*what, *values)).collect();
    anyhow::ensure!(in_readme == known, "they differ in {:#?}", in_readme.symmetric_difference(&known));
    for (what, _, places) in ROWS {
        for (file, text) in *places {
            let source = std::fs::read_to_string(root.join("src").join(file)).with_context(|| (*file).to_owned())?;
            // A number that goes on would be another one.
            let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_');
            let stands = source.match_indices(text).any(|(at, text)| ends(&source[at + text.len()..]));
            anyhow::ensure!(stands, "{what}: `{text}` does not stand in {file}");
        }
    }
    Ok(())
}
