//! What pipelines may be built of: kinds of stages, strategies and providers.

use async_graphql::{Context, Object, Result, SimpleObject};

use super::scalars::{Duration, Json};
use super::session::session;
use crate::model::{Action, Resource};

/// A kind of stage.
#[derive(SimpleObject)]
pub struct StageKind {
    /// Its name in pipelines: `resizeServerGroup`.
    kind: String,
    /// Its name for people.
    title: String,
    /// What it does.
    description: String,
    /// JSON Schema (2020-12) of the config.
    schema: Json,
    /// A config that passes the schema.
    example: Json,
    /// From a stage's start to its failure by timeout where the pipeline says nothing.
    timeout: Duration,
    /// The signals by which a person may end its wait.
    signals: Vec<String>,
}

/// A kind of trigger: what may start a pipeline without anybody asking.
#[derive(SimpleObject)]
pub struct TriggerKind {
    /// Its name in pipelines: `cron`.
    kind: String,
    /// Its name for people.
    title: String,
    /// What it does.
    description: String,
    /// JSON Schema (2020-12) of the config.
    schema: Json,
    /// A config that passes the schema.
    example: Json,
}

/// A deployment strategy: how a new server group takes over from the old ones.
#[derive(SimpleObject)]
pub struct StrategyKind {
    /// Its name in a deploy stage's config: `redBlack`.
    kind: String,
    /// Its name for people.
    title: String,
    /// What it does.
    description: String,
    /// JSON Schema (2020-12) of the options.
    schema: Json,
    /// Options that pass the schema.
    example: Json,
}

/// A provider: what server groups can run on.
#[derive(SimpleObject)]
pub struct ProviderKind {
    /// Its name: `host`.
    kind: String,
    /// Its name for people.
    title: String,
    /// What it runs server groups on.
    description: String,
    /// JSON Schema (2020-12) of a cluster's `launch`.
    schema: Json,
    /// A launch that passes the schema.
    example: Json,
}

/// A channel by which messages leave the server.
#[derive(SimpleObject)]
pub struct NotifierKind {
    /// Its name in notification rules: `email`.
    kind: String,
    /// Its name for people.
    title: String,
    /// What it does.
    description: String,
    /// JSON Schema (2020-12) of what stands below its name in a rule.
    schema: Json,
    /// Something that passes the schema.
    example: Json,
    /// Whether this server is set up for it; where it is not, deliveries end as `DEAD` and can be
    /// retried once it is.
    is_configured: bool,
}

/// Queries for kinds.
#[derive(Default)]
pub struct KindQuery;

#[Object]
impl KindQuery {
    /// All kinds of stages, by name.
    async fn stage_kinds(&self, ctx: &Context<'_>) -> Result<Vec<StageKind>> {
        let session = session(ctx)?;
        session.may(Action::Read, &Resource::Server)?;
        let of = |kind: crate::engine::contract::StageKind| StageKind {
            kind: kind.kind.into(),
            title: kind.title.into(),
            description: kind.description.into(),
            schema: Json(kind.schema),
            example: Json(kind.example),
            timeout: Duration::from(u64::try_from(kind.timeout.as_millis()).unwrap_or(u64::MAX)),
            signals: kind.signals.iter().map(|&signal| signal.into()).collect(),
        };
        Ok(session.api.registry.iter().map(|stage| of(stage.kind())).collect())
    }
    /// All kinds of triggers, by name.
    async fn trigger_kinds(&self, ctx: &Context<'_>) -> Result<Vec<TriggerKind>> {
        let session = session(ctx)?;
        session.may(Action::Read, &Resource::Server)?;
        let of = |kind: crate::engine::contract::TriggerKind| TriggerKind {
            kind: kind.kind.into(),
            title: kind.title.into(),
            description: kind.description.into(),
            schema: Json(kind.schema),
            example: Json(kind.example),
        };
        Ok(session.api.registry.triggers().map(|trigger| of(trigger.kind())).collect())
    }
    /// All deployment strategies.
    async fn strategy_kinds(&self, ctx: &Context<'_>) -> Result<Vec<StrategyKind>> {
        session(ctx)?.may(Action::Read, &Resource::Server)?;
        let of = |strategy: &dyn crate::strategies::Strategy| StrategyKind {
            kind: strategy.kind().into(),
            title: strategy.title().into(),
            description: strategy.description().into(),
            schema: Json(strategy.schema()),
            example: Json(strategy.example()),
        };
        Ok(crate::strategies::all().iter().map(|strategy| of(&**strategy)).collect())
    }
    /// The channels by which messages leave the server. Every message goes to the feed besides.
    async fn notifier_kinds(&self, ctx: &Context<'_>) -> Result<Vec<NotifierKind>> {
        let session = session(ctx)?;
        session.may(Action::Read, &Resource::Server)?;
        let of = |kind: crate::notifiers::Kind| NotifierKind {
            is_configured: session.api.notifiers.get(kind.kind).is_some(),
            kind: kind.kind.into(),
            title: kind.title.into(),
            description: kind.description.into(),
            schema: Json(kind.schema),
            example: Json(kind.example),
        };
        Ok(crate::notifiers::kinds().into_iter().map(of).collect())
    }
    /// The kinds of providers that have an account here.
    async fn provider_kinds(&self, ctx: &Context<'_>) -> Result<Vec<ProviderKind>> {
        let session = session(ctx)?;
        session.may(Action::Read, &Resource::Server)?;
        let mut kinds: Vec<ProviderKind> = Vec::new();
        for account in session.api.inventory.accounts() {
            let Ok(provider) = session.api.inventory.provider(&account.name) else { continue };
            let kind = provider.kind();
            if kinds.iter().all(|known| known.kind != kind.kind) {
                kinds.push(ProviderKind {
                    kind: kind.kind.into(),
                    title: kind.title.into(),
                    description: kind.description.into(),
                    schema: Json(kind.schema),
                    example: Json(kind.example),
                });
            }
        }
        Ok(kinds)
    }
}
