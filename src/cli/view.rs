//! The live tree of one execution, from the events of a subscription: a picture that is drawn
//! again on a terminal, or a line per change where there is none.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use crate::model::Status;

/// What a picture needs of an execution.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecutionView {
    name: String,
    number: i64,
    status: Status,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    #[serde(default)]
    failure: Option<FailureView>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StageView {
    id: String,
    #[serde(default)]
    parent_id: Option<String>,
    name: String,
    status: Status,
    position: i64,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    #[serde(default)]
    progress: Option<ProgressView>,
    #[serde(default)]
    tasks: Vec<TaskView>,
    #[serde(default)]
    failure: Option<FailureView>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ProgressView {
    completed: i64,
    total: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    unit: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TaskView {
    name: String,
    status: Status,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureView {
    pub code: String,
    pub message: String,
    #[serde(default)]
    pub hint: Option<String>,
    #[serde(default)]
    pub log_tail: Option<String>,
}

/// An execution as its events tell it.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    execution: Option<ExecutionView>,
    stages: BTreeMap<String, StageView>,
}

impl Tree {
    /// Takes an event in; what changed, a line each, for where there is no terminal. An event
    /// that has nothing for the tree changes nothing.
    pub fn apply(&mut self, event: &Value) -> Vec<String> {
        let event = &all_visible(event);
        let at = event["occurredAt"].as_str().and_then(|text| text.parse().ok());
        let mut lines = Vec::new();
        if let Some(execution) = event.get("changed").or_else(|| event.get("snapshot"))
            && let Ok(view) = ExecutionView::deserialize(execution)
        {
            let line = (self.execution.as_ref().is_none_or(|old| old.status != view.status)
                && view.status != Status::NotStarted)
                .then(|| {
                    let failure = view.failure.as_ref().map(|f| format!(": {}", f.message)).unwrap_or_default();
                    format!("{} #{} {}{failure}", view.name, view.number, word(view.status))
                });
            self.execution = Some(view);
            lines.extend(line);
        }
        let snapshot = event.pointer("/snapshot/stages").and_then(Value::as_array).into_iter().flatten();
        for stage in snapshot.chain(event.get("stage")) {
            if let Ok(view) = StageView::deserialize(stage) {
                let old = self.stages.insert(view.id.clone(), view.clone());
                lines.extend(self.changes(old.as_ref(), &view));
            }
        }
        lines.into_iter().map(|line| format!("{:>8}  {line}", self.since_start(at))).collect()
    }

    /// How the execution ended; None while it has not.
    #[must_use]
    pub fn ended(&self) -> Option<Status> {
        self.execution.as_ref().map(|execution| execution.status).filter(|status| status.is_complete())
    }

    /// Why the execution failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&FailureView> {
        self.execution.as_ref()?.failure.as_ref()
    }

    /// The picture, a line each.
    #[must_use]
    pub fn draw(&self, now: DateTime<Utc>, paint: Paint) -> Vec<String> {
        let Some(execution) = &self.execution else { return Vec::new() };
        // An operation is one stage of the same name: one line says it all.
        if let [only] = self.children(None)[..]
            && only.name == execution.name
            && self.children(Some(&only.id)).is_empty()
        {
            let note = only.failure.as_ref().map(|failure| failure.message.clone());
            let note = note.or_else(|| only.progress.as_ref().map(sentence)).unwrap_or_default();
            let time = elapsed(execution.started_at, execution.ended_at, now);
            return vec![row(paint, 1, execution.status, &only.name, &time, &note)];
        }
        let mut lines = vec![row(
            paint,
            0,
            execution.status,
            &format!("{} #{}", execution.name, execution.number),
            &elapsed(execution.started_at, execution.ended_at, now),
            "",
        )];
        self.draw_children(None, 1, now, paint, &mut lines);
        lines
    }

    fn draw_children(
        &self,
        parent: Option<&str>,
        depth: usize,
        now: DateTime<Utc>,
        paint: Paint,
        to: &mut Vec<String>,
    ) {
        for stage in self.children(parent) {
            let note = match (&stage.failure, &stage.progress) {
                (Some(failure), _) => failure.message.clone(),
                (None, Some(progress)) if stage.tasks.is_empty() || stage.status.is_complete() => sentence(progress),
                _ => String::new(),
            };
            let time = elapsed(stage.started_at, stage.ended_at, now);
            to.push(row(paint, depth, stage.status, &stage.name, &time, &note));
            if stage.status == Status::Running {
                for task in &stage.tasks {
                    let note = match (&stage.progress, task.status) {
                        (Some(progress), Status::Running) => sentence(progress),
                        _ => String::new(),
                    };
                    let time = elapsed(task.started_at, task.ended_at, now);
                    to.push(row(paint, depth + 1, task.status, &task.name, &time, &note));
                }
            }
            self.draw_children(Some(&stage.id), depth + 1, now, paint, to);
        }
    }

    fn children(&self, parent: Option<&str>) -> Vec<&StageView> {
        let mut children: Vec<_> = self.stages.values().filter(|stage| stage.parent_id.as_deref() == parent).collect();
        children.sort_by_key(|stage| stage.position);
        children
    }

    fn changes(&self, old: Option<&StageView>, new: &StageView) -> Vec<String> {
        let path = self.path(new);
        let mut lines = Vec::new();
        let changed = old.map_or(new.status != Status::NotStarted, |old| old.status != new.status);
        if changed && !new.status.is_complete() {
            lines.push(format!("{path} {}", word(new.status)));
        }
        for task in &new.tasks {
            let before = old.and_then(|old| old.tasks.iter().find(|t| t.name == task.name)).map(|t| t.status);
            if task.status == Status::Running && before != Some(task.status) {
                lines.push(format!("{path} › {}", task.name));
            }
        }
        if let Some(progress) = &new.progress
            && old.and_then(|old| old.progress.as_ref()) != Some(progress)
        {
            lines.push(format!("{path}: {}", sentence(progress)));
        }
        if changed && new.status.is_complete() {
            let failure = new.failure.as_ref().map(|f| format!(": {}", f.message)).unwrap_or_default();
            lines.push(format!("{path} {}{failure}", word(new.status)));
        }
        lines
    }

    fn path(&self, stage: &StageView) -> String {
        let mut names = vec![stage.name.as_str()];
        let mut parent = stage.parent_id.as_ref();
        // A tree has no cycles, but what came over a network may.
        while let Some(above) = parent.and_then(|id| self.stages.get(id)).filter(|_| names.len() < 16) {
            names.push(&above.name);
            parent = above.parent_id.as_ref();
        }
        names.reverse();
        names.join(" › ")
    }

    fn since_start(&self, at: Option<DateTime<Utc>>) -> String {
        let start = self.execution.as_ref().and_then(|execution| execution.started_at);
        match (start, at) {
            (Some(start), Some(at)) => seconds(at - start),
            _ => seconds(chrono::TimeDelta::zero()),
        }
    }
}

/// A text from elsewhere as a terminal may have it: control characters are written out, so that none
/// reaches the terminal; line ends and tabs stay.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.replace("\r\n", "\n").chars() {
        match char {
            '\n' | '\t' => shown.push(char),
            char if char.is_control() => shown.extend(char.escape_unicode()),
            char => shown.push(char),
        }
    }
    shown
}

/// The same with every text of a document.
#[must_use]
pub fn all_visible(value: &Value) -> Value {
    match value {
        Value::String(text) => visible(text).into(),
        Value::Array(items) => items.iter().map(all_visible).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (visible(key), all_visible(value))).collect(),
        other => other.clone(),
    }
}

/// Whether a picture has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// The text in a colour of the terminal, by its SGR number.
    #[must_use]
    pub fn with(self, colour: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Dim.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// Bold.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }
}

const NAME_WIDTH: usize = 46;

fn row(paint: Paint, depth: usize, status: Status, name: &str, time: &str, note: &str) -> String {
    let indent = "  ".repeat(depth);
    let room = NAME_WIDTH.saturating_sub(indent.len());
    let name: String = name.chars().take(room).collect();
    let pad = " ".repeat(room - name.chars().count());
    let (sign, colour) = sign(status);
    let name = if status == Status::NotStarted { paint.dim(&name) } else { name };
    let note = note.lines().next().unwrap_or_default();
    format!("{indent}{} {name}{pad}{} {note}", paint.with(colour, sign), paint.dim(&format!("{time:>8}")))
        .trim_end()
        .to_owned()
}

const fn sign(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::NotStarted => ("○", "2"),
        Status::Running => ("●", "33"),
        Status::Paused => ("‖", "33"),
        Status::Succeeded => ("✓", "32"),
        Status::FailedContinue => ("!", "33"),
        Status::Failed => ("✗", "31"),
        Status::Canceled | Status::Stopped => ("■", "31"),
        Status::Skipped => ("–", "2"),
    }
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::NotStarted => "is not started",
        Status::Running => "started",
        Status::Paused => "is paused",
        Status::Succeeded => "succeeded",
        Status::FailedContinue => "failed, and the rest goes on",
        Status::Failed => "failed",
        Status::Canceled => "was cancelled",
        Status::Stopped => "was stopped",
        Status::Skipped => "was skipped",
    }
}

fn sentence(progress: &ProgressView) -> String {
    if progress.message.is_empty() {
        format!("{} of {} {}", progress.completed, progress.total, progress.unit)
    } else {
        progress.message.clone()
    }
}

fn elapsed(start: Option<DateTime<Utc>>, end: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    start.map_or_else(String::new, |start| seconds(end.unwrap_or(now) - start))
}

fn seconds(span: chrono::TimeDelta) -> String {
    let millis = span.num_milliseconds().max(0);
    if millis < 60_000 {
        format!("{}.{} s", millis / 1000, millis % 1000 / 100)
    } else {
        format!("{}:{:02} min", millis / 60_000, millis / 1000 % 60)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stage(status: &str, message: &str) -> Value {
        json!({
            "id": "st_2", "parentId": "st_1", "name": "Create", "kind": "createServerGroup", "status": status,
            "position": 1, "startedAt": "2026-01-01T00:00:01Z", "endedAt": null,
            "progress": {"completed": 2, "total": 3, "message": message},
            "tasks": [{"name": "wait for health", "status": status,
                       "startedAt": "2026-01-01T00:00:02Z", "endedAt": null}],
        })
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.apply(&json!({
            "occurredAt": "2026-01-01T00:00:00Z",
            "snapshot": {
                "name": "deploy hello", "number": 1, "status": "RUNNING", "startedAt": "2026-01-01T00:00:00Z",
                "endedAt": null,
                "stages": [{"id": "st_1", "name": "Deploy", "kind": "deploy", "status": "RUNNING", "position": 0,
                            "startedAt": "2026-01-01T00:00:00Z", "endedAt": null}],
            },
        }));
        tree
    }

    #[test]
    fn a_change_is_told_once_with_its_path_and_time() {
        let mut tree = tree();
        let event = json!({"occurredAt": "2026-01-01T00:00:02.5Z", "stage": stage("RUNNING", "2 of 3 healthy")});
        assert_eq!(
            tree.apply(&event),
            [
                "   2.5 s  Deploy › Create started",
                "   2.5 s  Deploy › Create › wait for health",
                "   2.5 s  Deploy › Create: 2 of 3 healthy",
            ]
        );
        assert!(tree.apply(&event).is_empty());
    }

    #[test]
    fn the_picture_shows_tasks_of_what_runs_and_hides_those_of_what_is_over() {
        let mut tree = tree();
        tree.apply(&json!({"stage": stage("RUNNING", "2 of 3 healthy")}));
        let now = "2026-01-01T00:00:05Z".parse().expect("a time");
        let picture = tree.draw(now, Paint(false));
        assert_eq!(picture.len(), 4, "{picture:#?}");
        assert!(picture[0].starts_with("● deploy hello #1") && picture[0].ends_with("5.0 s"), "{}", picture[0]);
        assert!(picture[3].contains("wait for health") && picture[3].ends_with("2 of 3 healthy"), "{}", picture[3]);
        tree.apply(&json!({"stage": stage("SUCCEEDED", "3 of 3 healthy")}));
        assert_eq!(tree.draw(now, Paint(false)).len(), 3);
    }

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(visible("a\x1b[31m\tb\r\nc\rd\u{9b}\x07é"), "a\\u{1b}[31m\tb\nc\\u{d}d\\u{9b}\\u{7}é");
        assert_eq!(all_visible(&json!({"\x1b": ["\x7f", 1, null]})), json!({"\\u{1b}": ["\\u{7f}", 1, null]}));
        let mut tree = tree();
        let lines = tree.apply(&json!({"stage": stage("RUNNING", "\x1b]0;title\x07")}));
        let picture = tree.draw("2026-01-01T00:00:05Z".parse().expect("a time"), Paint(false));
        for lines in [lines, picture] {
            let text = lines.join("\n");
            assert!(text.contains("\\u{1b}]0;title\\u{7}") && !text.contains('\x1b'), "{text}");
        }
    }

    #[test]
    fn an_operation_of_one_stage_is_one_line() {
        let mut tree = Tree::default();
        let name = "Upsert load balancer hello";
        tree.apply(&json!({"snapshot": {
            "name": name, "number": 2, "status": "RUNNING", "startedAt": "2026-01-01T00:00:00Z", "endedAt": null,
            "stages": [{"id": "st_1", "name": name, "kind": "upsertLoadBalancer", "status": "RUNNING", "position": 0,
                        "startedAt": "2026-01-01T00:00:00Z", "endedAt": null,
                        "progress": {"completed": 1, "total": 1, "message": "1 of 1 listen"}}],
        }}));
        let picture = tree.draw("2026-01-01T00:00:01Z".parse().expect("a time"), Paint(false));
        assert_eq!(picture.len(), 1, "{picture:#?}");
        assert!(picture[0].contains(name) && picture[0].ends_with("1 of 1 listen"), "{}", picture[0]);
    }

    #[test]
    fn the_end_is_seen() {
        let mut tree = tree();
        assert_eq!(tree.ended(), None);
        tree.apply(&json!({"changed": {
            "name": "deploy hello", "number": 1, "status": "FAILED", "startedAt": "2026-01-01T00:00:00Z",
            "endedAt": "2026-01-01T00:01:30Z", "failure": {"code": "TIMEOUT", "message": "too late"},
        }}));
        assert_eq!(tree.ended(), Some(Status::Failed));
        assert_eq!(tree.failure().map(|failure| failure.message.as_str()), Some("too late"));
        let picture = tree.draw(DateTime::default(), Paint(false));
        assert!(picture[0].ends_with("1:30 min"), "{}", picture[0]);
    }
}
