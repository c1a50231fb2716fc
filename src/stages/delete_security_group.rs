//! Deletes a security group that nothing uses.

use super::delete::Deletable;
use crate::model::Place;
use crate::providers::{Error, Operation, Provider, Snapshot};

pub(super) struct SecurityGroup;

impl Deletable for SecurityGroup {
    const KIND: &'static str = "deleteSecurityGroup";
    const TITLE: &'static str = "Delete security group";
    const DESCRIPTION: &'static str =
        "Deletes a security group. Refused while something uses it; one that is absent is fine.";
    const WHAT: &'static str = "security group";
    const OUTPUT: &'static str = "securityGroup";
    const HINT: &'static str = "take it out of these first, or delete them";

    fn users(snapshot: &Snapshot, place: &Place, name: &str) -> Vec<String> {
        let uses = |at: &Place, groups: &[String]| at == place && groups.iter().any(|group| group == name);
        let load_balancers = snapshot.load_balancers.iter().map(|found| &found.spec);
        let server_groups = snapshot.server_groups.iter().map(|found| &found.spec);
        load_balancers
            .filter(|spec| uses(&spec.place, &spec.security_groups))
            .map(|spec| format!("load balancer `{}`", spec.name))
            .chain(
                server_groups
                    .filter(|spec| uses(&spec.place, &spec.security_groups))
                    .map(|spec| format!("server group `{}`", spec.name)),
            )
            .collect()
    }
    fn is_there(snapshot: &Snapshot, place: &Place, name: &str) -> bool {
        snapshot.security_groups.iter().any(|found| found.spec.place == *place && found.spec.name == name)
    }
    async fn delete(provider: &dyn Provider, operation: &Operation, place: &Place, name: &str) -> Result<(), Error> {
        provider.ensure_security_group_deleted(operation, place, name).await
    }
}
