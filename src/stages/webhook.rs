//! Makes an HTTP call and judges its answer. What HTTP calls idempotent is repeated; anything else
//! only where it surely did not arrive, and after an unknown outcome as the config says.
//!
//! Secrets are resolved inside the call itself and masked in all that comes out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::schema;
use crate::engine::contract::{Cause, Effect, EffectError, Next, Repeat, Stage, StepContext, StepError};
use crate::expression::{has_expression, is_expression};
use crate::model::{ChildSpec, OnFailure};
use crate::outbound::{self, Outbound};
use crate::secrets::{self, Mask, Secrets};

pub(super) struct Webhook {
    pub outbound: Outbound,
    pub secrets: Secrets,
}

/// What of a body goes into the outputs, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// What of a body goes into a failure, in characters.
const EXCERPT_CHARS_MAX: usize = 1000;
/// The longest pause between two attempts, also where the other side asks for more.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Headers of the answer that go into the outputs.
const HEADERS_SHOWN: [&str; 8] =
    ["content-type", "date", "etag", "last-modified", "link", "location", "retry-after", "x-request-id"];
/// Headers that the client sets itself.
const HEADERS_REFUSED: [&str; 7] =
    ["connection", "content-length", "expect", "host", "idempotency-key", "transfer-encoding", "upgrade"];

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Config {
    url: String,
    #[serde(default = "post")]
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
    /// Any 2xx when empty.
    #[serde(default)]
    expected_statuses: Vec<u16>,
    #[serde(default = "timeout_seconds")]
    timeout_seconds: u64,
    #[serde(default = "retries")]
    retries: u32,
    #[serde(default)]
    on_unknown_outcome: OnUnknownOutcome,
}

fn post() -> String {
    "POST".to_owned()
}
const fn timeout_seconds() -> u64 {
    30
}
const fn retries() -> u32 {
    3
}

/// What to do when a call that must not be made twice may have been made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum OnUnknownOutcome {
    #[default]
    Fail,
    Retry,
    /// A person looks and decides.
    Ask,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "camelCase")]
pub(super) enum Cursor {
    /// About to make the call of that number, from 0; it may have been made.
    Call { attempt: u32 },
    /// Nobody knows what became of that call: a person is asked, by a judgment below this stage.
    Decide { attempt: u32 },
}

impl Default for Cursor {
    fn default() -> Self {
        Self::Call { attempt: 0 }
    }
}

/// An answer, without secrets.
struct Answer {
    status: u16,
    headers: BTreeMap<&'static str, String>,
    body: Value,
    truncated: bool,
    retry_after: Option<Duration>,
}

/// A call that was not answered, without secrets.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{0}")]
    Secret(String),
    #[error("{0}")]
    Invalid(String),
    /// The guard or the other side's redirects: no attempt will fare better.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NotReceived(String),
    #[error("{0}")]
    PerhapsReceived(String),
}

/// What can be said of a URL up to its first expression.
fn check_url(url: &str) -> Result<(), (String, String)> {
    let known = url.find("${").map_or(url, |begin| &url[..begin]);
    let is_whole = known.len() == url.len();
    let lower = known.to_ascii_lowercase();
    // Before an expression it may end anywhere, also within the scheme.
    let begins = |scheme: &str| lower.starts_with(scheme) || (!is_whole && scheme.starts_with(&lower));
    if !begins("http://") && !begins("https://") {
        return Err(("/url".to_owned(), "it is neither http:// nor https://".to_owned()));
    }
    let authority = lower.split('/').nth(2).unwrap_or_default();
    if authority.contains('@') {
        let message = "it holds a name or password; send them in the header `authorization`, as a secret:// reference";
        return Err(("/url".to_owned(), message.to_owned()));
    }
    Ok(())
}

impl Config {
    fn method(&self) -> Result<Method, String> {
        let method = self.method.to_ascii_uppercase();
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        if !known.contains(&method.as_str()) {
            return Err(format!("`{}` is not one of {}", self.method, known.join(", ")));
        }
        Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())
    }

    /// What HTTP calls idempotent.
    fn is_idempotent(&self) -> bool {
        self.method().is_ok_and(|method| method.is_idempotent())
    }

    fn expects(&self, status: u16) -> bool {
        if self.expected_statuses.is_empty() {
            (200..300).contains(&status)
        } else {
            self.expected_statuses.contains(&status)
        }
    }

    /// A status that says: not now.
    fn may_pass(&self, status: u16) -> bool {
        status == 503 || (matches!(status, 429 | 502 | 504) && self.is_idempotent())
    }

    fn check(&self) -> Result<(), (String, String)> {
        self.method().map_err(|message| ("/method".to_owned(), message))?;
        if !secrets::is_reference(&self.url) {
            check_url(&self.url)?;
        }
        whole_references("/url", &Value::String(self.url.clone()))?;
        whole_references("/body", &self.body)?;
        for (name, value) in &self.headers {
            let pointer = format!("/headers/{}", name.replace('~', "~0").replace('/', "~1"));
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                return Err((pointer, format!("`{name}` is not a header's name")));
            }
            if HEADERS_REFUSED.contains(&name.to_ascii_lowercase().as_str()) {
                return Err((pointer, format!("the header `{name}` is set by the client itself")));
            }
            if HeaderValue::from_str(value).is_err() {
                return Err((pointer, "the value holds characters that a header may not".to_owned()));
            }
            whole_references(&pointer, &Value::String(value.clone()))?;
        }
        Ok(())
    }
}

/// The value with null in the place of each text that holds an expression.
fn without_expressions(value: &Value) -> Value {
    match value {
        Value::String(text) if is_expression(text) => Value::Null,
        Value::Array(items) => items.iter().map(without_expressions).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), without_expressions(value))).collect()
        }
        other => other.clone(),
    }
}

/// A reference must be the whole of its string; in the middle of one it would be sent as it stands.
fn whole_references(pointer: &str, value: &Value) -> Result<(), (String, String)> {
    match value {
        Value::String(text) if text.contains(secrets::SCHEME) && !secrets::is_reference(text) => Err((
            pointer.to_owned(),
            "a secret reference must be the whole value; put what stands around it into the secret".to_owned(),
        )),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(index, item)| whole_references(&format!("{pointer}/{index}"), item))
        }
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            whole_references(&format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")), value)
        }),
        _ => Ok(()),
    }
}

impl Stage for Webhook {
    const KIND: &'static str = "webhook";
    const TITLE: &'static str = "Webhook";
    const DESCRIPTION: &'static str = "Makes an HTTP call and checks the status of its answer. Header values and strings \
                                       in the body may be secret references.";
    const TIMEOUT: Duration = Duration::from_secs(3 * 24 * 60 * 60 + 60 * 60);
    type Config = Config;
    type Cursor = Cursor;

    fn schema(&self) -> Value {
        schema::object(
            json!({
                "url": {
                    "type": "string", "minLength": 1, "maxLength": 8000,
                    "pattern": "^([hH][tT][tT][pP][sS]?|secret)://",
                    "description": "What to call, http or https; may be a secret reference as a whole. Loopback and \
                                    private addresses need an allow entry of the server, but for its own load balancers."
                },
                "method": {
                    "type": "string",
                    "pattern": "^(?i:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS)$",
                    "default": "POST",
                    "description": "The HTTP method."
                },
                "headers": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "maxLength": 8000},
                    "maxProperties": 50,
                    "default": {},
                    "secret": "byName",
                    "description": "Headers to send; a value may be a secret reference as a whole, and must be one \
                                    where the name says that it is secret: authorization, cookie, x-api-key …"
                },
                "body": {
                    "description": "A string is sent as it is, anything else as JSON; strings in it may be secret references."
                },
                "expectedStatuses": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 100, "maximum": 599},
                    "maxItems": 100, "uniqueItems": true, "default": [],
                    "description": "The statuses that are a success; any 2xx when empty."
                },
                "timeoutSeconds": {
                    "type": "integer", "minimum": 1, "maximum": 300, "default": 30,
                    "description": "How long one call may take."
                },
                "retries": {
                    "type": "integer", "minimum": 0, "maximum": 20, "default": 3,
                    "description": "Further calls where no connection came about, on 503, and for GET, HEAD, PUT, DELETE \
                                    and OPTIONS on 429, 502, 504 and lost answers."
                },
                "onUnknownOutcome": {
                    "enum": ["fail", "retry", "ask"], "default": "fail",
                    "description": "What to do when a POST or PATCH may have arrived but was not answered: fail, call \
                                    again, or ask a person."
                }
            }),
            &["url"],
        )
    }
    fn example(&self) -> Value {
        json!({
            "url": "https://hooks.example.com/deployed",
            "method": "POST",
            "headers": {"authorization": "secret://env/GENNAKER_SECRET_HOOK"},
            "body": {"text": "hello was deployed"},
            "expectedStatuses": [200, 202],
            "timeoutSeconds": 30,
            "retries": 3,
            "onUnknownOutcome": "ask"
        })
    }
    fn validate(&self, config: &Config) -> Result<(), (String, String)> {
        config.check()?;
        let sent = json!({"url": config.url, "headers": config.headers, "body": config.body});
        self.secrets.permits_all(&sent)
    }
    fn validate_known(&self, config: &Value) -> Result<(), (String, String)> {
        // Each field is checked by itself: what is not known is left out, or stands for a plain one.
        let Value::Object(fields) = config else { return Ok(()) };
        let mut known = serde_json::Map::new();
        for (name, value) in fields {
            let value = match (name.as_str(), value) {
                ("headers", Value::Object(headers)) => headers
                    .iter()
                    .map(|(name, value)| (name.clone(), if has_expression(value) { json!("") } else { value.clone() }))
                    .collect(),
                ("body", body) => without_expressions(body),
                ("url", Value::String(url)) if has_expression(value) => {
                    check_url(url)?;
                    continue;
                }
                (_, value) if has_expression(value) => continue,
                (_, value) => value.clone(),
            };
            known.insert(name.clone(), value);
        }
        known.entry("url").or_insert_with(|| json!("https://localhost"));
        let known = Config::deserialize(Value::Object(known)).map_err(|error| (String::new(), error.to_string()))?;
        self.validate(&known)
    }
    fn tasks(&self, config: &Config) -> Vec<&'static str> {
        if config.on_unknown_outcome == OnUnknownOutcome::Ask {
            vec!["Call", "Wait for a decision"]
        } else {
            vec!["Call"]
        }
    }
    fn task(&self, cursor: &Cursor) -> usize {
        match cursor {
            Cursor::Call { .. } => 0,
            Cursor::Decide { .. } => 1,
        }
    }

    async fn step(&self, cx: &StepContext, config: &Config, cursor: Cursor) -> Result<Next<Cursor>, StepError> {
        match cursor {
            Cursor::Call { attempt } => self.call(cx, config, attempt).await,
            Cursor::Decide { attempt } => decide(cx, attempt),
        }
    }
}

impl Webhook {
    async fn call(&self, cx: &StepContext, config: &Config, attempt: u32) -> Result<Next<Cursor>, StepError> {
        config.check().map_err(|(pointer, message)| {
            StepError::Fail(Cause::new("INVALID", format!("config at `{pointer}`: {message}")))
        })?;
        let target = shown_url(&config.url);
        cx.progress(
            i64::from(attempt),
            i64::from(config.retries) + 1,
            "calls",
            format!("calling {target}, attempt {} of {}", attempt + 1, config.retries + 1),
        );
        let key = format!("call-{attempt}");
        let effect = Effect {
            key: &key,
            what: format!("{} {target}", config.method.to_ascii_uppercase()),
            repeat: if config.is_idempotent() { Repeat::Keyed } else { Repeat::Blind },
            // The client's own timeout comes first and knows more.
            timeout: Duration::from_secs(config.timeout_seconds) + Duration::from_secs(5),
        };
        let made = cx.effect(effect, |ticket| self.send(config, ticket.operation)).await;
        let left = attempt < config.retries;
        let again = Cursor::Call { attempt: attempt + 1 };
        match made {
            Ok(answer) if config.expects(answer.status) => {
                cx.progress(
                    i64::from(attempt) + 1,
                    i64::from(attempt) + 1,
                    "calls",
                    format!("answered {}", answer.status),
                );
                Ok(Next::Done(answer.outputs()))
            }
            Ok(answer) if left && config.may_pass(answer.status) => {
                let after = answer.retry_after.unwrap_or_else(|| pause(attempt)).min(PAUSE_MAX);
                let message = format!("{target} answered {}; calling again in {} s", answer.status, after.as_secs());
                cx.progress(i64::from(attempt) + 1, i64::from(config.retries) + 1, "calls", message);
                Ok(Next::Poll { cursor: again, after, topic: None })
            }
            Ok(answer) => Err(answer.unexpected(config, &target)),
            Err(EffectError::Call(CallError::NotReceived(message))) if left => {
                cx.progress(i64::from(attempt) + 1, i64::from(config.retries) + 1, "calls", message);
                Ok(Next::Poll { cursor: again, after: pause(attempt), topic: None })
            }
            Err(EffectError::Call(CallError::PerhapsReceived(message))) => unknown(config, attempt, &target, &message),
            Err(EffectError::Unknown { what, since }) => {
                let message = format!("`{what}` was begun at {} and its answer was lost", since.format("%F %T UTC"));
                unknown(config, attempt, &target, &message)
            }
            Err(error) => Err(error.into_step(|error| failed(&error))),
        }
    }

    /// The call itself: the only place where the secrets are.
    async fn send(&self, config: &Config, operation: String) -> Result<Answer, CallError> {
        let mut mask = Mask::default();
        let request = self.request(config, &operation, &mut mask)?;
        let response = self.outbound.send(request).await.map_err(|error| {
            let message = mask.text(&error.to_string());
            match error {
                outbound::Error::Url { .. } => CallError::Invalid(message),
                outbound::Error::Connect { .. } => CallError::NotReceived(message),
                error if error.may_have_been_received() => CallError::PerhapsReceived(message),
                _ => CallError::Refused(message),
            }
        })?;
        Ok(Answer::of(&response, &mask))
    }

    fn request(&self, config: &Config, operation: &str, mask: &mut Mask) -> Result<outbound::Request, CallError> {
        let invalid = |message: String| CallError::Invalid(message);
        let url = self.revealed(&config.url, mask)?;
        let mut headers = HeaderMap::new();
        let (body, content_type) = match &config.body {
            Value::Null => (None, None),
            Value::String(text) => (Some(self.revealed(text, mask)?.into_bytes()), Some("text/plain; charset=utf-8")),
            document => {
                let document = self.document(document, mask)?;
                (Some(document.to_string().into_bytes()), Some("application/json"))
            }
        };
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        // The same for all calls of this stage, so that a receiver that knows such keys does the
        // work once, however often it is asked.
        let key = operation.rsplit_once('/').map_or(operation, |(stage, _)| stage);
        let key = HeaderValue::from_str(&format!("{key}/call")).map_err(|error| invalid(error.to_string()))?;
        headers.insert(HeaderName::from_static("idempotency-key"), key);
        for (name, value) in &config.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid(format!("`{name}` is not a header's name")))?;
            let mut value = HeaderValue::from_str(&self.revealed(value, mask)?)
                .map_err(|_| invalid(format!("the value of header `{name}` holds characters that a header may not")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        let method = config.method().map_err(invalid)?;
        Ok(outbound::Request { method, url, headers, body, timeout: Duration::from_secs(config.timeout_seconds) })
    }

    fn revealed(&self, text: &str, mask: &mut Mask) -> Result<String, CallError> {
        if !secrets::is_reference(text) {
            return Ok(text.to_owned());
        }
        let secret = self.secrets.resolve(text).map_err(|error| CallError::Secret(error.to_string()))?;
        mask.add(&secret);
        Ok(secret.expose().to_owned())
    }

    fn document(&self, value: &Value, mask: &mut Mask) -> Result<Value, CallError> {
        Ok(match value {
            Value::String(text) => Value::String(self.revealed(text, mask)?),
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.document(item, mask)).collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let mut revealed = serde_json::Map::new();
                for (key, value) in fields {
                    revealed.insert(key.clone(), self.document(value, mask)?);
                }
                Value::Object(revealed)
            }
            other => other.clone(),
        })
    }
}

impl Answer {
    fn of(response: &outbound::Response, mask: &Mask) -> Self {
        let headers: BTreeMap<_, _> = HEADERS_SHOWN
            .into_iter()
            .filter_map(|name| {
                let value = response.headers.get(name)?;
                let value = mask.text(&String::from_utf8_lossy(value.as_bytes()));
                Some((name, value.chars().take(1000).collect()))
            })
            .collect();
        // A later date in words is not worth parsing: the usual pause will do.
        let retry_after =
            headers.get("retry-after").and_then(|value: &String| value.parse().ok()).map(Duration::from_secs);
        let (body, truncated) = body(response, mask);
        Self { status: response.status.as_u16(), headers, body, truncated, retry_after }
    }

    fn outputs(self) -> Value {
        let mut outputs = json!({"statusCode": self.status, "headers": self.headers, "body": self.body});
        if self.truncated {
            outputs["bodyTruncated"] = json!(true);
        }
        outputs
    }

    fn unexpected(&self, config: &Config, target: &str) -> StepError {
        let expected = if config.expected_statuses.is_empty() {
            "a 2xx status".to_owned()
        } else {
            config.expected_statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
        };
        let mut cause = Cause::new("UNEXPECTED_STATUS", format!("{target} answered {}, not {expected}", self.status))
            .hint("look at the answer; correct the call, or add the status to expectedStatuses");
        let excerpt: String = match &self.body {
            Value::String(text) => text.chars().take(EXCERPT_CHARS_MAX).collect(),
            Value::Null => String::new(),
            document => document.to_string().chars().take(EXCERPT_CHARS_MAX).collect(),
        };
        if !excerpt.is_empty() {
            cause = cause.because(excerpt);
        }
        StepError::Fail(cause)
    }
}

/// The body as a JSON document, or else as text, without secrets and cut.
fn body(response: &outbound::Response, mask: &Mask) -> (Value, bool) {
    if response.body.is_empty() {
        return (Value::Null, false);
    }
    if !response.truncated
        && let Ok(document) = serde_json::from_slice::<Value>(&response.body)
    {
        let document = mask.json(document);
        let text = document.to_string();
        return if text.len() <= BODY_BYTES_MAX { (document, false) } else { (cut(&text), true) };
    }
    // Masked before it is cut: a secret across the edge would not be found.
    let text = mask.text(&String::from_utf8_lossy(&response.body));
    let truncated = response.truncated || text.len() > BODY_BYTES_MAX;
    (cut(&text), truncated)
}

fn cut(text: &str) -> Value {
    let mut end = text.len().min(BODY_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    json!(text[..end])
}

/// 1 s, doubling.
fn pause(attempt: u32) -> Duration {
    Duration::from_secs(1 << attempt.min(6)).min(PAUSE_MAX)
}

/// The URL as people see it: without its query, which may hold anything, and never a secret.
fn shown_url(url: &str) -> String {
    let url = url.split_once(['?', '#']).map_or(url, |(before, _)| before);
    url.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// After a call that may or may not have arrived.
fn unknown(config: &Config, attempt: u32, target: &str, message: &str) -> Result<Next<Cursor>, StepError> {
    let left = attempt < config.retries;
    let retry = config.is_idempotent() || config.on_unknown_outcome == OnUnknownOutcome::Retry;
    if retry && left {
        return Ok(Next::Poll { cursor: Cursor::Call { attempt: attempt + 1 }, after: pause(attempt), topic: None });
    }
    if !retry && config.on_unknown_outcome == OnUnknownOutcome::Ask {
        return Ok(ask(attempt, target, message));
    }
    let cause = if retry {
        Cause::new("NO_ANSWER", format!("no answer from {target} in {} calls", attempt + 1))
            .hint("look whether it runs and can be reached, or raise timeoutSeconds")
    } else {
        Cause::new("OUTCOME_UNKNOWN", format!("the call to {target} may have arrived, but its answer is not known"))
            .hint("look at the other side whether it took effect; onUnknownOutcome says what to do in such a case")
    };
    Err(StepError::Fail(cause.because(message)))
}

fn failed(error: &CallError) -> StepError {
    let (code, hint) = match error {
        CallError::Secret(_) => ("SECRET_NOT_RESOLVED", "set the secret where the server runs"),
        CallError::Invalid(_) => ("INVALID", "correct the stage's config"),
        CallError::Refused(_) => ("CALL_REFUSED", "call a public address, or have an allow entry added for this one"),
        CallError::NotReceived(_) => ("CONNECTION_FAILED", "look whether the host's name is right and whether it runs"),
        CallError::PerhapsReceived(_) => ("NO_ANSWER", "look whether it runs and can be reached"),
    };
    StepError::Fail(Cause::new(code, error.to_string()).hint(hint))
}

/// What a person answers: the call took effect, or it is to be made again.
const TOOK_EFFECT: &str = "took effect";
const CALL_AGAIN: &str = "call again";

/// A judgment below this stage; told to stop, it fails, and this stage with it.
fn ask(attempt: u32, target: &str, what: &str) -> Next<Cursor> {
    let instructions = format!(
        "{what}. Look at the other side whether the call to {target} took effect. Go on with `{TOOK_EFFECT}` or \
         `{CALL_AGAIN}`, or stop to fail the stage."
    );
    let question = ChildSpec {
        key: question(attempt),
        kind: "manualJudgment".to_owned(),
        name: "Did the call take effect?".to_owned(),
        requires: Vec::new(),
        config: json!({"instructions": instructions, "inputs": [TOOK_EFFECT, CALL_AGAIN]}),
        timeout_seconds: None,
        on_failure: OnFailure::FailPipeline,
    };
    Next::Spawn { children: vec![question], cursor: Cursor::Decide { attempt } }
}

fn question(attempt: u32) -> String {
    format!("ask-{attempt}")
}

fn decide(cx: &StepContext, attempt: u32) -> Result<Next<Cursor>, StepError> {
    let key = question(attempt);
    let outputs = cx.child(&key).map(|child| &child.outputs);
    let of = |name: &str| outputs.and_then(|outputs| outputs.get(name)).and_then(Value::as_str);
    match of("input") {
        Some(TOOK_EFFECT) => Ok(Next::Done(
            json!({"statusCode": null, "headers": {}, "body": null, "outcome": "assumed", "by": of("by")}),
        )),
        Some(CALL_AGAIN) => Ok(Next::Goto(Cursor::Call { attempt: attempt + 1 })),
        _ => Err(StepError::fail("INVALID", "the judgment does not say whether the call took effect")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: Value) -> Config {
        let mut config = json!({"url": "https://example.com/hook"});
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        Config::deserialize(config).expect("a config")
    }

    #[test]
    fn which_answers_are_worth_another_call() {
        for (method, status, worth) in [
            ("GET", 503, true),
            ("GET", 502, true),
            ("GET", 429, true),
            ("GET", 500, false),
            ("GET", 404, false),
            ("PUT", 504, true),
            ("POST", 503, true),
            ("POST", 502, false),
            ("post", 429, false),
            ("PATCH", 504, false),
        ] {
            assert_eq!(config(json!({"method": method})).may_pass(status), worth, "{method} {status}");
        }
        assert!(config(json!({})).expects(204) && !config(json!({})).expects(302));
        assert!(config(json!({"expectedStatuses": [302]})).expects(302));
        assert!(!config(json!({"expectedStatuses": [302]})).expects(200));
    }

    #[test]
    fn bad_configs_name_the_place() {
        for (more, pointer) in [
            (json!({"url": "ftp://example.com"}), "/url"),
            (json!({"method": "TRACE"}), "/method"),
            (json!({"headers": {"Host": "x"}}), "/headers/Host"),
            (json!({"headers": {"a/b": "x"}}), "/headers/a~1b"),
            (json!({"headers": {"x": "a\nb"}}), "/headers/x"),
            (json!({"headers": {"authorization": "Bearer secret://env/X"}}), "/headers/authorization"),
            (json!({"body": {"a": [1, "x secret://env/X"]}}), "/body/a/1"),
        ] {
            assert_eq!(config(more.clone()).check().map_err(|(pointer, _)| pointer), Err(pointer.to_owned()), "{more}");
        }
        assert_eq!(config(json!({"url": "secret://env/GENNAKER_SECRET_URL"})).check(), Ok(()));
    }

    #[test]
    fn after_an_unknown_outcome_the_config_decides() {
        let next = |more: Value, attempt| unknown(&config(more), attempt, "x", "timeout");
        let is_call = |next: Result<Next<Cursor>, StepError>| {
            matches!(next, Ok(Next::Poll { cursor: Cursor::Call { attempt: 1 }, .. }))
        };
        assert!(is_call(next(json!({"method": "PUT"}), 0)));
        assert!(is_call(next(json!({"onUnknownOutcome": "retry"}), 0)));
        let asked = next(json!({"onUnknownOutcome": "ask"}), 0);
        assert!(matches!(asked, Ok(Next::Spawn { cursor: Cursor::Decide { attempt: 0 }, .. })), "{asked:?}");
        let code = |next| match next {
            Err(StepError::Fail(cause)) => cause.code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(next(json!({}), 0)), "OUTCOME_UNKNOWN");
        assert_eq!(code(next(json!({"method": "GET"}), 3)), "NO_ANSWER");
        assert_eq!(code(next(json!({"onUnknownOutcome": "retry", "retries": 0}), 0)), "NO_ANSWER");
    }
}
