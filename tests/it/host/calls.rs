//! Calls that are found again, and calls that are refused: another's name, a late worker, an
//! artifact that is not what it should be.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use gennaker::model::{Capacity, LoadBalancerSpec};
use gennaker::providers::host::daemon::files;
use gennaker::providers::host::protocol;
use gennaker::providers::{Error, ErrorKind, Operation, Provider as _};
use libtest_mimic::Trial;
use nix::libc;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::rig::{Host, get, kill_now, pids};
use crate::harness::{Outcome, trial, trial_where, wait_for};

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("host", "calls_are_found_again_refused_or_fenced_as_they_should", calls),
        trial("host", "a_late_call_of_a_worker_that_lost_its_lease_is_refused", late),
        trial("host", "a_tarball_runs_when_it_is_what_was_asked_for_and_stays_inside", tarballs),
        trial("host", "only_its_owner_may_reach_the_control_socket", reachable),
    ];
    let name = "another_user_who_reaches_the_control_socket_is_not_heard";
    trials.extend(trial_where("host", name, super::checks::root(), another_user));
    trials
}

async fn reachable() -> Outcome {
    let host = Host::start().await?;
    let socket = std::fs::symlink_metadata(protocol::socket_path(&host.path().join("host")))?;
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    host.end().await;
    Ok(())
}

/// What the host answers to a user who asks for its status.
fn status_as(user: u32, socket: &Path) -> std::io::Result<String> {
    let ask = || {
        #[expect(unsafe_code, reason = "the library's own call would change every thread of the process")]
        // SAFETY: changes nothing but this thread, which ends soon.
        if unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        // Where it is closed already there is an end to read too.
        let _ = stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut heard = String::new();
        match stream.read_to_string(&mut heard) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(heard),
        }
    };
    std::thread::scope(|scope| scope.spawn(ask).join().expect("no panic"))
}

async fn another_user() -> Outcome {
    let host = Host::start().await?;
    let socket = protocol::socket_path(&host.path().join("host"));
    // As if its mode kept nobody out.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))?;
    let nobody = nix::unistd::User::from_name("nobody")?.expect("checked before").uid.as_raw();
    assert_eq!(status_as(nobody, &socket)?, "");
    assert!(status_as(0, &socket)?.starts_with("HTTP/1.1 200 "), "the same is heard from its owner");
    wait_for("a word of it in the log", Duration::from_secs(20), || async {
        host.log().contains("another user was refused at the control socket").then_some(())
    })
    .await?;
    host.end().await;
    Ok(())
}

async fn calls() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let spec = host.group("web-v000", 1);
    let first = host.provider().ensure_server_group(&host.op("ex_a/s/1/create"), &spec).await.expect("made");
    let again = host.provider().ensure_server_group(&host.op("ex_a/s/1/create"), &spec).await.expect("found");
    assert_eq!(again.created_at, first.created_at);
    let other = host.provider().ensure_server_group(&host.op("ex_b/s/1/create"), &spec).await.expect_err("taken");
    assert_eq!(other.kind, ErrorKind::Conflict);
    let newer = Operation { fence: 5, ..host.op("ex_a/s/1/enable") };
    host.provider().ensure_enabled(&newer, &Host::place(), "web-v000", true).await.expect("done");
    let late = host.op("ex_a/s/1/disable");
    let refused = host.provider().ensure_enabled(&late, &Host::place(), "web-v000", false).await.expect_err("late");
    assert_eq!(refused.kind, ErrorKind::Fenced);
    assert!(host.find("web-v000").await.expect("there").spec.enabled);

    let mut missing = host.group("web-v001", 1);
    missing.launch["artifact"] = json!({ "path": host.path().join("none") });
    let error = host.provider().ensure_server_group(&host.op("ex/1"), &missing).await.expect_err("no artifact");
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(host.find("web-v001").await.is_none());
    let mut unknown = host.group("web-v001", 1);
    unknown.load_balancers = vec!["nope".to_owned()];
    let error = host.provider().ensure_server_group(&host.op("ex/2"), &unknown).await.expect_err("no load balancer");
    assert!(error.message.contains("known: web"), "{error}");
    let many =
        host.provider().ensure_capacity(&host.op("ex/3"), &Host::place(), "web-v000", Capacity::pinned(11)).await;
    assert_eq!(many.expect_err("ten ports only").kind, ErrorKind::Exhausted);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = taken.local_addr().expect("one").port();
    let spec: LoadBalancerSpec = serde_json::from_value(json!({
        "account": "local", "location": "local", "name": "other", "listeners": [{ "port": port }],
    }))
    .expect("a spec");
    let error = host.provider().ensure_load_balancer(&host.op("ex/4"), &spec).await.expect_err("taken");
    assert!(error.message.contains(&format!("127.0.0.1 port {port}")), "{error}");
    host.end().await;
    Ok(())
}

async fn late() -> Outcome {
    let host = Host::start().await?;
    host.balancer().await;
    let with = |effect: &str, fence| Operation { fence, ..host.op(&format!("ex_a/deploy/1/{effect}")) };
    let (provider, place) = (host.provider(), Host::place());
    let spec = host.group("web-v000", 1);
    let made = provider.ensure_server_group(&with("create", 1), &spec).await.expect("made");
    let before = pids(&host.up("web-v000", 1).await);
    // Another worker holds the lease now, and finds what the first one made.
    let found = provider.ensure_server_group(&with("create", 2), &spec).await.expect("found");
    assert_eq!(found.created_at, made.created_at);
    for again in [false, true] {
        if again {
            // What was seen is not forgotten with the host's process.
            let worker = host.status().await.pid;
            kill_now(worker);
            host.another_worker(worker).await;
        }
        let next = host.group("web-v001", 1);
        let none = Capacity { min: 0, desired: 0, max: 0 };
        let late: [(&str, Result<(), Error>); 8] = [
            ("create", provider.ensure_server_group(&with("create", 1), &spec).await.map(drop)),
            ("create next", provider.ensure_server_group(&with("next", 1), &next).await.map(drop)),
            ("resize", provider.ensure_capacity(&with("resize", 1), &place, "web-v000", none).await.map(drop)),
            ("disable", provider.ensure_enabled(&with("disable", 1), &place, "web-v000", false).await.map(drop)),
            ("destroy", provider.ensure_server_group_destroyed(&with("destroy", 1), &place, "web-v000").await),
            ("shares", provider.ensure_shares(&with("shares", 1), &place, "web", &[]).await.map(drop)),
            ("load balancer", provider.ensure_load_balancer_deleted(&with("lb", 1), &place, "web").await),
            ("security group", provider.ensure_security_group_deleted(&with("sg", 1), &place, "open").await),
        ];
        for (call, result) in late {
            let refused = result.expect_err(call);
            assert_eq!(refused.kind, ErrorKind::Fenced, "{call}: {refused}");
            assert!(refused.message.contains("carries fence 1, but 2 was seen"), "{call}: {refused}");
        }
        let group = host.up("web-v000", 1).await;
        assert!(group.spec.enabled && group.spec.capacity.desired == 1 && pids(&group) == before, "{group:#?}");
        assert!(host.find("web-v001").await.is_none());
    }
    // Numbers compare within one execution only.
    let other = Operation { fence: 1, ..host.op("ex_b/resize/1/resize") };
    provider.ensure_capacity(&other, &place, "web-v000", Capacity::pinned(2)).await.expect("another execution");
    host.up("web-v000", 2).await;
    host.end().await;
    Ok(())
}

/// A `.tar.gz` of one executable, its header written without any check; the digest.
fn tarball(path: &Path, name: &str, content: &str) -> anyhow::Result<String> {
    let file = std::fs::File::create(path)?;
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    builder.append(&header, content.as_bytes())?;
    builder.into_inner()?.finish()?;
    Ok(hex::encode(Sha256::digest(std::fs::read(path)?)))
}

async fn tarballs() -> Outcome {
    let host = Host::start().await?;
    let address = host.balancer().await;
    let good = host.path().join("good.tar.gz");
    let bad = host.path().join("bad.tar.gz");
    let script = "#!/bin/sh\nexec \"$APP\" sample-app --version unpacked\n";
    let digest = tarball(&good, "bin/run", script)?;
    let climbing = tarball(&bad, "../../../evil", script)?;
    let url = |path: &Path| format!("file://{}", path.display());
    let mut spec = host.group("web-v000", 1);
    spec.launch["command"] = json!(["./bin/run"]);
    let wrong = "0".repeat(64);
    let cases = [
        (url(&good), &wrong, [format!("has sha256 {digest}"), format!("but {wrong} is asked for")]),
        (url(&bad), &climbing, ["path ../../../evil leaves the archive".to_owned(), url(&bad)]),
        (
            "https://127.0.0.1:9/a.tar.gz".to_owned(),
            &wrong,
            ["public addresses only".into(), "a loopback address".into()],
        ),
    ];
    for (url, sha256, messages) in cases {
        spec.launch["artifact"] = json!({ "url": url, "sha256": sha256 });
        let error = host.provider().ensure_server_group(&host.op("ex/1"), &spec).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(messages.iter().all(|message| error.message.contains(message)), "{error}");
        assert!(host.find("web-v000").await.is_none());
        let left = files::names(&host.path().join("host/artifacts")).expect("listed");
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(!host.path().join("evil").exists() && !host.path().join("host/evil").exists());
    spec.launch["artifact"] = json!({ "url": url(&good), "sha256": digest });
    host.provider().ensure_server_group(&host.op("ex/2"), &spec).await.expect("made");
    host.up("web-v000", 1).await;
    assert_eq!(get(&address, "/").await.expect("an answer"), (200, "hello from unpacked".to_owned()));
    host.end().await;
    Ok(())
}
