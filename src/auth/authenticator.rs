//! From a token's text to an actor, with a small memory so that a busy client costs no query per
//! request. What the memory says is at most ten seconds old; a revocation in this process ends it
//! at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

use super::token;
use crate::clock::Clock;
use crate::model::{Actor, Principal, Token, TokenId};
use crate::store::{self, Store};

const CACHED_MAX: usize = 1_024;
const CACHED_FOR: TimeDelta = TimeDelta::seconds(10);

/// Why nobody could be recognised.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// The request has no token.
    #[error("there is no token; send `Authorization: Bearer gnk_…` (make one with `gennaker token create`)")]
    Missing,
    /// Unknown, wrong, expired or revoked: the caller need not learn which.
    #[error("the token is not valid: it is unknown, has expired or was revoked")]
    Invalid,
    /// The database did not answer: nobody is let in.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Recognises tokens. Cheap to clone; clones share the memory.
#[derive(Clone)]
pub struct Authenticator {
    store: Store,
    clock: Clock,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    known: HashMap<TokenId, Known>,
    /// Rises with each revocation, so that a row read before one is not remembered after it.
    generation: u64,
}

#[derive(Clone)]
struct Known {
    token: Token,
    principal: Principal,
    since: DateTime<Utc>,
}

impl Authenticator {
    /// With nothing in memory.
    #[must_use]
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, cache: Arc::default() }
    }

    /// The actor behind a token's text.
    ///
    /// # Errors
    /// When the text is no token, or an unknown, expired or revoked one, or the database fails.
    pub async fn authenticate(&self, text: &str) -> Result<Actor, Unauthenticated> {
        let parsed = token::parse(text).ok_or(Unauthenticated::Invalid)?;
        let known = match self.remembered(parsed.id) {
            Some(known) => known,
            None => self.read(parsed.id).await?.ok_or(Unauthenticated::Invalid)?,
        };
        // The secret first, so that only its holder learns anything about the row's state.
        let now = self.clock.now();
        let valid = parsed.matches(&known.token.hash)
            && known.token.revoked_at.is_none()
            && known.token.expires_at.is_none_or(|at| now < at);
        if !valid {
            return Err(Unauthenticated::Invalid);
        }
        Ok(Actor { principal: known.principal.id, name: known.principal.name, roles: known.principal.roles })
    }

    /// Forgets what is known of a token; called after it was revoked.
    pub fn forget(&self, id: TokenId) {
        let mut cache = self.lock();
        cache.known.remove(&id);
        cache.generation += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, id: TokenId) -> Option<Known> {
        let now = self.clock.now();
        self.lock().known.get(&id).filter(|known| fresh(known, now)).cloned()
    }

    async fn read(&self, id: TokenId) -> Result<Option<Known>, store::Error> {
        let since = self.clock.now();
        let generation = self.lock().generation;
        let Some(token) = self.store.token(id).await? else { return Ok(None) };
        let Some(principal) = self.store.principal(token.principal).await? else { return Ok(None) };
        let known = Known { token, principal, since };
        let mut cache = self.lock();
        if cache.known.len() >= CACHED_MAX {
            cache.known.retain(|_, known| fresh(known, since));
        }
        if cache.known.len() < CACHED_MAX && cache.generation == generation {
            cache.known.insert(id, known.clone());
        }
        Ok(Some(known))
    }
}

/// A clock that was set back makes nothing fresh.
fn fresh(known: &Known, now: DateTime<Utc>) -> bool {
    let age = now - known.since;
    TimeDelta::zero() <= age && age < CACHED_FOR
}
