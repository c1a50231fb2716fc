//! Notices in memory that end a poll's wait early. A notice that nobody hears is no loss: the
//! poll's own instant comes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use super::worker::Message;
use crate::model::{ExecutionId, StageId};

/// Where notices are given and heard. Cheap to clone.
#[derive(Clone, Default)]
pub struct Topics(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Rises with each notice.
    count: u64,
    topics: HashMap<String, Topic>,
}

#[derive(Default)]
struct Topic {
    /// The count at the topic's newest notice.
    newest: u64,
    waiting: HashMap<(ExecutionId, StageId), UnboundedSender<Message>>,
}

/// Topics remembered although nobody waits on them.
const REMEMBERED_MAX: usize = 10_000;

impl Inner {
    fn topic(&mut self, name: &str) -> &mut Topic {
        if self.topics.len() >= REMEMBERED_MAX && !self.topics.contains_key(name) {
            self.topics.retain(|_, topic| !topic.waiting.is_empty());
        }
        self.topics.entry(name.to_owned()).or_default()
    }
}

impl Topics {
    /// Wakes every stage that polls on the topic.
    pub fn notify(&self, topic: &str) {
        let mut inner = self.lock();
        inner.count += 1;
        let count = inner.count;
        let topic = inner.topic(topic);
        topic.newest = count;
        for ((_, stage), sender) in topic.waiting.drain() {
            // A worker that is gone has left its row's instant behind.
            let _ = sender.send(Message::Noticed(stage));
        }
    }

    /// Wakes those on all topics that begin so.
    pub(super) fn notify_all(&self, prefix: &str) {
        let topics: Vec<String> =
            self.lock().topics.keys().filter(|topic| topic.starts_with(prefix)).cloned().collect();
        for topic in topics {
            self.notify(&topic);
        }
    }

    /// Where the notices stand, to be given to [`Topics::wait`] later.
    pub(super) fn mark(&self) -> u64 {
        self.lock().count
    }

    /// Has the next notice on the topic sent to the worker. True: one came since the mark, go on at once.
    pub(super) fn wait(
        &self,
        topic: &str,
        mark: u64,
        execution: ExecutionId,
        stage: StageId,
        sender: &UnboundedSender<Message>,
    ) -> bool {
        let mut inner = self.lock();
        let topic = inner.topic(topic);
        if topic.newest > mark {
            return true;
        }
        topic.waiting.insert((execution, stage), sender.clone());
        false
    }

    /// The stage no longer waits.
    pub(super) fn leave(&self, topic: &str, execution: ExecutionId, stage: StageId) {
        if let Some(topic) = self.lock().topics.get_mut(topic) {
            topic.waiting.remove(&(execution, stage));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_on_which_nobody_waits_any_more_are_forgotten() {
        let topics = Topics::default();
        let (sender, mut inbox) = tokio::sync::mpsc::unbounded_channel();
        let (execution, waiting) = (ExecutionId::new(), StageId::new());
        assert!(!topics.wait("cluster:kept", topics.mark(), execution, waiting, &sender));
        for number in 0..2 * REMEMBERED_MAX {
            let (name, stage) = (format!("cluster:{number}"), StageId::new());
            assert!(!topics.wait(&name, topics.mark(), execution, stage, &sender));
            topics.leave(&name, execution, stage);
        }
        assert!(topics.lock().topics.len() <= REMEMBERED_MAX);
        topics.notify("cluster:kept");
        assert_eq!(inbox.try_recv(), Ok(Message::Noticed(waiting)));
    }
}
