//! Accounts at clouds.

use async_graphql::{Context, ID, Object, Result};

use super::ids::Key;
use super::session::{not_found, session};
use crate::api::error::shown;
use crate::model;
use crate::near::did_you_mean;

/// An account at a cloud.
pub struct Account(pub model::Account);

/// An account at a cloud.
#[Object]
impl Account {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Account(self.0.name.clone()).id()
    }
    /// Unique.
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// The provider's kind: one of `providerKinds`.
    async fn provider(&self) -> &str {
        &self.0.provider
    }
    /// Regions, zones, namespaces or hosts.
    async fn locations(&self) -> &[String] {
        &self.0.locations
    }
    /// Why what is shown of it may be old: since when it could not be read, and what its provider answers. None
    /// while it can be read.
    async fn problem(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        Ok(session(ctx)?.api.inventory.unreadable(&self.0.name).map(|unreadable| unreadable.to_string()))
    }
}

/// The problem of what an account has: its own, and that the account cannot be read.
pub(super) fn with_problem_of(ctx: &Context<'_>, account: &str, own: Option<String>) -> Result<Option<String>> {
    let unreadable = session(ctx)?.api.inventory.unreadable(account);
    let of_account = unreadable.map(|unreadable| format!("the state of account `{account}` may be old: {unreadable}"));
    let problems: Vec<String> = of_account.into_iter().chain(own).collect();
    Ok((!problems.is_empty()).then(|| problems.join("; ")))
}

/// Queries for accounts.
#[derive(Default)]
pub struct AccountQuery;

#[Object]
impl AccountQuery {
    /// The account of that name.
    async fn account(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.")] name: String,
    ) -> Result<Option<Account>> {
        let session = session(ctx)?;
        session.may(model::Action::Read, &model::Resource::Server)?;
        let accounts = session.api.inventory.accounts();
        let near = did_you_mean(&name, accounts.iter().map(|account| account.name.as_str()));
        match accounts.iter().find(|account| account.name == name) {
            Some(found) => Ok(Some(Account(found.clone()))),
            None => Err(not_found(format!("there is no account `{}`{near}", shown(&name)))),
        }
    }
    /// The accounts of clouds, at most 1,000.
    async fn accounts(&self, ctx: &Context<'_>) -> Result<Vec<Account>> {
        let session = session(ctx)?;
        session.may(model::Action::Read, &model::Resource::Server)?;
        Ok(session.api.inventory.accounts().into_iter().take(1_000).map(Account).collect())
    }
}
