//! Who somebody is, by token, and what they may do.

mod authenticator;
pub mod token;

pub use authenticator::{Authenticator, Unauthenticated};

use crate::model::{Action, Actor, Resource, Role};

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{actor} may not {action} here; it needs the role {needs}")]
pub struct Denied {
    /// The principal's name.
    pub actor: String,
    /// What was wanted, in lower case: `save`.
    pub action: String,
    /// The least role that would do, in upper case: `OPERATOR`.
    pub needs: &'static str,
}

/// The one place that says who may do what. Denies by default.
///
/// # Errors
/// When the actor's roles do not allow the action on the resource.
pub fn allow(actor: &Actor, action: Action, resource: &Resource) -> Result<(), Denied> {
    let needs = match (action, resource) {
        (Action::Administer, _) => Role::Admin,
        (Action::Read, _) => Role::Viewer,
        (Action::Save | Action::Start | Action::Cancel | Action::Judge | Action::Operate, _) => Role::Operator,
    };
    if actor.has(needs) {
        return Ok(());
    }
    Err(Denied {
        actor: actor.name.clone(),
        action: format!("{action:?}").to_lowercase(),
        needs: match needs {
            Role::Viewer => "VIEWER",
            Role::Operator => "OPERATOR",
            Role::Admin => "ADMIN",
        },
    })
}
