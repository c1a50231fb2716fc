//! Those whom the server itself makes: the first administrator, and whoever is on the machine.

use crate::auth::token;
use crate::clock::Clock;
use crate::model::{Actor, Principal, PrincipalId, PrincipalKind, Role};
use crate::store::{self, Commit, CommitError, Guard, Store, Write};

use super::Error;

/// The name of the principal that the first start makes.
pub(super) const ADMIN: &str = "admin";
/// The name of the principal that stands for whoever may use the data directory itself.
const LOCAL: &str = "system";

/// The actor behind commands given on the machine itself: whoever may use the data directory
/// administers the server, and the audit log says that it was done from there.
///
/// # Errors
/// When the database fails.
pub async fn local_actor(store: &Store, clock: &Clock) -> Result<Actor, store::Error> {
    let name = LOCAL;
    loop {
        if let Some(found) = store.principal_by_name(name).await? {
            return Ok(Actor { principal: found.id, name: found.name, roles: found.roles });
        }
        let principal = Principal {
            id: PrincipalId::new(),
            name: name.to_owned(),
            kind: PrincipalKind::System,
            roles: vec![Role::Admin],
            created_at: clock.now(),
        };
        let commit = Commit {
            guards: vec![Guard::PrincipalNameFree { name: name.to_owned() }],
            writes: vec![Write::InsertPrincipal(principal)],
            events: Vec::new(),
        };
        match store.commit(commit).await {
            // Made now or by somebody else meanwhile: read it.
            Ok(_) | Err(CommitError::Refused(_)) => {}
            Err(error) => return Err(store::Error::Database(error.to_string())),
        }
    }
}

/// A token for the principal `admin` where it has never had one: at the first start, and after one
/// that was killed between making the principal and the token. The token's text.
pub(super) async fn first_principal(store: &Store, clock: &Clock) -> Result<Option<String>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::FirstPrincipal(error.to_string());
    if let Some(admin) = store.principal_by_name(ADMIN).await?
        && store.has_token(admin.id).await?
    {
        return Ok(None);
    }
    let local = local_actor(store, clock).await?;
    let now = clock.now();
    let admin = token::ensure_principal(store, &local, ADMIN, PrincipalKind::User, &[Role::Admin], now)
        .await
        .map_err(|error| failed(&error))?;
    let (_, text) = token::issue(store, &local, &admin, "made by the first start", now, None)
        .await
        .map_err(|error| failed(&error))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, Options};

    #[tokio::test]
    async fn a_first_start_that_was_killed_before_the_token_is_made_up_for() {
        let data_dir = std::env::temp_dir().join(format!("gennaker-app-{}", uuid::Uuid::new_v4().simple()));
        let options =
            Options { database_url: None, data_dir: data_dir.clone(), durability: Durability::Normal, queue_max: 64 };
        let clock = Clock::system();
        let store = Store::open(&options, clock.clone()).await.expect("opens");
        let local = local_actor(&store, &clock).await.expect("made");
        let roles = [Role::Admin];
        token::ensure_principal(&store, &local, ADMIN, PrincipalKind::User, &roles, clock.now()).await.expect("made");
        let text = first_principal(&store, &clock).await.expect("no fault").expect("a token");
        let id = token::parse(&text).expect("a token's text").id;
        assert!(store.token(id).await.expect("read").is_some());
        assert_eq!(first_principal(&store, &clock).await.expect("no fault"), None, "once");
        // Revoking it was somebody's wish: no start makes another.
        token::revoke(&store, &local, id, clock.now()).await.expect("revoked");
        assert_eq!(first_principal(&store, &clock).await.expect("no fault"), None);
        store.close().await;
        std::fs::remove_dir_all(data_dir).expect("removed");
    }
}
