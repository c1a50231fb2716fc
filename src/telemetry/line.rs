//! A line of the log: text or one flat JSON object, with the fields of all spans around it, so
//! that a line can be found by the ids of its execution, stage or request. What looks like a
//! secret is masked, whoever wrote it.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter as _;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;
use crate::config::LogFormat;
use crate::secrets;

/// A field's text has at most this many bytes; a line is read by people.
const FIELD_BYTES_MAX: usize = 16 * 1024;
/// What access tokens begin with.
const TOKEN: &str = "gnk_";
/// What stands where a secret was.
const MASKED: &str = "***";

/// Writes lines.
pub(super) struct Lines {
    format: LogFormat,
    colours: bool,
    writer: BoxMakeWriter,
    clock: Clock,
}

impl Lines {
    pub(super) fn new(format: LogFormat, colours: bool, writer: BoxMakeWriter) -> Self {
        Self { format, colours, writer, clock: Clock::system() }
    }

    fn line(&self, level: Level, target: &str, fields: &Fields) -> String {
        let at = self.clock.now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        match self.format {
            LogFormat::Json => json(&at, level, target, fields),
            LogFormat::Text => text(&at, level, fields, self.colours),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                of_span.0.iter().for_each(|(name, value)| fields.put(name, value.clone()));
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut line = self.line(*metadata.level(), metadata.target(), &fields);
        line.push('\n');
        // A log that cannot be written to has nowhere to say so.
        let _ = self.writer.make_writer_for(metadata).write_all(line.as_bytes());
    }
}

/// Names and values, in the order of their first mention; the innermost stands.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn put(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    fn text(&mut self, field: &Field, mut text: String) {
        if secrets::names_secret(field.name()) {
            return self.put(field.name(), Value::from(MASKED));
        }
        if text.len() > FIELD_BYTES_MAX {
            text.truncate(text.floor_char_boundary(FIELD_BYTES_MAX));
            text.push('…');
        }
        self.put(field.name(), Value::from(masked(text)));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }
}

fn json(at: &str, level: Level, target: &str, fields: &Fields) -> String {
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), at.into());
    line.insert("level".to_owned(), level.as_str().into());
    line.insert("target".to_owned(), target.into());
    // The message first, since people read it; it is the last that an event records.
    if let Some((name, message)) = fields.0.iter().find(|(name, _)| *name == "message") {
        line.insert((*name).to_owned(), message.clone());
    }
    for (name, value) in &fields.0 {
        // What every line has cannot be taken by a field.
        line.entry(*name).or_insert_with(|| value.clone());
    }
    Value::Object(line).to_string()
}

fn text(at: &str, level: Level, fields: &Fields, colours: bool) -> String {
    let (colour, faint, plain) = match (colours, level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[32m", "\x1b[2m", "\x1b[0m"),
        (true, _) => ("\x1b[34m", "\x1b[2m", "\x1b[0m"),
    };
    let mut line = format!("{faint}{at}{plain} {colour}{:>5}{plain}", level.as_str());
    if let Some(Value::String(message)) = fields.0.iter().find(|(name, _)| *name == "message").map(|(_, value)| value) {
        line.push(' ');
        // One event is one line, whatever is quoted in it.
        line.push_str(&message.replace('\n', "\\n"));
    }
    for (name, value) in fields.0.iter().filter(|(name, _)| *name != "message") {
        let _ = match value {
            Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '\n', '=']) => {
                write!(line, " {faint}{name}={plain}{text}")
            }
            value => write!(line, " {faint}{name}={plain}{value}"),
        };
    }
    line
}

/// The text without access tokens and without the passwords of addresses.
fn masked(text: String) -> String {
    if !text.contains(TOKEN) && !text.contains("://") {
        return text;
    }
    let mut done = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(TOKEN) {
        let (before, found) = rest.split_at(at);
        let found = &found[TOKEN.len()..];
        let end = found.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(found.len());
        done.push_str(before);
        done.push_str(TOKEN);
        if end > 0 {
            done.push_str(MASKED);
        }
        rest = &found[end..];
    }
    done.push_str(rest);
    without_passwords(&done)
}

/// `postgres://user:password@host` without the password.
fn without_passwords(text: &str) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        done.push_str(before);
        let end = after.find(|c: char| c == '/' || c.is_whitespace() || c == '"' || c == '`').unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
            Some((user, host)) => {
                let _ = write!(done, "{user}:{MASKED}@{host}");
            }
            None => done.push_str(authority),
        }
        rest = tail;
    }
    done.push_str(rest);
    done
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("a lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, run: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = Lines::new(format, false, BoxMakeWriter::new(move || writer.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), run);
        let bytes = sink.0.lock().expect("a lock").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn within_spans() {
        let outer = tracing::error_span!(
            "execution",
            execution.id = "ex_1",
            execution.number = 7,
            late = tracing::field::Empty
        );
        let _outer = outer.enter();
        outer.record("late", "here");
        let inner = tracing::error_span!("step", stage.id = %"st_2", stage.attempt = 1);
        let _inner = inner.enter();
        tracing::warn!(level = "mine", stage.attempt = 2, "two\nlines of {}", "text");
    }

    #[test]
    fn a_line_of_json_has_the_fields_of_all_spans_at_its_top() {
        let text = logged(LogFormat::Json, within_spans);
        let line: Value = serde_json::from_str(&text).expect("one object");
        assert_eq!(line["execution.id"], "ex_1");
        assert_eq!(line["execution.number"], 7);
        assert_eq!(line["late"], "here");
        assert_eq!(line["stage.id"], "st_2");
        assert_eq!(line["stage.attempt"], 2, "the innermost stands");
        assert_eq!(line["message"], "two\nlines of text");
        assert_eq!(line["level"], "WARN", "what every line has is not taken by a field");
        assert!(line["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')));
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn a_line_of_text_is_one_line_with_the_same_fields() {
        let text = logged(LogFormat::Text, within_spans);
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.contains(" WARN two\\nlines of text "), "{text}");
        assert!(text.contains(" execution.id=ex_1 ") && text.contains(" stage.id=st_2 "), "{text}");
    }

    #[test]
    fn secrets_are_masked_whoever_logs_them() {
        let text = logged(LogFormat::Json, || {
            tracing::info!(
                password = "hunter2hunter2",
                url = "postgres://me:hunter2hunter2@db:5432/x?y=1",
                "token gnk_0123abcdEFGH_xyz, again (gnk_0123abcdEFGH_xyz) at http://u:hunter2hunter2@h/p"
            );
        });
        assert!(!text.contains("hunter2hunter2") && !text.contains("0123abcd"), "{text}");
        assert!(text.contains("postgres://me:***@db:5432/x?y=1") && text.contains("gnk_***"), "{text}");
    }
}
