//! Brings what is to be run into the host's own directory, whole or not at all: a copy of a file
//! or directory below the artifact roots, or an unpacked tarball that nothing can climb out of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use tar::EntryType;

use chrono::{DateTime, Utc};

use super::files;
use super::hub::{Reply, refuse, unavailable};
use super::shelf::{self, Shelf};
use crate::outbound::{self, Outbound};
use crate::providers::host::launch::{Artifact, PathArtifact};
use crate::providers::host::protocol::Artifacts;
use crate::providers::{Error, ErrorKind};

/// What an artifact may be at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of a tarball as it comes.
    pub packed: u64,
    /// Of all files together.
    pub unpacked: u64,
    /// Files, directories and links together.
    pub entries: usize,
}

/// 1 GiB packed, 4 GiB unpacked, 100,000 entries.
pub const BOUNDS: Bounds = Bounds { packed: 1 << 30, unpacked: 4 << 30, entries: 100_000 };

/// Where artifacts come from and go to.
#[derive(Debug, Clone)]
pub struct Store {
    /// Holds one directory per artifact.
    pub directory: PathBuf,
    pub roots: Vec<PathBuf>,
    pub bounds: Bounds,
    /// What `https://` is fetched with.
    pub outbound: Outbound,
    /// What is there, and how much of it there may be.
    pub shelf: Shelf,
    /// What server groups use; it is never taken away.
    pub used: Vec<PathBuf>,
    pub now: DateTime<Utc>,
}

impl Store {
    /// The directory with the artifact in it, fetched now unless it is there already.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` or `Unavailable`, saying what, where and what to do.
    pub async fn fetch(&self, artifact: &Artifact, within: Duration) -> Reply<PathBuf> {
        let store = self.clone();
        match artifact.clone() {
            Artifact::Path(artifact) => blocking(move || store.copied(&artifact)).await,
            Artifact::Url(artifact) => {
                let digest = artifact.sha256.to_ascii_lowercase();
                let ready = self.directory.join(&digest);
                if ready.is_dir() {
                    self.shelf.touch(&ready, self.now);
                    return Ok(ready);
                }
                if let Some(path) = artifact.url.strip_prefix("file://") {
                    let path = PathBuf::from(path);
                    blocking(move || store.unpacked_file(&path, &artifact.url, &digest)).await
                } else {
                    let download = self.download(&artifact.url, within).await?;
                    blocking(move || store.unpacked(&download.file, &artifact.url, &digest)).await
                }
            }
        }
    }

    /// Removes what no group uses and nobody has asked for in that time; what was left by a fetch
    /// that broke off, too. To be called while nothing is being fetched.
    pub fn sweep(&self, unused_for: Duration) {
        self.shelf.sweep(&self.directory, &self.used, self.now, unused_for);
    }

    /// What there is of artifacts.
    pub fn usage(&self) -> Artifacts {
        self.shelf.usage(&self.directory, &self.used)
    }

    fn temporary(&self) -> Reply<PathBuf> {
        files::make_directory(&self.directory).map_err(|error| unavailable(&error))?;
        Ok(self.directory.join(format!("{}.tmp", uuid::Uuid::now_v7().simple())))
    }

    /// The real path of one that is below a root.
    fn allowed(&self, path: &Path) -> Reply<PathBuf> {
        let real = path.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => refuse(
                ErrorKind::NotFound,
                format!("artifact {} does not exist on this host; build it or copy it there", path.display()),
            ),
            _ => refuse(ErrorKind::Invalid, format!("artifact {} cannot be read: {error}", path.display())),
        })?;
        if self.roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root)) {
            return Ok(real);
        }
        let roots: Vec<String> = self.roots.iter().map(|root| root.display().to_string()).collect();
        let roots = if roots.is_empty() { "it has none".to_owned() } else { format!("they are {}", roots.join(", ")) };
        Err(refuse(
            ErrorKind::Invalid,
            format!(
                "artifact {} is not below an artifact root of this host ({roots}); move it there or start the host with --artifact-root",
                path.display()
            ),
        ))
    }

    fn copied(&self, artifact: &PathArtifact) -> Reply<PathBuf> {
        let real = self.allowed(&artifact.path)?;
        let failed = |error: io::Error| refuse(kind_of(&error), format!("artifact {}: {error}", real.display()));
        let (before, size) = self.fingerprint(&real).map_err(failed)?;
        let target = self.directory.join(&before);
        if let Some(wanted) = &artifact.sha256 {
            if real.is_dir() {
                return Err(refuse(
                    ErrorKind::Invalid,
                    format!("artifact {} is a directory; a sha256 is of a file", real.display()),
                ));
            }
            let mut file = File::open(&real).map_err(failed)?;
            check_digest(&mut file, &real.display().to_string(), &wanted.to_ascii_lowercase())?;
        }
        if target.is_dir() {
            self.shelf.touch(&target, self.now);
            return Ok(target);
        }
        let what = real.display().to_string();
        if size > self.shelf.room(&self.directory, &self.used, self.now) {
            return Err(self.shelf.refusal(&what, size, &self.directory, &self.used));
        }
        let temporary = self.temporary()?;
        let copied = (|| {
            fs::create_dir(&temporary)?;
            open_to_all(&temporary)?;
            if real.is_dir() {
                copy_tree(&real, &temporary, &real)?;
            } else {
                let name = real.file_name().ok_or_else(|| io::Error::other("it has no name"))?;
                copy_file(&real, &temporary.join(name))?;
            }
            if self.fingerprint(&real)?.0 != before {
                return Err(io::Error::other("it changed while it was copied; deploy again when it is done"));
            }
            Ok(())
        })();
        if let Err(error) = copied {
            let _ = fs::remove_dir_all(&temporary);
            return Err(failed(error));
        }
        self.publish(&temporary, &target, &what)
    }

    /// Puts a finished directory in its place, where the quota has or can be made room for it.
    fn publish(&self, temporary: &Path, target: &Path, what: &str) -> Reply<PathBuf> {
        let size = shelf::size_of(temporary);
        let _placing = self.shelf.placing();
        if !self.shelf.make_room(size, &self.directory, &self.used, self.now) {
            let _ = fs::remove_dir_all(temporary);
            return Err(self.shelf.refusal(what, size, &self.directory, &self.used));
        }
        let target = publish(temporary, target)?;
        self.shelf.touch(&target, self.now);
        Ok(target)
    }

    /// What tells one state of a file or directory from another: names, sizes, times and modes; and
    /// how many bytes it has.
    fn fingerprint(&self, path: &Path) -> io::Result<(String, u64)> {
        let mut hash = Sha256::new();
        hash.update(path.as_os_str().as_encoded_bytes());
        let (mut bytes, mut entries) = (0_u64, 0_usize);
        let mut todo = vec![path.to_path_buf()];
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path)?;
            entries += 1;
            hash.update(path.as_os_str().as_encoded_bytes());
            for number in [meta.dev(), meta.ino(), meta.size(), u64::from(meta.mode())] {
                hash.update(number.to_le_bytes());
            }
            hash.update(meta.mtime().to_le_bytes());
            hash.update(meta.mtime_nsec().to_le_bytes());
            if meta.is_dir() {
                todo.extend(files::names(&path)?.into_iter().map(|(_, path)| path));
            } else if meta.is_file() {
                bytes += meta.len();
            }
            if entries > self.bounds.entries || bytes > self.bounds.unpacked {
                return Err(io::Error::other(too_large(self.bounds)));
            }
        }
        Ok((hex::encode(hash.finalize()), bytes))
    }

    fn unpacked_file(&self, path: &Path, url: &str, digest: &str) -> Reply<PathBuf> {
        let real = self.allowed(path)?;
        let file = File::open(&real)
            .map_err(|error| refuse(ErrorKind::Invalid, format!("artifact {url} cannot be read: {error}")))?;
        self.unpacked(&file, url, digest)
    }

    /// Unpacks a tarball whose digest is as wanted.
    fn unpacked(&self, mut file: &File, url: &str, digest: &str) -> Reply<PathBuf> {
        let size = file.metadata().map_err(|error| unavailable(&error))?.len();
        if size > self.bounds.packed {
            return Err(refuse(
                ErrorKind::Invalid,
                format!("artifact {url} has {size} bytes; at most {} are taken", self.bounds.packed),
            ));
        }
        // One that was just written stands at its end.
        file.rewind().map_err(|error| unavailable(&error))?;
        check_digest(&mut file, url, digest)?;
        file.rewind().map_err(|error| unavailable(&error))?;
        let room = self.shelf.room(&self.directory, &self.used, self.now);
        let temporary = self.temporary()?;
        // Not much more is unpacked than there is room for.
        let bounds = Bounds { unpacked: self.bounds.unpacked.min(room), ..self.bounds };
        if let Err(error) = unpack(file, &temporary, bounds) {
            let _ = fs::remove_dir_all(&temporary);
            if error.to_string() == too_large(bounds) && room < self.bounds.unpacked {
                return Err(self.shelf.refusal(url, room.saturating_add(1), &self.directory, &self.used));
            }
            return Err(refuse(kind_of(&error), format!("artifact {url} cannot be unpacked: {error}")));
        }
        self.publish(&temporary, &self.directory.join(digest), url)
    }

    /// Fetches by the guarded client, which nothing on a private network is open to.
    async fn download(&self, url: &str, within: Duration) -> Reply<Download> {
        let path = self.temporary()?;
        let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = open().map_err(|error| unavailable(&error))?;
        let download = Download { file: file.try_clone().map_err(|error| unavailable(&error))?, path };
        let mut writer = tokio::fs::File::from_std(file);
        match self.outbound.download(url, self.bounds.packed, within, &mut writer).await {
            Ok(_) => Ok(download),
            Err(error) => Err(not_fetched(url, &error)),
        }
    }
}

/// What was fetched; the file is gone with it.
struct Download {
    file: File,
    path: PathBuf,
}

impl Drop for Download {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn not_fetched(url: &str, error: &outbound::Error) -> Error {
    use outbound::Error as E;
    let kind = match error {
        E::Status { status, .. } => match status.as_u16() {
            404 | 410 => ErrorKind::NotFound,
            code if code < 500 && code != 429 => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        },
        E::Url { .. } | E::Refused(_) | E::TooManyRedirects { .. } | E::Redirect { .. } | E::TooLarge { .. } => {
            ErrorKind::Invalid
        }
        E::Connect { .. } | E::Timeout { .. } | E::Transport { .. } | E::Client(_) | E::Write { .. } => {
            ErrorKind::Unavailable
        }
    };
    let cause = match error {
        // No setting lets a host fetch from there.
        E::Refused(refused) => format!(
            "`{}` is at {}, {}, and artifacts are fetched from public addresses only; put the file below an artifact \
             root of this host and give its path",
            refused.host, refused.address, refused.what
        ),
        error => error.to_string(),
    };
    refuse(kind, format!("artifact {url} cannot be fetched: {cause}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Reply<T> + Send + 'static) -> Reply<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(refuse(ErrorKind::Unavailable, format!("fetching the artifact broke off: {error}")))
    })
}

/// A full disk may have room later; anything else lies in the artifact.
fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

fn too_large(bounds: Bounds) -> String {
    format!("it is larger than {} bytes or {} entries", bounds.unpacked, bounds.entries)
}

fn check_digest(file: &mut impl Read, what: &str, wanted: &str) -> Reply<()> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(|error| refuse(ErrorKind::Unavailable, format!("artifact {what} cannot be read: {error}")))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    let found = hex::encode(hash.finalize());
    if found == wanted {
        return Ok(());
    }
    Err(refuse(
        ErrorKind::Invalid,
        format!("artifact {what} has sha256 {found}, but {wanted} is asked for; correct the digest or the file"),
    ))
}

/// Puts a finished directory in its place; another one that was there first is as good.
fn publish(temporary: &Path, target: &Path) -> Reply<PathBuf> {
    let moved = (|| {
        flush(temporary)?;
        fs::rename(temporary, target)?;
        files::sync_parent(target)
    })();
    match moved {
        Ok(()) => Ok(target.to_path_buf()),
        Err(_) if target.is_dir() => {
            let _ = fs::remove_dir_all(temporary);
            Ok(target.to_path_buf())
        }
        Err(error) => {
            let _ = fs::remove_dir_all(temporary);
            Err(unavailable(&files::about(target, "cannot make", &error)))
        }
    }
}

/// All of it is on the disk before its name says that it is there.
fn flush(directory: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::unistd::syncfs(File::open(directory)?)?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = directory;
        nix::unistd::sync();
    }
    Ok(())
}

fn open_to_all(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

/// Readable by all (instances may run as another user), executable where it was.
fn open_mode(mode: u32) -> fs::Permissions {
    fs::Permissions::from_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 })
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, open_mode(fs::metadata(from)?.mode()))
}

fn copy_tree(from: &Path, to: &Path, root: &Path) -> io::Result<()> {
    for (name, source) in files::names(from)? {
        let target = to.join(&name);
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            fs::create_dir(&target)?;
            open_to_all(&target)?;
            copy_tree(&source, &target, root)?;
        } else if meta.is_file() {
            copy_file(&source, &target)?;
        } else if meta.is_symlink() {
            let link = fs::read_link(&source)?;
            let inside = source.strip_prefix(root).map_err(io::Error::other)?;
            if !link_stays(inside, &link) {
                return Err(io::Error::other(format!("link {} leaves the directory", source.display())));
            }
            std::os::unix::fs::symlink(link, target)?;
        } else {
            return Err(io::Error::other(format!("{} is neither a file, a directory nor a link", source.display())));
        }
    }
    Ok(())
}

/// Unpacks a `.tar.gz` into a new directory.
fn unpack(packed: impl Read, into: &Path, bounds: Bounds) -> io::Result<()> {
    fs::create_dir(into)?;
    open_to_all(into)?;
    // Names and padding count too, so that a bomb of headers ends as well.
    let plain = GzDecoder::new(packed).take(bounds.unpacked + bounds.entries as u64 * 1024 + 1024 * 1024);
    let mut archive = tar::Archive::new(plain);
    let (mut bytes, mut entries) = (0_u64, 0_usize);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            continue;
        }
        let path = inside(&entry.path()?)?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > bounds.entries || bytes > bounds.unpacked {
            return Err(io::Error::other(too_large(bounds)));
        }
        if path.as_os_str().is_empty() {
            continue;
        }
        let target = into.join(&path);
        match kind {
            EntryType::Directory => make_real_directories(into, &path)?,
            EntryType::Regular | EntryType::Continuous => {
                clear(into, &path)?;
                let mode = entry.header().mode().unwrap_or(0o644);
                let mut file = OpenOptions::new().write(true).create_new(true).open(&target)?;
                io::copy(&mut entry, &mut file)?;
                file.set_permissions(open_mode(mode))?;
            }
            EntryType::Symlink => {
                let link = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?.into_owned();
                if !link_stays(&path, &link) {
                    return Err(io::Error::other(format!("link {} leaves the archive", path.display())));
                }
                clear(into, &path)?;
                std::os::unix::fs::symlink(link, &target)?;
            }
            EntryType::Link => {
                let link = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?;
                let source = into.join(inside(&link)?);
                real_parents(into, &inside(&link)?)?;
                if !fs::symlink_metadata(&source)?.is_file() {
                    return Err(io::Error::other(format!("link {} does not point to a file", path.display())));
                }
                clear(into, &path)?;
                fs::hard_link(source, &target)?;
            }
            _ => {
                return Err(io::Error::other(format!("{} is neither a file, a directory nor a link", path.display())));
            }
        }
    }
    Ok(())
}

/// The path without `.`; refused when it is absolute or climbs.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("path {} leaves the archive", path.display())));
            }
        }
    }
    Ok(clean)
}

/// Whether a symbolic link at a path stays inside. It may climb only at its beginning, where its
/// parents are known to be real directories, and no higher than the top; each link that it passes
/// later was held to the same.
fn link_stays(at: &Path, target: &Path) -> bool {
    let depth = at.components().count().saturating_sub(1);
    let mut climbed = 0;
    let mut descending = false;
    for part in target.components() {
        match part {
            Component::Normal(_) => descending = true,
            Component::CurDir => {}
            Component::ParentDir if descending => return false,
            Component::ParentDir => climbed += 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    climbed <= depth
}

/// Makes room for an entry: real directories above it, and nothing in its place.
fn clear(root: &Path, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_real_directories(root, parent)?;
    }
    let target = root.join(path);
    match fs::symlink_metadata(&target) {
        Ok(meta) if meta.is_dir() => {
            Err(io::Error::other(format!("{} is a directory and something else", path.display())))
        }
        Ok(_) => fs::remove_file(target),
        Err(_) => Ok(()),
    }
}

fn make_real_directories(root: &Path, path: &Path) -> io::Result<()> {
    let mut here = root.to_path_buf();
    for part in path.components() {
        here.push(part);
        match fs::symlink_metadata(&here) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "{} goes through something that is no directory",
                    path.display()
                )));
            }
            Err(_) => {
                fs::create_dir(&here)?;
                open_to_all(&here)?;
            }
        }
    }
    Ok(())
}

/// Everything above a path is a real directory.
fn real_parents(root: &Path, path: &Path) -> io::Result<()> {
    let mut here = root.to_path_buf();
    for part in path.parent().into_iter().flat_map(Path::components) {
        here.push(part);
        if !fs::symlink_metadata(&here)?.is_dir() {
            return Err(io::Error::other(format!("{} goes through a link", path.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
}
