//! Secrets stand in configs as references (`secret://env/NAME`, `secret://file/ABSOLUTE_PATH`) and
//! are resolved at the instant of use. [`Mask`] takes the values out of whatever goes on from
//! there: outputs, events, errors, logs.

use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

/// What a reference begins with.
pub const SCHEME: &str = "secret://";
/// Environment variables whose names do not begin so are never read.
pub const ENVIRONMENT_PREFIX: &str = "GENNAKER_SECRET_";
/// The largest secret file, in bytes.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Shorter values are not masked: they would take ordinary words out of texts.
pub const MASK_CHARS_MIN: usize = 4;

/// A reference could not be resolved. Names the reference, never a value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is none; it is given.
    #[error("`{0}` is not a secret reference; write `secret://env/NAME` or `secret://file/ABSOLUTE_PATH`")]
    NotAReference(String),
    /// The variable's name does not begin with [`ENVIRONMENT_PREFIX`].
    #[error(
        "the environment variable `{0}` may not be used as a secret; only names that begin with `GENNAKER_SECRET_` may"
    )]
    NameNotAllowed(String),
    /// There is no such variable.
    #[error("the environment variable `{0}` is not set for the server")]
    NotSet(String),
    /// The file is not below a directory of secrets, links resolved.
    #[error(
        "`{0}` is not below a directory that secrets may be read from; the setting for secret directories names them: \
         --secret-dir, GENNAKER_SECRET_DIRS, or `secret-dir` in the file of settings"
    )]
    PathNotAllowed(String),
    /// The file is not there, or may not be read.
    #[error("secret file `{path}` cannot be read")]
    File {
        /// As the reference names it.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file has more than [`FILE_BYTES_MAX`].
    #[error("secret file `{0}` is larger than 64 KiB")]
    TooLarge(String),
    /// The value is not UTF-8.
    #[error("the secret `{0}` is not UTF-8 text")]
    NotText(String),
    /// There is nothing, or nothing but the end of a line.
    #[error("the secret `{0}` is empty")]
    Empty(String),
}

/// A resolved value. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself, to be handed on at once and kept nowhere.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

type Environment = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// Resolves references. Cheap to clone.
#[derive(Clone)]
pub struct Secrets {
    directories: Arc<[PathBuf]>,
    environment: Arc<Environment>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("directories", &self.directories).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Files are read below these directories only; without any, from nowhere.
    #[must_use]
    pub fn new(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        Self::with_environment(directories, |name| std::env::var_os(name))
    }

    /// The same with another environment than the process's own.
    #[must_use]
    pub fn with_environment(
        directories: impl IntoIterator<Item = PathBuf>,
        environment: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static,
    ) -> Self {
        Self { directories: directories.into_iter().collect(), environment: Arc::new(environment) }
    }

    /// The value behind a reference. Reads a small local file at the most.
    ///
    /// # Errors
    /// When the text is no reference, points where secrets may not come from, or at nothing.
    pub fn resolve(&self, reference: &str) -> Result<Secret, Error> {
        let rest = reference.strip_prefix(SCHEME).ok_or_else(|| Error::NotAReference(shown(reference)))?;
        let value = match rest.split_once('/') {
            Some(("env", name)) => self.variable(name)?,
            Some(("file", path)) => self.file(path)?,
            _ => return Err(Error::NotAReference(shown(reference))),
        };
        if value.is_empty() { Err(Error::Empty(shown(reference))) } else { Ok(Secret(value)) }
    }

    /// Whether the reference may be resolved at all, without reading anything: what can be said when it
    /// is saved. A link that leads outside is found only at the resolving.
    ///
    /// # Errors
    /// When the text is no reference, or points where secrets may not come from.
    pub fn permits(&self, reference: &str) -> Result<(), Error> {
        well_formed(reference)?;
        match reference.strip_prefix("secret://file/") {
            Some(path) => {
                let path = format!("/{}", path.trim_start_matches('/'));
                let below = self.below_a_directory(Path::new(&path));
                if below { Ok(()) } else { Err(Error::PathNotAllowed(shown(&path))) }
            }
            None => Ok(()),
        }
    }

    /// The same for every reference in a document.
    ///
    /// # Errors
    /// (JSON pointer, message) of the first that may not.
    pub fn permits_all(&self, value: &Value) -> Result<(), (String, String)> {
        each_text(value, String::new(), &|text| {
            if is_reference(text) { self.permits(text).map_err(|error| error.to_string()) } else { Ok(()) }
        })
    }

    fn variable(&self, name: &str) -> Result<String, Error> {
        if !name.starts_with(ENVIRONMENT_PREFIX) {
            return Err(Error::NameNotAllowed(shown(name)));
        }
        let value = (self.environment)(name).ok_or_else(|| Error::NotSet(shown(name)))?;
        value.into_string().map_err(|_| Error::NotText(shown(name)))
    }

    fn file(&self, path: &str) -> Result<String, Error> {
        // `secret://file//run/secrets/x` and `secret://file/run/secrets/x` are the same file.
        let path = format!("/{}", path.trim_start_matches('/'));
        let failed = |source| Error::File { path: shown(&path), source };
        // Where links lead decides, not what the reference says; a path outside is refused alike
        // whether there is a file or not.
        let real = Path::new(&path).canonicalize().map_err(|source| {
            if self.below_a_directory(Path::new(&path)) { failed(source) } else { Error::PathNotAllowed(shown(&path)) }
        })?;
        if !self.below_a_directory(&real) {
            return Err(Error::PathNotAllowed(shown(&path)));
        }
        if !real.metadata().map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("it is not a regular file")));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&real).map_err(failed)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::TooLarge(shown(&path)));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| Error::NotText(shown(&path)))?;
        // What editors and `echo` add.
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }

    fn below_a_directory(&self, path: &Path) -> bool {
        if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
            return false;
        }
        self.directories.iter().any(|directory| {
            let real = directory.canonicalize();
            let real = real.as_deref().unwrap_or(directory);
            path.starts_with(real) && path != real
        })
    }
}

/// Whether the text is a reference as a whole.
#[must_use]
pub fn is_reference(text: &str) -> bool {
    text.starts_with(SCHEME)
}

/// Whether a reference is of a form that could be resolved: a variable with the prefix, or a file.
///
/// # Errors
/// When it is not.
fn well_formed(reference: &str) -> Result<(), Error> {
    match reference.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')) {
        Some(("env", name)) if name.starts_with(ENVIRONMENT_PREFIX) => Ok(()),
        Some(("env", name)) => Err(Error::NameNotAllowed(shown(name))),
        Some(("file", path)) if !path.trim_matches('/').is_empty() => Ok(()),
        _ => Err(Error::NotAReference(shown(reference))),
    }
}

/// Whether a name says that its value is secret: `API_TOKEN`, `x-api-key`, `dbPassword`. Numbers and
/// places of tokens are none: `MAX_TOKENS`, `TOKEN_URL`.
#[must_use]
pub fn names_secret(name: &str) -> bool {
    const WORDS: [&str; 9] =
        ["password", "passwd", "passphrase", "secret", "apikey", "authorization", "cookie", "credential", "privatekey"];
    let joined: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    WORDS.iter().any(|word| joined.contains(word)) || names_token(name)
}

/// A word that is or ends with `token`, where no other one says that a number or a place is meant.
fn names_token(name: &str) -> bool {
    const ABOUT: [&str; 35] = [
        "age", "bucket", "budget", "count", "endpoint", "expires", "expiry", "issuer", "len", "length", "lifetime",
        "limit", "max", "maximum", "min", "minimum", "minutes", "name", "num", "number", "path", "per", "rate",
        "seconds", "size", "timeout", "total", "ttl", "type", "uri", "url", "usage", "used", "window", "header",
    ];
    let words = words(name);
    words.iter().any(|word| word.ends_with("token") || word.ends_with("tokens"))
        && !words.iter().any(|word| ABOUT.contains(&word.as_str()))
}

/// The words of a name in lower case, however it joins them: `MAX_TOKENS`, `max-tokens`, `maxTokens`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for char in name.chars() {
        let begins = !char.is_ascii_alphanumeric() || (char.is_ascii_uppercase() && before.is_ascii_lowercase());
        if begins && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if char.is_ascii_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.push(char.to_ascii_lowercase());
        }
        before = char;
    }
    words
}

/// The first text in a document that can never be what was meant: a reference that is of no form that
/// could be resolved, and the `***` that stands where a value was hidden from whoever read it.
///
/// # Errors
/// (JSON pointer, message), when there is one.
pub fn no_dead_ends(value: &Value) -> Result<(), (String, String)> {
    each_text(value, String::new(), &|text| {
        if text == MASKED {
            return Err("this is a masked value; give the secret:// reference, or leave it out".to_owned());
        }
        if is_reference(text) && !text.contains("${") {
            return well_formed(text).map_err(|error| error.to_string());
        }
        Ok(())
    })
}

/// Every text of a document, in order, until one is refused: (JSON pointer, why).
fn each_text(value: &Value, at: String, check: &dyn Fn(&str) -> Result<(), String>) -> Result<(), (String, String)> {
    match value {
        Value::String(text) => check(text).map_err(|message| (at, message)),
        Value::Object(members) => {
            members.iter().try_for_each(|(name, value)| each_text(value, below(&at, name), check))
        }
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(index, item)| each_text(item, format!("{at}/{index}"), check))
        }
        _ => Ok(()),
    }
}

/// The pointer to a member of what stands at a pointer.
fn below(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The keyword by which a schema marks what must not stand in a config as it is. `true`: this
/// value. `"byName"`: the members of this object whose names say so ([`names_secret`]).
pub const KEYWORD: &str = "secret";

/// The first text that the schema marks as secret and that is neither a reference nor has an
/// expression in it: (JSON pointer, message). The message never repeats the text.
///
/// # Errors
/// When there is one.
pub fn no_literals(schema: &Value, value: &Value) -> Result<(), (String, String)> {
    look(schema, value, String::new())
}

fn look(schema: &Value, value: &Value, at: String) -> Result<(), (String, String)> {
    if schema[KEYWORD] == true {
        return refuse_literal(value, at);
    }
    let below = |name: &str| below(&at, name);
    match value {
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            if schema[KEYWORD] == "byName" && names_secret(name) {
                return refuse_literal(value, below(name));
            }
            let known = schema["properties"].get(name);
            look(known.unwrap_or(&schema["additionalProperties"]), value, below(name))
        }),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(index, item)| look(&schema["items"], item, format!("{at}/{index}")))
        }
        _ => Ok(()),
    }
}

fn refuse_literal(value: &Value, at: String) -> Result<(), (String, String)> {
    let Value::String(text) = value else { return Ok(()) };
    if text.is_empty() || is_reference(text) || text.contains("${") {
        return Ok(());
    }
    let message = "a secret must not stand here as it is; set the server's variable GENNAKER_SECRET_<NAME> and write \
                   `secret://env/GENNAKER_SECRET_<NAME>`, or write `secret://file/<path>` for a file below --secret-dir";
    Err((at, message.to_owned()))
}

/// Takes resolved values out of texts.
#[derive(Clone, Default)]
pub struct Mask {
    /// The longest first, so that a value that holds another goes whole.
    values: Vec<String>,
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({})", self.values.len())
    }
}

/// What stands where a secret was.
pub const MASKED: &str = "***";

impl Mask {
    /// From now on this value is masked, also as it looks inside a JSON string or a URL.
    pub fn add(&mut self, secret: &Secret) {
        let value = secret.expose();
        if value.chars().count() < MASK_CHARS_MIN {
            return;
        }
        let quoted = Value::from(value).to_string();
        let in_json = quoted[1..quoted.len() - 1].to_owned();
        for form in [value.to_owned(), in_json, in_url(value)] {
            if !self.values.contains(&form) {
                self.values.push(form);
            }
        }
        self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// The text without the values.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), MASKED))
    }

    /// The same for a text that was cut out of a longer one, perhaps inside of a value: what a value
    /// left at either end goes too.
    #[must_use]
    pub fn excerpt(&self, text: &str) -> String {
        let mut found: Vec<std::ops::Range<usize>> = Vec::new();
        for value in &self.values {
            found.extend(text.match_indices(value.as_str()).map(|(at, part)| at..at + part.len()));
            let cuts = || (1..value.len()).filter(|at| value.is_char_boundary(*at)).map(|at| value.split_at(at));
            let long_enough = |part: &&str| part.len() >= MASK_CHARS_MIN;
            let rest = cuts().map(|(_, rest)| rest).filter(long_enough).find(|rest| text.starts_with(rest));
            found.extend(rest.map(|rest| 0..rest.len()));
            let begun = cuts().map(|(begun, _)| begun).filter(long_enough).rfind(|begun| text.ends_with(begun));
            found.extend(begun.map(|begun| text.len() - begun.len()..text.len()));
        }
        found.sort_by_key(|range| range.start);
        let (mut masked, mut done) = (String::with_capacity(text.len()), 0);
        for range in found {
            if range.start >= done {
                masked.push_str(&text[done..range.start]);
                masked.push_str(MASKED);
            }
            done = done.max(range.end);
        }
        masked.push_str(&text[done..]);
        masked
    }

    /// The document without the values, in keys, strings and numbers.
    #[must_use]
    pub fn json(&self, value: Value) -> Value {
        if self.values.is_empty() {
            return value;
        }
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Number(number) => {
                let text = number.to_string();
                let masked = self.text(&text);
                if masked == text { Value::Number(number) } else { Value::String(masked) }
            }
            Value::Array(items) => items.into_iter().map(|item| self.json(item)).collect(),
            Value::Object(fields) => {
                fields.into_iter().map(|(key, value)| (self.text(&key), self.json(value))).collect()
            }
            other @ (Value::Null | Value::Bool(_)) => other,
        }
    }
}

/// As it looks in a URL's query.
fn in_url(value: &str) -> String {
    use fmt::Write as _;
    value.bytes().fold(String::with_capacity(value.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A name as errors show it: cut, without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("gennaker-secrets-{name}-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(directory.join("inside")).expect("a directory");
        directory.canonicalize().expect("it was just made")
    }

    fn secrets(directories: &[&Path]) -> Secrets {
        Secrets::with_environment(directories.iter().map(|path| path.to_path_buf()), |name| match name {
            "GENNAKER_SECRET_TOKEN" => Some("s3cr3t-value".into()),
            "GENNAKER_SECRET_EMPTY" => Some("".into()),
            "PATH" => Some("/usr/bin".into()),
            _ => None,
        })
    }

    #[test]
    fn only_variables_with_the_prefix_are_read() {
        let secrets = secrets(&[]);
        assert_eq!(secrets.resolve("secret://env/GENNAKER_SECRET_TOKEN").expect("set").expose(), "s3cr3t-value");
        assert!(matches!(secrets.resolve("secret://env/PATH"), Err(Error::NameNotAllowed(_))));
        assert!(matches!(secrets.resolve("secret://env/GENNAKER_SECRET_OTHER"), Err(Error::NotSet(_))));
        assert!(matches!(secrets.resolve("secret://env/GENNAKER_SECRET_EMPTY"), Err(Error::Empty(_))));
        for text in ["plain", "secret://", "secret://env", "secret://vault/x", "SECRET://env/GENNAKER_SECRET_TOKEN"] {
            assert!(matches!(secrets.resolve(text), Err(Error::NotAReference(_))), "{text}");
        }
    }

    #[test]
    fn files_are_read_below_the_directories_only_and_lose_one_newline() {
        let root = directory("below");
        let inside = root.join("inside");
        std::fs::write(inside.join("token"), "abc def\n").expect("written");
        std::fs::write(root.join("outside"), "hidden").expect("written");
        std::os::unix::fs::symlink(root.join("outside"), inside.join("link")).expect("linked");
        std::fs::write(inside.join("large"), vec![b'x'; 64 * 1024 + 1]).expect("written");
        std::fs::write(inside.join("binary"), [0xff, 0xfe]).expect("written");
        let secrets = secrets(&[&inside]);
        let at = |path: &Path| secrets.resolve(&format!("secret://file{}", path.display()));

        assert_eq!(at(&inside.join("token")).expect("it is there").expose(), "abc def");
        assert!(matches!(at(&root.join("outside")), Err(Error::PathNotAllowed(_))));
        assert!(matches!(at(&inside.join("../outside")), Err(Error::PathNotAllowed(_))));
        assert!(matches!(at(&inside.join("link")), Err(Error::PathNotAllowed(_))), "a link that leads outside");
        assert!(matches!(at(&root.join("nothing")), Err(Error::PathNotAllowed(_))), "what is outside stays unknown");
        assert!(matches!(at(&inside.join("nothing")), Err(Error::File { .. })));
        assert!(matches!(at(&inside), Err(Error::PathNotAllowed(_))));
        assert!(matches!(at(&inside.join("large")), Err(Error::TooLarge(_))));
        assert!(matches!(at(&inside.join("binary")), Err(Error::NotText(_))));
        std::fs::remove_dir_all(root).expect("removed");
    }

    #[test]
    fn what_a_schema_marks_as_secret_is_no_literal() {
        let schema = json!({"properties": {
            "key": {"secret": true},
            "calls": {"items": {"properties": {"headers": {"secret": "byName"}}}},
        }});
        let place = |value: Value| {
            no_literals(&schema, &value).map_err(|(pointer, message)| {
                assert!(!message.contains("s3cr3t"), "{message}");
                pointer
            })
        };
        assert_eq!(place(json!({"key": "s3cr3t"})), Err("/key".to_owned()));
        let headers = |headers: Value| place(json!({"calls": [{}, {"headers": headers}]}));
        assert_eq!(headers(json!({"x/Api-Key": "s3cr3t"})), Err("/calls/1/headers/x~1Api-Key".to_owned()));
        for held in ["secret://env/GENNAKER_SECRET_X", "Bearer ${parameters.token}", ""] {
            assert_eq!(headers(json!({"Authorization": held, "x-plain": "p"})), Ok(()), "{held}");
        }
    }

    #[test]
    fn names_of_secrets_are_told_from_names_of_numbers_and_places() {
        for secret in [
            "API_TOKEN",
            "token",
            "x-api-key",
            "apiKey",
            "dbPassword",
            "DB_PASSWORD",
            "PGPASSWORD",
            "accesstoken",
            "GITHUBTOKEN",
            "refreshToken",
            "x-auth-token",
            "API_TOKENS",
            "API_TOKEN_PROD",
            "TOKEN_2",
            "Authorization",
            "Set-Cookie",
            "AWS_SECRET_ACCESS_KEY",
            "SECRET_KEY_BASE",
            "credentials",
            "PRIVATE_KEY",
            "secretTokenUrl",
        ] {
            assert!(names_secret(secret), "{secret}");
        }
        for plain in [
            "MAX_TOKENS",
            "maxTokens",
            "max-tokens",
            "TOKEN_LIMIT",
            "TOKENS_PER_MINUTE",
            "tokenUrl",
            "TOKEN_TTL",
            "TOKENIZERS_PARALLELISM",
            "tokenizer",
            "KEY",
            "PORT",
            "GREETING",
            "",
        ] {
            assert!(!names_secret(plain), "{plain}");
        }
    }

    #[test]
    fn what_can_never_be_resolved_is_told_without_reading() {
        let secrets = secrets(&[Path::new("/run/secrets")]);
        for good in
            ["secret://env/GENNAKER_SECRET_OTHER", "secret://file/run/secrets/x", "secret://file//run/secrets/x"]
        {
            secrets.permits(good).expect(good);
            no_dead_ends(&json!([good])).expect(good);
        }
        assert!(matches!(secrets.permits("secret://env/HOME"), Err(Error::NameNotAllowed(_))));
        for outside in ["secret://file/etc/shadow", "secret://file/run/secrets/../x", "secret://file/run/secrets"] {
            assert!(matches!(secrets.permits(outside), Err(Error::PathNotAllowed(_))), "{outside}");
        }
        for (dead, what) in [
            (json!("secret://env/HOME"), "GENNAKER_SECRET_"),
            (json!("secret://vault/x"), "not a secret reference"),
            (json!("secret://file/"), "not a secret reference"),
            (json!("***"), "masked"),
        ] {
            let (pointer, message) = no_dead_ends(&json!({"a/b": ["x", {"c": dead}]})).expect_err("dead");
            assert_eq!(pointer, "/a~1b/1/c");
            assert!(message.contains(what), "{message}");
        }
        no_dead_ends(&json!({"a": "secret://env/${ parameters.name }", "b": "***x", "c": 1})).expect("not known yet");
    }

    #[test]
    fn a_mask_takes_values_out_of_texts_and_documents() {
        let mut mask = Mask::default();
        mask.add(&Secret("pass".into()));
        mask.add(&Secret("pass\"word&1".into()));
        mask.add(&Secret("abc".into()));
        mask.add(&Secret("4711471".into()));
        assert_eq!(mask.text("abc pass pass\"word&1"), "abc *** ***");
        assert_eq!(mask.text(r#"{"x":"pass\"word&1"}"#), r#"{"x":"***"}"#);
        assert_eq!(mask.text("?x=pass%22word%261"), "?x=***");
        assert_eq!(
            mask.json(json!({"pass": ["a pass", 4_711_471, true, null]})),
            json!({"***": ["a ***", "***", true, null]})
        );
        assert_eq!(mask.excerpt("ord&1 and pass\"wor"), "*** and ***");
        assert_eq!(mask.excerpt("pass\"word&1 and pass"), "*** and ***", "whole values at the ends");
        assert_eq!(mask.excerpt("pass\"word&1"), "***");
        assert_eq!(mask.excerpt("rd&1rd&1"), "***rd&1", "only what stands at an end is taken for a rest");
        assert_eq!((mask.excerpt(""), mask.excerpt("&1 x")), (String::new(), "&1 x".to_owned()));
        assert!(!format!("{mask:?} {:?}", Secret("pass".into())).contains("pass"));
    }
}
