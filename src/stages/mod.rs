//! The kinds of stages, one file each. A kind is added by its file and one line in [`registry`].
//! Each is a persisted cursor and small idempotent steps ([`crate::engine::contract`]); what
//! several of them share about clouds is in [`cloud`], about their configs' schemas in [`schema`],
//! about configs with expressions in [`known`].

mod cloud;
mod create_server_group;
mod delete;
mod delete_load_balancer;
mod delete_security_group;
mod deploy;
mod destroy_server_group;
mod disable_server_group;
mod enable_server_group;
mod known;
mod manual_judgment;
mod resize_server_group;
mod schema;
mod upsert_load_balancer;
mod upsert_security_group;
mod wait;
mod webhook;

use crate::engine::contract::Registry;
use crate::inventory::Inventory;
use crate::outbound::Outbound;
use crate::secrets::Secrets;

/// What stages work with. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    /// What is known of the clouds, and the providers behind it.
    pub inventory: Inventory,
    /// The guarded client for webhooks.
    pub outbound: Outbound,
    /// Where `secret://` references are resolved.
    pub secrets: Secrets,
}

/// All kinds of stages.
#[must_use]
pub fn registry(deps: Deps) -> Registry {
    let Deps { inventory, outbound, secrets } = deps;
    Registry::default()
        .with(create_server_group::CreateServerGroup { inventory: inventory.clone() })
        .with(delete::Delete::<delete_load_balancer::LoadBalancer>::new(&inventory))
        .with(delete::Delete::<delete_security_group::SecurityGroup>::new(&inventory))
        .with(deploy::Deploy { inventory: inventory.clone() })
        .with(destroy_server_group::DestroyServerGroup { inventory: inventory.clone() })
        .with(disable_server_group::DisableServerGroup { inventory: inventory.clone() })
        .with(enable_server_group::EnableServerGroup { inventory: inventory.clone() })
        .with(manual_judgment::ManualJudgment)
        .with(resize_server_group::ResizeServerGroup { inventory: inventory.clone() })
        .with(upsert_load_balancer::UpsertLoadBalancer { inventory: inventory.clone() })
        .with(upsert_security_group::UpsertSecurityGroup { inventory })
        .with(wait::Wait)
        .with(webhook::Webhook { outbound, secrets })
}

#[cfg(test)]
pub(crate) mod tests;
