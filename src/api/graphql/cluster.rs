//! Clusters: all generations of what runs under one name at one place.

use std::collections::BTreeSet;

use async_graphql::{Context, ID, Object, Result};

use super::application::Application;
use super::connection::lists;
use super::ids::Key;
use super::place::{At, Placed, application_of};
use super::server_group::ServerGroup;
use crate::inventory::Inventory;
use crate::model::{Place, names};

/// All generations of what runs under one name at one place.
pub struct Cluster {
    pub place: Place,
    pub name: String,
}

impl Placed for Cluster {
    const WHAT: &'static str = "cluster";

    fn place(&self) -> &Place {
        &self.place
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn known(inventory: &Inventory) -> Vec<Self> {
        let groups = inventory.server_groups().into_iter();
        let named = groups.filter_map(|group| Some((names::cluster_of(&group.spec.name)?, group.spec.place)));
        named.collect::<BTreeSet<_>>().into_iter().map(|(name, place)| Self { place, name }).collect()
    }
}

/// All generations of what runs under one name at one place.
#[Object]
impl Cluster {
    /// Opaque and global.
    pub async fn id(&self) -> ID {
        Key::Cluster(self.place.clone(), self.name.clone()).id()
    }
    /// `application[-stack[-detail]]`.
    async fn name(&self) -> &str {
        &self.name
    }
    #[graphql(flatten)]
    async fn at(&self) -> At {
        At::from(self.place())
    }
    /// The stack in its name.
    async fn stack(&self) -> Option<String> {
        names::parse(&self.name)?.stack
    }
    /// The detail in its name.
    async fn detail(&self) -> Option<String> {
        names::parse(&self.name)?.detail
    }
    /// The application; null where Gennaker knows none of that name.
    async fn application(&self, ctx: &Context<'_>) -> Result<Option<Application>> {
        application_of(ctx, &self.name).await
    }
    #[graphql(flatten)]
    async fn lists(&self) -> ClusterLists<'_> {
        ClusterLists(self)
    }
}

lists!(
    ClusterLists of Cluster by |it| format!("{}/{}/{}", it.place.account, it.place.location, it.name);
    /// Its server groups, by name.
    fn server_groups(this, session, page) -> ServerGroup {
        let mut all = ServerGroup::all(&session, |name| names::cluster_of(name).as_deref() == Some(&this.name));
        all.retain(|(_, group)| group.0.spec.place == this.place);
        page.slice(all)
    }
);

/// Queries for clusters.
#[derive(Default)]
pub struct ClusterQuery;

#[Object]
impl ClusterQuery {
    /// The cluster of that name at that place.
    async fn cluster(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The account's name.", default = "local")] account: String,
        #[graphql(desc = "The location within the account.", default = "local")] location: String,
        #[graphql(desc = "`application[-stack[-detail]]`.")] name: String,
    ) -> Result<Option<Cluster>> {
        Cluster::asked(ctx, &Place { account, location }, &name)
    }
    #[graphql(flatten)]
    async fn lists(&self) -> ClusterQueryLists<'_> {
        ClusterQueryLists(self)
    }
}

lists!(
    ClusterQueryLists of ClusterQuery;
    /// All clusters, by account, location and name.
    fn clusters(this, session, page) -> Cluster {
        page.slice(Cluster::all(&session, |_| true))
    }
);
