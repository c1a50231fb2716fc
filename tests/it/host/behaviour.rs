//! The host does what every provider has to do.

#[path = "../../../src/providers/behaviour.rs"]
mod suite;

use gennaker::clock::Clock;
use libtest_mimic::Trial;

use super::rig::Host;
use crate::harness::{Outcome, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("host", "it_behaves_as_every_provider_has_to", behaves)]
}

async fn behaves() -> Outcome {
    let host = Host::start().await?;
    let subject = suite::Subject {
        provider: host.provider(),
        clock: Clock::system(),
        security_group: Host::open(),
        load_balancer: host.balancer_spec(),
        server_group: host.group("suite-v000", 1),
    };
    suite::behaves(&subject).await;
    host.end().await;
    Ok(())
}
