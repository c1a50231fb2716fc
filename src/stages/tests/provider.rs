//! The cloud in memory does what every provider has to do: what holds with it holds with others.

use serde_json::json;

use super::memory::{Memory, place};
use crate::clock::Clock;
use crate::model::{Capacity, LoadBalancerSpec, SecurityGroupSpec, ServerGroupSpec};
use crate::providers::behaviour::{Subject, behaves};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_in_memory_behaves_as_every_provider_has_to() {
    let clock = Clock::system();
    let memory = Memory::new(clock.clone());
    let subject = Subject {
        provider: &memory,
        clock,
        security_group: SecurityGroupSpec {
            place: place(),
            name: String::new(),
            description: String::new(),
            inbound: vec![],
        },
        load_balancer: LoadBalancerSpec {
            place: place(),
            name: String::new(),
            listeners: vec![],
            health_check: None,
            security_groups: vec![],
            drain_seconds: 1,
        },
        server_group: ServerGroupSpec {
            place: place(),
            name: String::new(),
            labels: std::collections::BTreeMap::new(),
            capacity: Capacity::pinned(1),
            enabled: true,
            load_balancers: vec![],
            security_groups: vec![],
            health_check: None,
            launch: json!({}),
        },
    };
    behaves(&subject).await;
    assert_eq!(memory.made_twice(), Vec::<String>::new());
}
