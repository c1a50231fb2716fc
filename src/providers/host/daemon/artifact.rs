//! Brings what is to be run into the host's own directory, whole or not at all: a copy of a file
//! or directory below the artifact roots, or an unpacked tarball that nothing can climb out of.

#[cfg(test)]
mod tests;
mod tree;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::files;
use super::hub::{Reply, refuse, unavailable};
use super::shelf::{self, Shelf};
use crate::outbound::{self, Outbound};
use crate::providers::host::launch::{Artifact, PathArtifact};
use crate::providers::host::protocol::Artifacts;
use crate::providers::{Error, ErrorKind};
use tree::{copy_file, copy_tree, open_to_all, unpack};

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
