//! What a load balancer listens on, whose shares it keeps, and what it counts, over ends of the host.

use std::net::TcpListener;
use std::time::Duration;

use gennaker::clock::Clock;
use gennaker::model::{LoadBalancer, LoadBalancerSpec, Share};
use gennaker::providers::{ErrorKind, Provider as _};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::rig::{Host, Load, get, kill_now};
use crate::harness::{Outcome, trial, wait_for};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("host", "a_server_group_that_is_destroyed_takes_its_share_along", destroyed_share),
        trial("host", "a_load_balancer_listens_on_one_port_at_several_addresses", several_addresses),
        trial("host", "counters_are_kept_over_a_kill_of_the_host_but_for_the_last_seconds", counters),
    ]
}

async fn web(host: &Host) -> LoadBalancer {
    let snapshot = host.provider().snapshot().await.expect("a snapshot");
    snapshot.load_balancers.into_iter().find(|balancer| balancer.spec.name == "web").expect("there")
}

async fn destroyed_share() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    let (provider, place) = (host.provider(), Host::place());
    for name in ["web-v000", "web-v001"] {
        provider.ensure_server_group(&host.op("ex/1"), &host.group(name, 1)).await.expect("made");
        host.up(name, 1).await;
    }
    let share = |name: &str, basis_points| Share { server_group: name.to_owned(), basis_points };
    let shares = [share("web-v000", 4_000), share("web-v001", 6_000)];
    provider.ensure_shares(&host.op("ex/2"), &place, "web", &shares).await.expect("set");
    provider.ensure_server_group_destroyed(&host.op("ex/3"), &place, "web-v001").await.expect("going");
    wait_for("the end of the group", Duration::from_secs(30), || async {
        host.find("web-v001").await.is_none().then_some(())
    })
    .await?;
    let after = web(&host).await;
    assert_eq!((after.shares, after.problems), (vec![shares[0].clone()], vec![]));
    // Not even for as long as it took.
    assert!(!host.log().contains("`web-v001` goes to the others"), "{}", host.log());
    assert_eq!(get(&address, "/").await.expect("an answer").0, 200);
    let worker = host.status().await.pid;
    kill_now(worker);
    host.another_worker(worker).await;
    assert_eq!(web(&host).await.shares, [shares[0].clone()]);
    host.end().await;
    Ok(())
}

async fn several_addresses() -> Outcome {
    let host = Host::start().await?;
    host.provider().ensure_security_group(&host.op("ex/sg"), &Host::open()).await.expect("made");
    let port = host.balancer_spec().listeners[0].port;
    let mut addresses = vec!["127.0.0.1", "127.0.0.2"];
    // Not every machine has it.
    addresses.extend(TcpListener::bind("[::1]:0").is_ok().then_some("::1"));
    let listening = |name: &str, addresses: &[&str]| -> LoadBalancerSpec {
        let listeners: Vec<Value> = addresses.iter().map(|it| json!({ "address": it, "port": port })).collect();
        serde_json::from_value(json!({
            "account": "local", "location": "local", "name": name, "listeners": listeners,
            "securityGroups": ["open"],
        }))
        .expect("a spec")
    };
    for addresses in [&addresses[..2], &addresses, &addresses] {
        let made = host.provider().ensure_load_balancer(&host.op("ex/1"), &listening("web", addresses)).await;
        let made = made.expect("made, and made again");
        assert_eq!(made.bound.len(), addresses.len(), "{made:?}");
        for bound in made.bound.iter().filter(|bound| bound.starts_with("127.")) {
            assert!(bound.ends_with(&format!(":{port}")), "{bound}");
            assert_eq!(get(bound, "/").await.expect("it listens").0, 503);
        }
    }
    let twice = [["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "0.0.0.0"], ["0.0.0.0", "127.0.0.1"]];
    for addresses in twice {
        let refused = host.provider().ensure_load_balancer(&host.op("ex/2"), &listening("web", &addresses)).await;
        let error = refused.expect_err("nobody listens twice");
        assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
    }
    let before = web(&host).await;
    assert_eq!(before.bound.len(), addresses.len(), "what was there stays: {before:?}");
    assert_eq!(get(&format!("127.0.0.1:{port}"), "/").await.expect("it listens").0, 503);
    host.provider().ensure_load_balancer_deleted(&host.op("ex/3"), &Host::place(), "web").await.expect("gone");
    for [first, second] in twice {
        let spec = listening("new", &[first, second]);
        let refused = host.provider().ensure_load_balancer(&host.op("ex/4"), &spec).await;
        let error = refused.expect_err("nobody listens twice");
        let says = format!("cannot listen on {second} port {port}: another of its listeners ({first}:{port}) has it");
        assert!(error.message.contains(&says), "{error}");
        // Nothing of what was refused is left.
        let made = host.provider().ensure_load_balancer(&host.op("ex/5"), &listening("new", &[first])).await;
        assert_eq!(made.expect("the port is free").bound.len(), 1);
        host.provider().ensure_load_balancer_deleted(&host.op("ex/6"), &Host::place(), "new").await.expect("gone");
    }
    host.end().await;
    Ok(())
}

async fn counters() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    host.provider().ensure_server_group(&host.op("ex/1"), &host.group("web-v000", 1)).await.expect("made");
    host.up("web-v000", 1).await;
    let clock = Clock::system();
    let traffic = async || host.provider().traffic(&Host::place(), "web", 0).await.expect("counted");
    let (load, begun) = (Load::start(&address), clock.now());
    while clock.now() < begun + Duration::from_secs(5) {
        load.goes_on().await;
    }
    let worker = host.status().await.pid;
    let (killed, mut before) = (clock.now().timestamp(), traffic().await);
    kill_now(worker);
    before.retain(|second| second.second < killed - 1);
    let sum = |seconds: &[gennaker::model::TrafficSecond]| -> u64 { seconds.iter().map(|it| it.requests).sum() };
    assert!(before.len() >= 2 && sum(&before) > 0, "{before:?}");
    host.another_worker(worker).await;
    load.goes_on().await;
    let mut after = traffic().await;
    assert!(sum(&after) > sum(&before), "it goes on counting");
    after.retain(|second| second.second < killed - 1);
    assert_eq!(after, before, "what was counted before the last two seconds is kept");
    let (good, bad) = load.end().await;
    assert!(good > 10 && bad.len() <= 1, "{good} good, {bad:?}");
    host.end().await;
    Ok(())
}
