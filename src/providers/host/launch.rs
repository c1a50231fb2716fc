//! What a server group of the `host` provider launches: artifact, command, environment, stop
//! policy, user and limits. The JSON that people write, its schema, and its checks.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How to run one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Launch {
    /// What is run; its directory is where the command starts.
    pub artifact: Artifact,
    /// Program and arguments, never a shell line. A program that begins with `./` stands in the artifact.
    pub command: Vec<String>,
    /// On top of PATH, HOME and PORT. Values may be `secret://…` references.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// How it is asked to end, and how long that may take.
    #[serde(default)]
    pub stop: Stop,
    /// The user to run as; the host's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// What it may take at the most.
    #[serde(default)]
    pub limits: Limits,
}

/// What is run: exactly one of a path on the host and a URL of a `.tar.gz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Artifact {
    /// A file or directory below one of the host's artifact roots.
    Path(PathArtifact),
    /// A `.tar.gz` by `file://` (below the roots) or `https://` (with its digest).
    Url(UrlArtifact),
}

/// A file or directory on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathArtifact {
    /// Absolute; below one of the host's artifact roots once links are resolved.
    pub path: PathBuf,
    /// Hex; of the file. Checked when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A tarball by URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlArtifact {
    /// `https://…`, or `file://…` below the host's artifact roots.
    pub url: String,
    /// Hex; of the tarball.
    pub sha256: String,
}

/// How an instance is asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Stop {
    /// By name: `SIGTERM`.
    pub signal: String,
    /// After this time the whole process group is killed.
    pub grace_seconds: u64,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: "SIGTERM".to_owned(), grace_seconds: 10 }
    }
}

impl Stop {
    /// The signal; SIGTERM where the name is unknown.
    #[must_use]
    pub fn signal(&self) -> Signal {
        Signal::from_str(&self.signal).unwrap_or(Signal::SIGTERM)
    }

    /// The grace time.
    #[must_use]
    pub const fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

/// Limits of one instance; none where absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Of all its processes together; without a control group, of the address space of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Processes and threads; without a control group, all of the user's count, and root is exempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Of each process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
}

impl Limits {
    /// Whether anything is limited.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// In less, no program runs: its own pages, a stack and the loader take more. Who writes less means
/// another unit.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
const MAX_ARGUMENTS: usize = 1_000;
const MAX_VARIABLES: usize = 1_000;

impl Launch {
    /// Reads a launch and checks it.
    ///
    /// # Errors
    /// (JSON pointer, what is wrong) of the first fault.
    pub fn read(launch: &Value) -> Result<Self, (String, String)> {
        match Self::read_known(launch, &[])? {
            Some(launch) => Ok(launch),
            None => Err((String::new(), "it is not known".to_owned())),
        }
    }

    /// The same of a launch in which the texts at some JSON pointers are not known yet: what can be
    /// said of the others. None where nothing is known.
    ///
    /// # Errors
    /// (JSON pointer, what is wrong) of the first fault that stands whatever the open texts come to.
    pub fn read_known(launch: &Value, open: &[String]) -> Result<Option<Self>, (String, String)> {
        if open.iter().any(String::is_empty) {
            return Ok(None);
        }
        let mut known = launch.clone();
        for pointer in open {
            stand_in(&mut known, pointer);
        }
        let launch = Self::read_form(&known)?;
        launch.check_names()?;
        match launch.faults().into_iter().find(|(pointer, _)| !open.contains(pointer)) {
            Some(fault) => Err(fault),
            None => Ok(Some(launch)),
        }
    }

    fn read_form(launch: &Value) -> Result<Self, (String, String)> {
        if let Some(artifact) = launch.get("artifact") {
            artifact_form(artifact)?;
        }
        serde_path_to_error::deserialize(launch).map_err(|error| {
            let pointer: String = error
                .path()
                .iter()
                .map(|segment| format!("/{}", segment.to_string().trim_matches(['[', ']'])))
                .collect();
            (pointer, error.into_inner().to_string())
        })
    }

    /// [`Launch::read`] of one that is wanted anew. A record from before a bound was set is still read.
    ///
    /// # Errors
    /// (JSON pointer, what is wrong) of the first fault.
    pub fn read_new(launch: &Value) -> Result<Self, (String, String)> {
        let launch = Self::read(launch)?;
        launch.check_new(&[])?;
        Ok(launch)
    }

    /// [`Launch::read_known`] of one that is wanted anew.
    ///
    /// # Errors
    /// (JSON pointer, what is wrong) of the first fault that stands whatever the open texts come to.
    pub fn read_new_known(launch: &Value, open: &[String]) -> Result<Option<Self>, (String, String)> {
        let launch = Self::read_known(launch, open)?;
        if let Some(launch) = &launch {
            launch.check_new(open)?;
        }
        Ok(launch)
    }

    fn check_new(&self, open: &[String]) -> Result<(), (String, String)> {
        const MEMORY: &str = "/limits/memoryBytes";
        let is_open = open.iter().any(|pointer| MEMORY.starts_with(pointer.as_str()));
        match self.limits.memory_bytes {
            Some(bytes) if bytes < MEMORY_BYTES_MIN && !is_open => Err((
                MEMORY.to_owned(),
                format!(
                    "{bytes} bytes are too few for any program; give at least {MEMORY_BYTES_MIN} (1 MiB), and mind that \
                     the unit is bytes: 256 MiB are 268435456"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The names of variables, which are known in any case.
    fn check_names(&self) -> Result<(), (String, String)> {
        for name in self.environment.keys() {
            let fault = |message: &str| Err((variable(name), message.to_owned()));
            if name.is_empty() || name.contains(['=', '\0']) {
                return fault("a variable's name must not be empty or contain `=`");
            }
            if name == "PORT" {
                return fault("PORT is given by the host; read it instead of setting it");
            }
        }
        Ok(())
    }

    /// What is wrong with its values.
    fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |pointer: &str, message: String| faults.push((pointer.to_owned(), message));
        match &self.artifact {
            Artifact::Path(artifact) => {
                if !artifact.path.is_absolute() || artifact.path.components().any(|part| part == Component::ParentDir) {
                    fault("/artifact/path", "the path must be absolute and without `..`".to_owned());
                }
                if artifact.sha256.as_deref().is_some_and(|digest| !is_digest(digest)) {
                    fault("/artifact/sha256", "a sha256 has 64 hex digits".to_owned());
                }
            }
            Artifact::Url(artifact) => {
                if !artifact.url.starts_with("https://") && !artifact.url.starts_with("file:///") {
                    fault("/artifact/url", "only https:// and file:/// urls are fetched".to_owned());
                }
                if !is_digest(&artifact.sha256) {
                    fault("/artifact/sha256", "a sha256 has 64 hex digits".to_owned());
                }
            }
        }
        match self.command.first() {
            None => fault("/command", "the command needs at least a program".to_owned()),
            Some(program) if program.is_empty() => fault("/command/0", "the program must not be empty".to_owned()),
            Some(program) if Path::new(program).components().any(|part| part == Component::ParentDir) => {
                fault("/command/0", "the program must not contain `..`".to_owned());
            }
            Some(_) => {}
        }
        if self.command.len() > MAX_ARGUMENTS {
            fault("/command", format!("more than {MAX_ARGUMENTS} arguments"));
        }
        if let Some(index) = self.command.iter().position(|argument| argument.contains('\0')) {
            fault(&format!("/command/{index}"), "an argument must not contain a NUL character".to_owned());
        }
        if self.environment.len() > MAX_VARIABLES {
            fault("/environment", format!("more than {MAX_VARIABLES} variables"));
        }
        for (name, value) in &self.environment {
            if value.contains('\0') {
                fault(&variable(name), "a variable must not contain a NUL character".to_owned());
            }
        }
        if Signal::from_str(&self.stop.signal).is_err() {
            fault("/stop/signal", format!("`{}` is not a signal; SIGTERM is one", self.stop.signal));
        }
        if self.stop.grace_seconds > 3_600 {
            fault("/stop/graceSeconds", "at most 3600 seconds".to_owned());
        }
        if self.run_as.as_deref().is_some_and(str::is_empty) {
            fault("/runAs", "the user's name must not be empty".to_owned());
        }
        faults
    }

    /// JSON Schema of a launch.
    #[must_use]
    pub fn schema() -> Value {
        let digest = json!({ "type": "string", "pattern": "^[0-9a-fA-F]{64}$", "title": "SHA-256, hex" });
        let positive = |title: &str| json!({ "type": "integer", "minimum": 1, "title": title });
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Launch on a host",
            "type": "object",
            "additionalProperties": false,
            "required": ["artifact", "command"],
            "properties": {
                "artifact": {
                    "title": "What to run: a path on the host, or the url of a .tar.gz with its sha256",
                    "oneOf": [
                        {
                            "title": "A file or directory on the host, below one of its artifact roots",
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["path"],
                            "properties": {
                                "path": { "type": "string", "pattern": "^/", "title": "Absolute path" },
                                "sha256": digest
                            }
                        },
                        {
                            "title": "A .tar.gz",
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["url", "sha256"],
                            "properties": {
                                "url": { "type": "string", "pattern": "^(https://|file:///)", "title": "URL of the tarball" },
                                "sha256": digest
                            }
                        }
                    ]
                },
                "command": {
                    "title": "Program and arguments",
                    "description": "Never a shell line. A program that begins with ./ stands in the artifact. $PORT is in the environment.",
                    "type": "array", "minItems": 1, "maxItems": MAX_ARGUMENTS,
                    "items": { "type": "string" }
                },
                "environment": {
                    "title": "Environment",
                    "description": "On top of PATH, HOME and PORT. Values may be secret://env/NAME or secret://file/PATH.",
                    "type": "object", "maxProperties": MAX_VARIABLES,
                    "additionalProperties": { "type": "string" }
                },
                "stop": {
                    "title": "How an instance is asked to end",
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "signal": { "type": "string", "default": "SIGTERM", "pattern": "^SIG[A-Z0-9]+$" },
                        "graceSeconds": { "type": "integer", "minimum": 0, "maximum": 3600, "default": 10 }
                    }
                },
                "runAs": { "type": "string", "minLength": 1, "title": "User to run as; the host must run as root" },
                "limits": {
                    "title": "Limits of one instance",
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "memoryBytes": { "type": "integer", "minimum": MEMORY_BYTES_MIN, "title": "Memory in bytes; at least 1 MiB" },
                        "cpuMillis": positive("Thousandths of a CPU"),
                        "processes": positive("Processes and threads"),
                        "openFiles": positive("Open files")
                    }
                }
            }
        })
    }

    /// A launch that passes.
    #[must_use]
    pub fn example() -> Value {
        json!({
            "artifact": {
                "url": "https://releases.example.com/hello-2.0.0.tar.gz",
                "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
            },
            "command": ["./hello", "--verbose"],
            "environment": { "GREETING": "hello" },
            "stop": { "signal": "SIGTERM", "graceSeconds": 10 },
            "limits": { "openFiles": 1024 }
        })
    }
}

/// The JSON pointer of a variable.
fn variable(name: &str) -> String {
    format!("/environment/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Puts something that holds in the place of a text that is not known yet. Names of variables are
/// known; what is text in any case stays.
fn stand_in(launch: &mut Value, pointer: &str) {
    match pointer.split('/').skip(1).collect::<Vec<_>>().as_slice() {
        ["artifact"] => launch["artifact"] = json!({ "path": "/" }),
        ["command"] => launch["command"] = json!(["a"]),
        ["artifact" | "command" | "environment", _] | ["stop", "signal"] | ["runAs"] => {}
        [name] => {
            launch.as_object_mut().and_then(|launch| launch.remove(*name));
        }
        [part, name] => {
            launch.get_mut(*part).and_then(Value::as_object_mut).and_then(|part| part.remove(*name));
        }
        // Nothing is that deep: it is refused where it stands.
        _ => {}
    }
}

/// The forms that an artifact may have, said in words: an untagged choice cannot say which was meant.
fn artifact_form(artifact: &Value) -> Result<(), (String, String)> {
    const FORMS: &str = "an artifact is either `{path: \"/srv/builds/hello\"}`, a file or directory below an artifact \
                         root (`sha256` may stand beside it), or `{url: \"https://…/hello.tar.gz\", sha256: \"…\"}`";
    let fault = |at: &str, message: String| Err((format!("/artifact{at}"), message));
    let Some(fields) = artifact.as_object() else { return fault("", FORMS.to_owned()) };
    if let Some(other) = fields.keys().find(|key| !["path", "url", "sha256"].contains(&key.as_str())) {
        return fault("", format!("`{other}` is not part of an artifact; {FORMS}"));
    }
    if let Some((name, _)) = fields.iter().find(|(_, value)| !value.is_string()) {
        return fault(&format!("/{name}"), format!("it is not a text; {FORMS}"));
    }
    match (fields.contains_key("path"), fields.contains_key("url"), fields.contains_key("sha256")) {
        (true, true, _) => fault("", format!("it has both a `path` and a `url`; {FORMS}")),
        (false, false, _) => fault("", format!("it has neither a `path` nor a `url`; {FORMS}")),
        (false, true, false) => fault("/sha256", "a url needs the sha256 of its tarball".to_owned()),
        _ => Ok(()),
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch() -> Value {
        json!({ "artifact": { "path": "/srv/hello" }, "command": ["./hello"] })
    }

    #[test]
    fn the_example_passes_the_schema_and_the_checks() {
        let validator = jsonschema::validator_for(&Launch::schema()).expect("the schema is a schema");
        assert!(validator.is_valid(&Launch::example()));
        Launch::read(&Launch::example()).expect("passes");
        assert!(validator.is_valid(&launch()));
    }

    #[test]
    fn a_fault_is_named_with_its_place() {
        let cases: [(&str, Value, &str); 12] = [
            ("/artifact", json!("/srv/hello"), "/artifact"),
            ("/artifact", json!({}), "/artifact"),
            ("/artifact", json!({ "path": "/x", "branch": "main" }), "/artifact"),
            ("/artifact", json!({ "path": 1 }), "/artifact/path"),
            ("/artifact", json!({ "path": "/x", "url": "file:///x" }), "/artifact"),
            ("/artifact", json!({ "url": "https://x/y.tar.gz" }), "/artifact/sha256"),
            ("/artifact", json!({ "path": "/srv/../etc" }), "/artifact/path"),
            ("/command", json!([]), "/command"),
            ("/command", json!(["../x"]), "/command/0"),
            ("/environment", json!({ "PORT": "1" }), "/environment/PORT"),
            ("/stop", json!({ "signal": "SIGNOTHING" }), "/stop/signal"),
            ("/limits", json!({ "memoryBytes": "much" }), "/limits/memoryBytes"),
        ];
        for (field, value, pointer) in cases {
            let mut launch = launch();
            launch[&field[1..]] = value.clone();
            let (at, message) = Launch::read(&launch).expect_err("faulty");
            assert_eq!(at, pointer, "{value} gave: {message}");
            if pointer == "/artifact" {
                assert!(message.contains("path") && message.contains("url") && message.contains("sha256"), "{message}");
            }
        }
    }

    #[test]
    fn what_is_known_is_checked_beside_what_is_not() {
        let open = |pointers: &[&str]| pointers.iter().map(|pointer| (*pointer).to_owned()).collect::<Vec<_>>();
        let x = "${ parameters.x }";
        let some = json!({
            "artifact": { "path": x, "sha256": x }, "command": [x, "../x"], "environment": { "A": x },
            "stop": { "signal": x, "graceSeconds": x }, "runAs": x, "limits": { "memoryBytes": x },
        });
        let places = open(&[
            "/artifact/path",
            "/artifact/sha256",
            "/command/0",
            "/environment/A",
            "/stop/signal",
            "/stop/graceSeconds",
            "/runAs",
            "/limits/memoryBytes",
        ]);
        assert!(matches!(Launch::read_known(&some, &places), Ok(Some(_))));
        let cases: [(&str, Value, &str); 9] = [
            ("/artifact", json!({ "pth": x }), "/artifact"),
            ("/artifact", json!({ "url": x }), "/artifact/sha256"),
            ("/artifact", json!({ "path": "srv", "sha256": x }), "/artifact/path"),
            ("/artifact", json!({ "path": x, "sha256": "12" }), "/artifact/sha256"),
            ("/command", json!(["../x", x]), "/command/0"),
            ("/environment", json!({ "PORT": x }), "/environment/PORT"),
            ("/environment", json!({ "PORT": "1" }), "/environment/PORT"),
            ("/stop", json!({ "signal": "SIGNOTHING", "graceSeconds": x }), "/stop/signal"),
            ("/limits", json!({ "memoryBytes": "much", "cpuMillis": x }), "/limits/memoryBytes"),
        ];
        for (field, value, pointer) in cases {
            let mut launch = some.clone();
            launch[&field[1..]] = value.clone();
            let mut places = places.clone();
            places.retain(|place| !place.starts_with(field));
            let names = [
                "pth",
                "url",
                "path",
                "sha256",
                "0",
                "1",
                "PORT",
                "signal",
                "graceSeconds",
                "memoryBytes",
                "cpuMillis",
            ];
            let within = names.map(|name| format!("{field}/{name}"));
            places.extend(within.into_iter().filter(|place| launch.pointer(place).is_some_and(|value| value == x)));
            let (at, message) = Launch::read_known(&launch, &places).expect_err("faulty");
            assert_eq!(at, pointer, "{value} gave: {message}");
        }
        for (launch, places) in [
            (json!(x), open(&[""])),
            (
                json!({ "artifact": x, "command": x, "environment": x, "stop": x, "limits": x }),
                open(&["/artifact", "/command", "/environment", "/stop", "/limits"]),
            ),
        ] {
            assert!(Launch::read_known(&launch, &places).is_ok(), "{launch}");
        }
    }

    #[test]
    fn memory_in_which_nothing_runs_is_refused_where_it_is_new() {
        let with = |bytes: u64| {
            let mut launch = launch();
            launch["limits"] = json!({ "memoryBytes": bytes });
            launch
        };
        let validator = jsonschema::validator_for(&Launch::schema()).expect("the schema is a schema");
        for bytes in [1, 512, MEMORY_BYTES_MIN - 1] {
            let (at, message) = Launch::read_new(&with(bytes)).expect_err("too few");
            assert!(at == "/limits/memoryBytes" && message.contains("1 MiB"), "{at}: {message}");
            assert!(!validator.is_valid(&with(bytes)), "{bytes}");
            Launch::read(&with(bytes)).expect("a record of before");
        }
        Launch::read_new(&with(MEMORY_BYTES_MIN)).expect("enough");
        assert!(validator.is_valid(&with(MEMORY_BYTES_MIN)));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let launch = Launch::read(&launch()).expect("passes");
        assert_eq!(launch.stop.signal(), Signal::SIGTERM);
        assert_eq!(launch.stop.grace(), Duration::from_secs(10));
        assert!(!launch.limits.any());
    }
}
