//! Anything that has a global id, by that id.

use async_graphql::{Context, ID, Interface, Object, PathSegment, Result};

use super::access::{AuditEntry, Principal, Token};
use super::account::Account;
use super::application::Application;
use super::cluster::Cluster;
use super::delivery::Delivery;
use super::execution::Execution;
use super::ids::{self, Key};
use super::instance::Instance;
use super::intent::Intent;
use super::load_balancer::LoadBalancer;
use super::notification::Notification;
use super::pipeline::{Pipeline, PipelineRevision};
use super::place::Placed;
use super::security_group::SecurityGroup;
use super::server_group::ServerGroup;
use super::session::session;
use super::stage::{self, Stage};
use crate::api::error::{Code, coded, stored};
use crate::model::{Action, Resource};

const NODES_MAX: usize = 100;

/// Has a global id, by which it can be asked for again.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID", desc = "Opaque and global."))]
pub enum Node {
    Application(Application),
    Pipeline(Pipeline),
    PipelineRevision(PipelineRevision),
    Execution(Execution),
    Stage(Stage),
    Notification(Notification),
    Delivery(Delivery),
    Principal(Principal),
    Token(Token),
    AuditEntry(AuditEntry),
    Intent(Intent),
    Account(Account),
    Cluster(Cluster),
    ServerGroup(ServerGroup),
    Instance(Instance),
    LoadBalancer(LoadBalancer),
    SecurityGroup(SecurityGroup),
}

/// Queries by global id.
#[derive(Default)]
pub struct NodeQuery;

#[Object]
impl NodeQuery {
    /// What that id names; null when it is gone or may not be seen.
    async fn node(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "As a field `id` gave it.")] id: ID,
    ) -> Result<Option<Node>> {
        find(ctx, ids::parse(&id)?).await
    }
    /// What those ids name, in their order; null where it is gone or may not be seen, and, with an error beside it,
    /// where it is no id.
    async fn nodes(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "As fields `id` gave them; at most 100.")] ids: Vec<ID>,
    ) -> Result<Vec<Option<Node>>> {
        if ids.len() > NODES_MAX {
            let message = format!("{} ids are too many; ask for at most {NODES_MAX} at a time", ids.len());
            return Err(coded(Code::PageLimitExceeded, message));
        }
        let mut nodes = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            let found = match ids::parse(id) {
                Ok(key) => find(ctx, key).await,
                Err(error) => Err(error),
            };
            // One that cannot be answered takes no other's answer along.
            nodes.push(found.unwrap_or_else(|error| {
                let mut error = ctx.set_error_path(error.into_server_error(ctx.item.pos));
                error.path.push(PathSegment::Index(index));
                ctx.add_error(error);
                None
            }));
        }
        Ok(nodes)
    }
}

async fn find(ctx: &Context<'_>, key: Key) -> Result<Option<Node>> {
    let session = session(ctx)?;
    let store = &session.api.store;
    let server = || session.sees(&Resource::Server);
    let admin = || session.may(Action::Administer, &Resource::Server).is_ok();
    Ok(match key {
        Key::Application(id) => session.application(id).await?.map(|row| Application(row).into()),
        Key::Pipeline(id) => session.pipeline(id).await?.map(|row| Pipeline(row).into()),
        Key::Revision(id, number) => match session.pipeline(id).await? {
            Some(_) => store.revision(id, number).await.map_err(stored)?.map(|row| PipelineRevision(row).into()),
            None => None,
        },
        Key::Execution(id) => session.execution(id).await?.map(|row| Execution::whole(row).into()),
        Key::Stage(id) => stage::find(ctx, id).await?.map(Node::from),
        Key::Principal(id) if server() => store.principal(id).await.map_err(stored)?.map(|row| Principal(row).into()),
        Key::Token(id) if admin() => store.token(id).await.map_err(stored)?.map(|row| Token(row).into()),
        Key::Account(name) if server() => {
            let mut accounts = session.api.inventory.accounts().into_iter();
            accounts.find(|account| account.name == name).map(|account| Account(account).into())
        }
        Key::Cluster(place, name) => Cluster::find(&session, &place, &name).map(Node::from),
        Key::ServerGroup(place, name) => ServerGroup::find(&session, &place, &name).map(Node::from),
        Key::Instance(place, name) => Instance::find(&session, &place, &name).map(Node::from),
        Key::LoadBalancer(place, name) => LoadBalancer::find(&session, &place, &name).map(Node::from),
        Key::SecurityGroup(place, name) => SecurityGroup::find(&session, &place, &name).map(Node::from),
        Key::Notification(id) if server() => {
            store.notification(id).await.map_err(stored)?.map(|row| Notification(row).into())
        }
        Key::Delivery(id) if server() => store.delivery(id).await.map_err(stored)?.map(|row| Delivery(row).into()),
        Key::Audit(id) if admin() => store.audit_row(id).await.map_err(stored)?.map(|row| AuditEntry(row).into()),
        Key::Intent(execution, id) => match session.execution(execution).await? {
            Some(_) => {
                let found = store.intent(id).await.map_err(stored)?;
                found.filter(|intent| intent.execution == execution).map(|intent| Intent::from(intent).into())
            }
            None => None,
        },
        Key::Principal(_)
        | Key::Token(_)
        | Key::Account(_)
        | Key::Notification(_)
        | Key::Delivery(_)
        | Key::Audit(_) => None,
    })
}
