//! How much artifacts may take of the disk. What no server group uses stays for a while, since a
//! roll back wants it again, and makes room earlier where the quota asks for it: the one that was
//! asked for longest ago first. A directory's own time says when it was asked for last.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::files;
use super::hub::refuse;
use crate::providers::host::protocol::Artifacts;
use crate::providers::{Error, ErrorKind};

/// For so long an artifact that was asked for makes no room for others: its server group may be
/// about to be recorded.
const FRESH: Duration = Duration::from_secs(5 * 60);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shelf {
    limit: u64,
    /// Sizes of artifacts, which never change.
    sizes: Arc<Mutex<HashMap<PathBuf, u64>>>,
    /// One artifact at a time is put in its place, so that two do not take the same room.
    placing: Arc<Mutex<()>>,
}

/// One artifact.
struct Item {
    path: PathBuf,
    size: u64,
    used: bool,
    asked_for: DateTime<Utc>,
}

impl Shelf {
    /// With room for so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, sizes: Arc::default(), placing: Arc::default() }
    }

    /// Held from the look for room until the artifact is in its place.
    pub fn placing(&self) -> MutexGuard<'_, ()> {
        self.placing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that it was asked for now.
    pub fn touch(&self, path: &Path, now: DateTime<Utc>) {
        // Where it fails, the artifact counts as older than it is.
        let _ = File::open(path).and_then(|directory| directory.set_modified(now.into()));
    }

    fn items(&self, directory: &Path, used: &[PathBuf]) -> Vec<Item> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let found = files::names(directory).unwrap_or_default();
        let whole: Vec<_> = found
            .into_iter()
            .filter(|(name, path)| !name.ends_with(".tmp") && path.is_dir())
            .map(|(_, path)| path)
            .collect();
        sizes.retain(|path, _| whole.contains(path));
        whole
            .into_iter()
            .map(|path| {
                let size = *sizes.entry(path.clone()).or_insert_with(|| size_of(&path));
                let asked_for = fs::metadata(&path).and_then(|meta| meta.modified()).map(DateTime::from);
                Item { used: used.contains(&path), path, size, asked_for: asked_for.unwrap_or_default() }
            })
            .collect()
    }

    /// What there is.
    pub fn usage(&self, directory: &Path, used: &[PathBuf]) -> Artifacts {
        let items = self.items(directory, used);
        Artifacts {
            count: items.len(),
            bytes: items.iter().map(|item| item.size).sum(),
            unused: items.iter().filter(|item| !item.used).count(),
            max_bytes: self.limit,
        }
    }

    /// The most bytes that another artifact may have.
    pub fn room(&self, directory: &Path, used: &[PathBuf], now: DateTime<Utc>) -> u64 {
        let stays = self.items(directory, used).into_iter().filter(|item| item.used || !is_older(item, now, FRESH));
        self.limit.saturating_sub(stays.map(|item| item.size).sum())
    }

    /// Takes unused artifacts away until there is room for so many bytes. False: there is none.
    pub fn make_room(&self, bytes: u64, directory: &Path, used: &[PathBuf], now: DateTime<Utc>) -> bool {
        let mut items = self.items(directory, used);
        let mut taken: u64 = items.iter().map(|item| item.size).sum();
        items.retain(|item| !item.used && is_older(item, now, FRESH));
        items.sort_by_key(|item| item.asked_for);
        for item in items {
            if taken.saturating_add(bytes) <= self.limit {
                break;
            }
            match fs::remove_dir_all(&item.path) {
                Ok(()) => taken -= item.size,
                Err(error) => {
                    tracing::warn!(path = %item.path.display(), %error, "an unused artifact cannot be removed")
                }
            }
        }
        taken.saturating_add(bytes) <= self.limit
    }

    /// Takes away what is unused for so long, and what fetches that broke off have left.
    pub fn sweep(&self, directory: &Path, used: &[PathBuf], now: DateTime<Utc>, unused_for: Duration) {
        for item in self.items(directory, used).iter().filter(|item| !item.used && is_older(item, now, unused_for)) {
            if let Err(error) = fs::remove_dir_all(&item.path) {
                tracing::warn!(path = %item.path.display(), %error, "an unused artifact cannot be removed");
            }
        }
        for (_, path) in files::names(directory).unwrap_or_default() {
            if path.extension().is_some_and(|extension| extension == "tmp") {
                let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            }
        }
    }

    /// Says that there is no room, and what to do.
    pub fn refusal(&self, what: &str, bytes: u64, directory: &Path, used: &[PathBuf]) -> Error {
        let usage = self.usage(directory, used);
        refuse(
            ErrorKind::Exhausted,
            format!(
                "artifact {what} needs {bytes} bytes or more, but the {} artifacts of this host have {} of at most {} \
                 bytes already ({} of them are unused, and go some minutes after they were last asked for); destroy old \
                 server groups, deploy a smaller artifact, or start the host with a higher --max-artifact-bytes",
                usage.count, usage.bytes, self.limit, usage.unused
            ),
        )
    }
}

fn is_older(item: &Item, now: DateTime<Utc>, than: Duration) -> bool {
    (now - item.asked_for).to_std().is_ok_and(|age| age >= than)
}

/// The bytes of all files in a directory.
pub fn size_of(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut todo = vec![directory.to_path_buf()];
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            todo.extend(files::names(&path).unwrap_or_default().into_iter().map(|(_, path)| path));
        } else if meta.is_file() {
            bytes += meta.len();
        }
    }
    bytes
}
