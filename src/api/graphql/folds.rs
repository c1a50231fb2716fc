//! What executions were at the events where pages of them ended, so that the next page goes on
//! from there instead of from the first event. An event never changes, so nothing here is ever out
//! of date; what is not here is folded from the log.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::stage::Siblings;
use crate::model::{Execution, ExecutionId, Stage};

/// Bytes of all that is kept, as JSON.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// A larger one is not kept: it would push out too many others.
const ONE_MAX: usize = BYTES_MAX / 8;
/// How many are kept.
const COUNT_MAX: usize = 256;

/// An execution as its events up to one have told it. What events leave out is left out.
#[derive(Debug, Clone)]
pub struct Folded {
    pub seq: i64,
    pub own: Arc<Execution>,
    pub stages: Siblings,
}

/// See the module. Cheap to clone; clones share what is kept.
#[derive(Debug, Clone, Default)]
pub struct Folds(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// The last used first.
    entries: VecDeque<(ExecutionId, Folded, usize)>,
    bytes: usize,
}

impl Folds {
    /// The execution at the last known event that is not behind this one.
    pub fn before(&self, id: ExecutionId, seq: i64) -> Option<Folded> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(_, entry): &(usize, &(ExecutionId, Folded, usize))| entry.0 == id && entry.1.seq <= seq;
        let (place, _) = kept.entries.iter().enumerate().filter(fits).max_by_key(|(_, entry)| entry.1.seq)?;
        let entry = kept.entries.remove(place)?;
        let folded = entry.1.clone();
        kept.entries.push_front(entry);
        Some(folded)
    }

    /// Keeps an execution as it was at an event.
    pub fn keep(&self, id: ExecutionId, seq: i64, own: &Arc<Execution>, stages: &Siblings) {
        let stages: Vec<_> =
            stages.iter().map(|stage| Arc::new(Stage { outputs: stage.outputs.clone(), ..stage.header() })).collect();
        let bytes = size(own, &stages);
        if bytes > ONE_MAX {
            return;
        }
        let folded = Folded { seq, own: Arc::clone(own), stages: Arc::new(stages) };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.entries.iter().any(|(known, folded, _)| *known == id && folded.seq == seq) {
            return;
        }
        kept.entries.push_front((id, folded, bytes));
        kept.bytes += bytes;
        while kept.bytes > BYTES_MAX || kept.entries.len() > COUNT_MAX {
            let Some((_, _, bytes)) = kept.entries.pop_back() else { return };
            kept.bytes -= bytes;
        }
    }
}

/// Bytes as JSON, which is about what it takes in memory.
fn size(own: &Execution, stages: &[Arc<Stage>]) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    let counted = serde_json::to_writer(&mut count, own)
        .and_then(|()| stages.iter().try_for_each(|stage| serde_json::to_writer(&mut count, &**stage)));
    // What cannot be measured is not kept.
    counted.map_or(usize::MAX, |()| count.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::EventBody;

    const EXECUTION: &str = include_str!("../../store/fixtures/event-execution-1.json");
    const STAGE: &str = include_str!("../../store/fixtures/event-stage-1.json");

    /// An execution of one stage with outputs of so many bytes.
    fn execution(bytes: usize) -> (Arc<Execution>, Siblings) {
        let EventBody::ExecutionChanged { execution } = serde_json::from_str(EXECUTION).expect("an event") else {
            panic!("another event");
        };
        let EventBody::StageChanged { mut stage } = serde_json::from_str(STAGE).expect("an event") else {
            panic!("another event");
        };
        stage.config = json!({"large": "x".repeat(bytes)});
        stage.outputs = json!({"text": "x".repeat(bytes)});
        (Arc::from(execution), Arc::new(vec![Arc::from(stage)]))
    }

    #[test]
    fn the_nearest_before_an_event_is_found() {
        let (folds, id, (own, stages)) = (Folds::default(), ExecutionId::new(), execution(10));
        for seq in [5, 20, 10] {
            folds.keep(id, seq, &own, &stages);
        }
        folds.keep(ExecutionId::new(), 12, &own, &stages);
        let found = |seq| folds.before(id, seq).map(|folded| folded.seq);
        assert_eq!(
            [4, 5, 9, 10, 19, 20, 99].map(found),
            [None, Some(5), Some(5), Some(10), Some(10), Some(20), Some(20)]
        );
        let kept = folds.before(id, 5).expect("kept").stages;
        assert_eq!((&kept[0].outputs, kept[0].config.is_null()), (&stages[0].outputs, true), "configs are in the rows");
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_last_used_stays() {
        let (folds, id, (own, stages)) = (Folds::default(), ExecutionId::new(), execution(ONE_MAX / 2));
        for seq in 1..=100 {
            folds.keep(id, seq, &own, &stages);
            assert!(folds.before(id, 1).is_some(), "used all along");
        }
        let bytes = folds.0.lock().expect("no panic").bytes;
        assert!(bytes <= BYTES_MAX && bytes > BYTES_MAX / 2, "{bytes}");
        assert_eq!(folds.before(id, 50).map(|folded| folded.seq), Some(1), "others made room");
        let (own, stages) = execution(ONE_MAX);
        folds.keep(id, 200, &own, &stages);
        assert_eq!(folds.before(id, 200).map(|folded| folded.seq), Some(100), "too large");
        let (folds, (own, stages)) = (Folds::default(), execution(1));
        (1..=1_000).for_each(|seq| folds.keep(id, seq, &own, &stages));
        assert_eq!(folds.0.lock().expect("no panic").entries.len(), COUNT_MAX);
    }
}
