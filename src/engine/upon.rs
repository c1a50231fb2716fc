//! What a step begins upon: a step begins while the commit that makes it due is still to be made.
//! Up to where it first waits it runs before that commit is handed in, so that the intent of its
//! first call can go along, in one transaction with what made it due; nothing else of it leaves
//! the process before that commit has happened. Where it does not happen, the step has not either.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::store::{Commit, Followed, Following, Store};

/// The commit that a step begins upon.
#[derive(Clone, Default)]
pub(super) struct Upon(Option<Arc<Unsaved>>);

struct Unsaved {
    /// What goes along; None once it has been handed in.
    along: Mutex<Option<Vec<Following>>>,
    /// None: not known yet.
    saved: watch::Sender<Option<bool>>,
}

impl Upon {
    /// Everything is saved already.
    pub fn saved() -> Self {
        Self::default()
    }

    /// A commit that its owner is about to make.
    pub fn unsaved() -> (Self, Fate) {
        let unsaved = Unsaved { along: Mutex::new(Some(Vec::new())), saved: watch::Sender::new(None) };
        let upon = Self(Some(Arc::new(unsaved)));
        (upon.clone(), Fate(upon))
    }

    /// Takes the commit along where that is still possible.
    pub fn take_along(&self, store: &Store, commit: Commit) -> Result<Followed, Commit> {
        let Some(unsaved) = &self.0 else { return Err(commit) };
        let mut along = unsaved.along.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(along) = along.as_mut() else { return Err(commit) };
        let (following, followed) = store.following(commit);
        along.push(following);
        Ok(followed)
    }

    /// Waits until it is known whether the commit has happened.
    pub async fn holds(&self) -> bool {
        let Some(unsaved) = &self.0 else { return true };
        let mut saved = unsaved.saved.subscribe();
        let known = saved.wait_for(Option::is_some).await;
        known.is_ok_and(|saved| *saved == Some(true))
    }
}

/// The owner's side. Dropped before it is said what became of the commit, it has not happened.
pub(super) struct Fate(Upon);

impl Fate {
    /// What goes along, once; from here on nothing more does.
    pub fn along(&self) -> Vec<Following> {
        let along =
            self.0.0.as_ref().and_then(|unsaved| unsaved.along.lock().unwrap_or_else(PoisonError::into_inner).take());
        along.unwrap_or_default()
    }

    /// Says what became of it, and hears what holds: the first word counts.
    pub fn is(&self, saved: bool) -> bool {
        let Some(unsaved) = &self.0.0 else { return true };
        unsaved.saved.send_if_modified(|known| known.is_none() && known.replace(saved).is_none());
        *unsaved.saved.borrow() == Some(true)
    }
}

impl Drop for Fate {
    fn drop(&mut self) {
        self.is(false);
    }
}
