//! Deletes a load balancer that no server group uses.

use super::delete::Deletable;
use crate::model::Place;
use crate::providers::{Error, Operation, Provider, Snapshot};

pub(super) struct LoadBalancer;

impl Deletable for LoadBalancer {
    const KIND: &'static str = "deleteLoadBalancer";
    const TITLE: &'static str = "Delete load balancer";
    const DESCRIPTION: &'static str =
        "Deletes a load balancer. Refused while server groups are registered with it; one that is absent is fine.";
    const WHAT: &'static str = "load balancer";
    const OUTPUT: &'static str = "loadBalancer";
    const HINT: &'static str = "destroy these server groups first";

    fn users(snapshot: &Snapshot, place: &Place, name: &str) -> Vec<String> {
        let registered = |specs: &[String]| specs.iter().any(|spec| spec == name);
        let groups = snapshot.server_groups.iter().map(|group| &group.spec);
        let users = groups.filter(|spec| spec.place == *place && registered(&spec.load_balancers));
        users.map(|spec| format!("`{}`", spec.name)).collect()
    }
    fn is_there(snapshot: &Snapshot, place: &Place, name: &str) -> bool {
        snapshot.load_balancers.iter().any(|found| found.spec.place == *place && found.spec.name == name)
    }
    async fn delete(provider: &dyn Provider, operation: &Operation, place: &Place, name: &str) -> Result<(), Error> {
        provider.ensure_load_balancer_deleted(operation, place, name).await
    }
}
