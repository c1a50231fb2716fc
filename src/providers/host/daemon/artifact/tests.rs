//! Artifacts from files, directories, tarballs and a server; what is refused, and what the quota does.

use std::os::unix::fs::PermissionsExt as _;

use tar::EntryType;

use super::super::files::scratch::Scratch;
use super::*;
use crate::providers::host::launch::UrlArtifact;

const SOON: Duration = Duration::from_secs(30);

fn store(scratch: &Scratch) -> Store {
    let root = scratch.path().join("root");
    fs::create_dir_all(&root).expect("made");
    let outbound = Outbound::new(outbound::Options::default());
    Store {
        directory: scratch.path().join("artifacts"),
        roots: vec![root],
        bounds: BOUNDS,
        outbound,
        shelf: Shelf::new(1 << 30),
        used: Vec::new(),
        now: crate::clock::Clock::system().now(),
    }
}

/// A file of so many bytes below the root.
fn file(store: &Store, name: &str, bytes: usize) -> Artifact {
    let path = store.roots[0].join(name);
    fs::write(&path, vec![1; bytes]).expect("written");
    by_path(path)
}

#[tokio::test]
async fn what_is_unused_makes_room_oldest_first_and_what_is_used_stays() {
    let scratch = Scratch::new();
    let mut store = store(&scratch);
    store.shelf = Shelf::new(100);
    let start = store.now;
    let minutes = |minutes: i64| start + chrono::TimeDelta::minutes(minutes);
    let old = store.fetch(&file(&store, "old", 40), SOON).await.expect("fits");
    store.now = minutes(1);
    let newer = store.fetch(&file(&store, "newer", 40), SOON).await.expect("fits");
    // Asked for again: now it is the newer of the two.
    store.now = minutes(2);
    store.fetch(&file_again(&store, "old"), SOON).await.expect("is there");
    store.now = minutes(8);
    let third = store.fetch(&file(&store, "third", 40), SOON).await.expect("room is made");
    assert!(old.is_dir() && third.is_dir() && !newer.exists());
    assert_eq!((store.usage().count, store.usage().bytes, store.usage().unused), (2, 80, 2));
    // Both are used: nothing goes, and the new one is refused by name.
    store.used = vec![old.clone(), third.clone()];
    store.now = minutes(60);
    let refused = store.fetch(&file(&store, "fourth", 40), SOON).await.expect_err("no room");
    assert_eq!(refused.kind, ErrorKind::Exhausted);
    assert!(refused.message.contains("fourth") && refused.message.contains("--max-artifact-bytes"), "{refused}");
    let tarball = fetch_tarball(&store, &[("a", EntryType::Regular, &"x".repeat(40))]).await.expect_err("no room");
    assert_eq!(tarball.kind, ErrorKind::Exhausted, "{tarball}");
    assert_eq!(files::names(&store.directory).expect("listed").len(), 2, "nothing is left of a refused one");
    // A group is gone: what it used is kept for a while, and then swept.
    store.used = vec![old.clone()];
    store.sweep(Duration::from_secs(3_600));
    assert!(third.is_dir());
    store.sweep(Duration::from_secs(600));
    assert!(old.is_dir() && !third.exists());
}

#[tokio::test]
async fn what_was_just_fetched_is_not_taken_away_for_another() {
    let scratch = Scratch::new();
    let mut store = store(&scratch);
    store.shelf = Shelf::new(100);
    let first = store.fetch(&file(&store, "first", 60), SOON).await.expect("fits");
    // Its server group is about to be recorded.
    store.fetch(&file(&store, "second", 60), SOON).await.expect_err("no room yet");
    assert!(first.is_dir());
}

fn file_again(store: &Store, name: &str) -> Artifact {
    by_path(store.roots[0].join(name))
}

fn by_path(path: PathBuf) -> Artifact {
    Artifact::Path(PathArtifact { path, sha256: None })
}

/// A tarball of (path, kind, content or link target), headers written without any checks.
fn tarball(path: &Path, entries: &[(&str, EntryType, &str)]) -> String {
    let file = File::create(path).expect("made");
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        let data = if *kind == EntryType::Regular { content.as_bytes() } else { b"" };
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_entry_type(*kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append(&header, data).expect("appended");
    }
    builder.into_inner().expect("ends").finish().expect("flushed");
    hex::encode(Sha256::digest(fs::read(path).expect("read")))
}

async fn fetch_tarball(store: &Store, entries: &[(&str, EntryType, &str)]) -> Reply<PathBuf> {
    let path = store.roots[0].join("a.tar.gz");
    let sha256 = tarball(&path, entries);
    store.fetch(&Artifact::Url(UrlArtifact { url: format!("file://{}", path.display()), sha256 }), SOON).await
}

#[tokio::test]
async fn a_file_is_copied_with_its_name_and_mode() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let path = store.roots[0].join("server");
    fs::write(&path, "#!/bin/sh\n").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("set");
    let first = store.fetch(&by_path(path.clone()), SOON).await.expect("fetched");
    assert_eq!(fs::metadata(first.join("server")).expect("there").mode() & 0o777, 0o755);
    assert_eq!(store.fetch(&by_path(path.clone()), SOON).await.expect("fetched"), first);
    fs::write(&path, "#!/bin/bash\n").expect("written");
    let second = store.fetch(&by_path(path), SOON).await.expect("fetched");
    assert_ne!(second, first, "another content is another artifact");
    assert_eq!(fs::read_to_string(first.join("server")).expect("there"), "#!/bin/sh\n");
}

#[tokio::test]
async fn what_is_missing_or_outside_the_roots_is_refused_by_name() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let missing = store.fetch(&by_path(store.roots[0].join("none")), SOON).await.expect_err("missing");
    assert_eq!(missing.kind, ErrorKind::NotFound);
    assert!(missing.message.contains("/root/none does not exist"), "{missing}");
    let secret = scratch.path().join("secret");
    fs::write(&secret, "x").expect("written");
    std::os::unix::fs::symlink(&secret, store.roots[0].join("link")).expect("linked");
    for path in [secret, store.roots[0].join("link")] {
        let outside = store.fetch(&by_path(path), SOON).await.expect_err("outside");
        assert_eq!(outside.kind, ErrorKind::Invalid);
        assert!(outside.message.contains("--artifact-root"), "{outside}");
    }
}

#[tokio::test]
async fn a_tarball_is_unpacked_by_its_digest() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let entries = [
        ("app/", EntryType::Directory, ""),
        ("app/bin/server", EntryType::Regular, "run"),
        ("app/current", EntryType::Symlink, "../app/bin"),
        ("app/same", EntryType::Link, "app/bin/server"),
    ];
    let directory = fetch_tarball(&store, &entries).await.expect("fetched");
    assert_eq!(fs::read_to_string(directory.join("app/current/server")).expect("there"), "run");
    assert_eq!(fs::read_to_string(directory.join("app/same")).expect("there"), "run");
    assert_eq!(directory.file_name().and_then(|name| name.to_str()).map(str::len), Some(64));
}

#[tokio::test]
async fn a_wrong_digest_is_told_with_both() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let path = store.roots[0].join("a.tar.gz");
    let found = tarball(&path, &[("a", EntryType::Regular, "x")]);
    let wanted = "0".repeat(64);
    let artifact = UrlArtifact { url: format!("file://{}", path.display()), sha256: wanted.clone() };
    let error = store.fetch(&Artifact::Url(artifact), SOON).await.expect_err("wrong");
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains(&found) && error.message.contains(&wanted), "{error}");
}

#[tokio::test]
async fn nothing_leaves_the_archive_and_nothing_is_left_of_a_refused_one() {
    let cases: [&[(&str, EntryType, &str)]; 9] = [
        &[("../evil", EntryType::Regular, "x")],
        &[("/tmp/evil", EntryType::Regular, "x")],
        &[("a/../../evil", EntryType::Regular, "x")],
        &[("link", EntryType::Symlink, "/etc")],
        &[("a/link", EntryType::Symlink, "../../x")],
        // `here` is the top; what climbs after it would be outside.
        &[("here", EntryType::Symlink, "."), ("out", EntryType::Symlink, "here/..")],
        &[("a", EntryType::Directory, ""), ("b", EntryType::Symlink, "a"), ("b/c", EntryType::Regular, "x")],
        &[("hard", EntryType::Link, "../../etc/passwd")],
        &[("pipe", EntryType::Fifo, "")],
    ];
    for entries in cases {
        let scratch = Scratch::new();
        let store = store(&scratch);
        let error = fetch_tarball(&store, entries).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Invalid, "{entries:?}");
        assert!(files::names(&store.directory).expect("listed").is_empty(), "{entries:?} left something");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let scratch = Scratch::new();
    let mut store = store(&scratch);
    store.bounds = Bounds { packed: 1 << 20, unpacked: 10, entries: 3 };
    let large = fetch_tarball(&store, &[("a", EntryType::Regular, "12345678901")]).await.expect_err("large");
    assert!(large.message.contains("larger than 10 bytes"), "{large}");
    let many: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| (*name, EntryType::Regular, "")).collect();
    assert!(fetch_tarball(&store, &many).await.is_err());
    store.bounds.packed = 10;
    assert!(fetch_tarball(&store, &[("a", EntryType::Regular, "")]).await.is_err());
}

#[tokio::test]
async fn nothing_is_fetched_from_a_network_that_is_not_public() {
    let scratch = Scratch::new();
    let store = store(&scratch);
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    server.set_nonblocking(true).expect("set");
    let port = server.local_addr().expect("bound").port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let artifact = UrlArtifact { url: format!("https://{host}:{port}/a.tar.gz"), sha256: "0".repeat(64) };
        let error = store.fetch(&Artifact::Url(artifact), SOON).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message.contains("public addresses only"), "{error}");
        assert!(files::names(&store.directory).expect("listed").is_empty(), "{host} left something");
    }
    assert_eq!(server.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn what_is_fetched_is_unpacked_by_its_digest_and_nothing_else_is_left() {
    let scratch = Scratch::new();
    let mut store = store(&scratch);
    let path = scratch.path().join("a.tar.gz");
    let sha256 = tarball(&path, &[("server", EntryType::Regular, "run")]);
    let packed = fs::read(&path).expect("read");
    let size = packed.len() as u64;
    let router = axum::Router::new().route("/a.tar.gz", axum::routing::get(move || async move { packed }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    // The test's server has no public address.
    let allow = vec!["127.0.0.1".parse().expect("an entry")];
    store.outbound = Outbound::new(outbound::Options { allow, ..outbound::Options::default() });
    let artifact = |name: &str, sha256: &str| {
        Artifact::Url(UrlArtifact { url: format!("{url}/{name}"), sha256: sha256.to_owned() })
    };
    let nothing = store.fetch(&artifact("none", &sha256), SOON).await.expect_err("none");
    assert_eq!(nothing.kind, ErrorKind::NotFound, "{nothing}");
    let wrong = store.fetch(&artifact("a.tar.gz", &"0".repeat(64)), SOON).await.expect_err("wrong");
    assert!(wrong.message.contains(&sha256), "{wrong}");
    store.bounds.packed = size - 1;
    let large = store.fetch(&artifact("a.tar.gz", &sha256), SOON).await.expect_err("large");
    assert_eq!(large.kind, ErrorKind::Invalid, "{large}");
    assert!(files::names(&store.directory).expect("listed").is_empty());
    store.bounds.packed = size;
    let directory = store.fetch(&artifact("a.tar.gz", &sha256), SOON).await.expect("fetched");
    assert_eq!(fs::read_to_string(directory.join("server")).expect("there"), "run");
    assert_eq!(files::names(&store.directory).expect("listed").len(), 1);
}
