//! The tasks of a stage, as people see them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Changes, Setting};
use crate::model::{Stage, Status, Task};

/// Brings the tasks people see in line with the cursor.
pub(super) fn sync_tasks(stage: &mut Stage, setting: &Setting, index: usize, changes: &mut Changes) {
    let (Some(kind), Some(config)) = (setting.registry.get(&stage.kind), &stage.resolved) else { return };
    let Ok((names, current)) = catch_unwind(AssertUnwindSafe(|| kind.tasks(config, &stage.cursor))) else { return };
    let now = setting.now;
    let mut changed = false;
    for (place, name) in names.iter().enumerate() {
        if stage.tasks.len() <= place {
            stage.tasks.push(Task {
                name: (*name).to_owned(),
                status: Status::NotStarted,
                started_at: None,
                ended_at: None,
            });
            changed = true;
        }
        let task = &mut stage.tasks[place];
        let status = match (place.cmp(&current), task.status) {
            (std::cmp::Ordering::Less, Status::Running) => Status::Succeeded,
            (std::cmp::Ordering::Less, Status::NotStarted) => Status::Skipped,
            (std::cmp::Ordering::Equal, _) => Status::Running,
            (_, present) => present,
        };
        if status == task.status {
            continue;
        }
        changed = true;
        task.status = status;
        match status {
            Status::Running => {
                task.started_at.get_or_insert(now);
                task.ended_at = None;
            }
            Status::Succeeded => task.ended_at = Some(now),
            _ => {}
        }
    }
    if changed {
        changes.seen(index);
    }
}
