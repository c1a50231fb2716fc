//! Pieces of the stages' JSON Schemas that several of them use.

use serde_json::{Map, Value, json};

use crate::strategies;

/// An object with these properties and no others.
pub(super) fn object(properties: Value, required: &[&str]) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

/// The properties of several objects in one.
pub(super) fn merged(parts: impl IntoIterator<Item = Value>) -> Value {
    let mut all = Map::new();
    for part in parts {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    Value::Object(all)
}

pub(super) fn place() -> Value {
    json!({
        "account": {
            "type": "string", "minLength": 1, "maxLength": 100, "default": "local",
            "description": "The cloud account."
        },
        "location": {
            "type": "string", "minLength": 1, "maxLength": 100, "default": "local",
            "description": "The account's location: a region, a namespace, or for the host provider a host."
        }
    })
}

/// Account, location, and which server group.
pub(super) fn target() -> Value {
    merged([
        place(),
        json!({
            "serverGroup": {
                "type": "string", "minLength": 1, "maxLength": 260,
                "description": "The server group's name, as in `hello-prod-v003`."
            },
            "cluster": {
                "type": "string", "minLength": 1, "maxLength": 250,
                "description": "Instead of a name: the cluster, as in `hello-prod`, …"
            },
            "target": {
                "enum": ["newest", "ancestor", "oldest"],
                "description": "… and which of its server groups by creation time; the ancestor is the one before the newest."
            }
        }),
    ])
}

/// Either a name, or cluster and target.
pub(super) fn one_target(mut schema: Value) -> Value {
    schema["if"] = json!({"required": ["cluster"]});
    schema["then"] = json!({
        "required": ["target"],
        "properties": {"serverGroup": false}
    });
    schema["else"] = json!({
        "required": ["serverGroup"],
        "properties": {"target": false}
    });
    schema
}

pub(super) fn name(of: &str) -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": 200,
        "description": format!("The name of the {of}: `application`, `application-stack` or `application-stack-detail`.")
    })
}

pub(super) fn capacity() -> Value {
    let count = |what: &str| json!({"type": "integer", "minimum": 0, "maximum": 10_000, "description": what});
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "How many instances: min ≤ desired ≤ max.",
        "properties": {
            "min": count("The least."),
            "desired": count("The wanted number."),
            "max": count("The most.")
        },
        "required": ["min", "desired", "max"]
    })
}

pub(super) fn names(what: &str) -> Value {
    json!({
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": 250},
        "maxItems": 20,
        "uniqueItems": true,
        "default": [],
        "description": what
    })
}

pub(super) fn health_check(what: &str) -> Value {
    let milliseconds = |default: u64, what: &str| json!({"type": "integer", "minimum": 10, "maximum": 600_000, "default": default, "description": what});
    let span = |default: &str, what: &str| json!({"type": "string", "pattern": "^P", "maxLength": 40, "default": default, "description": what});
    let threshold = |default: u64, what: &str| json!({"type": "integer", "minimum": 1, "maximum": 100, "default": default, "description": what});
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": what,
        "properties": {
            "protocol": {
                "enum": ["HTTP", "TCP", "COMMAND", "http", "tcp", "command"],
                "description": "How to ask; either case."
            },
            "path": {"type": "string", "pattern": "^/", "maxLength": 2000, "description": "For HTTP: what to GET."},
            "statuses": {
                "type": "array",
                "items": {"type": "integer", "minimum": 100, "maximum": 599},
                "minItems": 1, "maxItems": 100, "default": [200],
                "description": "For HTTP: the statuses that are healthy."
            },
            "port": {"type": "integer", "minimum": 1, "maximum": 65_535, "description": "For HTTP: another port than the instance's."},
            "bodyContains": {"type": "string", "minLength": 1, "maxLength": 1000, "description": "For HTTP: text that the body must contain."},
            "command": {
                "type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 100,
                "description": "For COMMAND: what to run; healthy on exit status 0."
            },
            "interval": span("PT1S", "From one probe to the next, as `PT1S` or `PT0.5S`."),
            "timeout": span("PT1S", "How long a probe may take."),
            "startGrace": span("PT10S", "Failures this long after the start do not count."),
            "intervalMs": milliseconds(1_000, "The same as interval, in milliseconds."),
            "timeoutMs": milliseconds(1_000, "The same as timeout, in milliseconds."),
            "healthyThreshold": threshold(1, "Passes in a row that make an instance healthy."),
            "unhealthyThreshold": threshold(3, "Failures in a row that make it unhealthy."),
            "startGraceMs": {
                "type": "integer", "minimum": 0, "maximum": 3_600_000, "default": 10_000,
                "description": "The same as startGrace, in milliseconds."
            }
        },
        "required": ["protocol"],
        "allOf": [
            {
                "if": {"properties": {"protocol": {"enum": ["HTTP", "http"]}}},
                "then": {"required": ["path"], "properties": {"command": false}}
            },
            {
                "if": {"properties": {"protocol": {"enum": ["TCP", "tcp"]}}},
                "then": {"properties": {"command": false, "path": false, "statuses": false, "bodyContains": false, "port": false}}
            },
            {
                "if": {"properties": {"protocol": {"enum": ["COMMAND", "command"]}}},
                "then": {
                    "required": ["command"],
                    "properties": {"path": false, "statuses": false, "bodyContains": false, "port": false}
                }
            }
        ]
    })
}

/// `{"kind": …}` with that kind's options beside it.
pub(super) fn strategy() -> Value {
    let kinds: Vec<_> = strategies::all().iter().map(|strategy| strategy.kind()).collect();
    let by_kind: Vec<_> = strategies::all()
        .iter()
        .map(|strategy| {
            let mut options = strategy.schema();
            options["properties"]["kind"] = json!(true);
            json!({"if": {"properties": {"kind": {"const": strategy.kind()}}, "required": ["kind"]}, "then": options})
        })
        .collect();
    json!({
        "type": "object",
        "description": "What happens to the server groups that are there, and the strategy's own options.",
        "default": {"kind": "none"},
        "properties": {"kind": {"enum": kinds, "description": "The strategy."}},
        "required": ["kind"],
        "allOf": by_kind
    })
}

/// One entry of `deploy`'s clusters, and the whole config of `createServerGroup`.
pub(super) fn cluster_properties() -> Value {
    merged([
        place(),
        json!({
            "stack": {"type": "string", "maxLength": 60, "description": "The stack in the cluster's name, as `prod`."},
            "detail": {"type": "string", "maxLength": 120, "description": "The detail in the cluster's name."},
            "strategy": strategy(),
            "capacity": capacity(),
            "loadBalancers": names("The load balancers whose traffic it takes."),
            "securityGroups": names(
                "The security groups it belongs to: recorded, and they must exist. Rules are enforced at the listeners \
                 of load balancers, by the security groups that a load balancer itself has; instances listen on \
                 loopback."
            ),
            "healthCheck": health_check("The instances' own check; without one a running instance counts as healthy."),
            "labels": {
                "type": "object",
                "additionalProperties": {"type": "string", "maxLength": 1000},
                "maxProperties": 50,
                "default": {},
                "description": "Free labels on the server group."
            },
            "launch": {
                "type": "object",
                "properties": {"environment": {"secret": "byName"}},
                "description": "What to run, in the words of the account's provider. In `environment` values whose \
                                names say that they are secret must be secret references."
            },
            "healthTimeoutSeconds": {
                "type": "integer", "minimum": 1, "maximum": 86_400, "default": 300,
                "description": "From creation to failure where the instances do not become healthy."
            },
            "targetHealthyPercent": {
                "type": "integer", "minimum": 0, "maximum": 100, "default": 100,
                "description": "How many of the desired instances must be healthy, rounded up."
            },
            "keepFailed": {
                "type": "boolean", "default": false,
                "description": "Keep a server group that never became healthy, disabled, for a look at it."
            }
        }),
    ])
}
