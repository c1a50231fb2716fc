//! The proxy under load, with real servers on loopback.

use crate::model::{Listener, LoadBalancerSpec, Place};

pub(super) fn spec(name: &str, listeners: &[u16]) -> LoadBalancerSpec {
    LoadBalancerSpec {
        place: Place { account: "local".into(), location: "local".into() },
        name: name.into(),
        listeners: listeners
            .iter()
            .map(|port| Listener { address: [127, 0, 0, 1].into(), port: *port, port_to: None })
            .collect(),
        health_check: None,
        security_groups: Vec::new(),
        drain_seconds: 5,
    }
}
