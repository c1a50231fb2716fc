//! What the only writer of a database remembers from one transaction to the next.

use std::collections::HashMap;

use uuid::Uuid;

/// The columns of an execution that guards look at, as they are at this point of the batch.
#[derive(Debug, Clone)]
pub struct Row {
    pub version: i64,
    pub owner: Option<Uuid>,
    pub lease: i64,
    pub cancelled: bool,
    pub finished: bool,
}

/// What the only writer of a database knows of it after its last COMMIT. Forgotten as a whole
/// when a transaction fails.
#[derive(Debug, Default)]
pub struct Memory {
    /// Of executions that have not ended.
    pub rows: HashMap<Uuid, Row>,
    /// The newest event's position.
    pub position: Option<i64>,
}

/// What a transaction teaches.
#[derive(Debug)]
pub struct Learned {
    pub known: Memory,
    pub doubted: Vec<Uuid>,
}

/// Executions remembered; those in use come back by themselves.
const REMEMBERED_MAX: usize = 4096;

impl Memory {
    /// The transaction was committed.
    pub fn learn(&mut self, Learned { known: learned, doubted }: Learned) {
        for id in doubted {
            self.rows.remove(&id);
        }
        if self.rows.len() + learned.rows.len() > REMEMBERED_MAX {
            self.rows.clear();
        }
        for (id, row) in learned.rows {
            // One that has ended may be deleted by retention, which is not seen here.
            if row.finished {
                self.rows.remove(&id);
            } else {
                self.rows.insert(id, row);
            }
        }
        self.position = learned.position.or(self.position);
    }
}
