//! Files that are whole or not there: written beside, flushed, renamed, and the directory flushed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Makes the file hold exactly these bytes, or leaves it as it is. Only its owner may read it.
///
/// # Errors
/// The operating system's, with the path.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        sync_parent(path)
    })();
    written.map_err(|error| {
        // On a full disk the half of it would only be in the way.
        let _ = fs::remove_file(&temporary);
        about(path, "cannot write", &error)
    })
}

/// The same with a value as JSON.
///
/// # Errors
/// As [`write`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    write(path, &bytes)
}

/// Reads a value; none when there is no such file.
///
/// # Errors
/// The operating system's, and content that is not such a value, with the path.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("cannot read {}: {error}", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(about(path, "cannot read", &error)),
    }
}

/// Removes a file for good; absent already is fine.
///
/// # Errors
/// The operating system's, with the path.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(about(path, "cannot remove", &error)),
    }
}

/// Removes a directory with all it holds; absent already is fine.
///
/// # Errors
/// The operating system's, with the path.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(about(path, "cannot remove", &error)),
    }
}

/// Makes a directory that others may pass through but not list (instances may run as another user).
///
/// # Errors
/// The operating system's, with the path.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(|error| about(path, "cannot make", &error))
}

/// Flushes the directory that holds a path.
///
/// # Errors
/// The operating system's.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// The names in a directory, sorted; none when there is no directory.
///
/// # Errors
/// The operating system's, with the path.
pub fn names(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(about(path, "cannot list", &error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push((name, entry.path()));
        }
    }
    names.sort();
    Ok(names)
}

/// The same error with what was done to which path.
#[must_use]
pub fn about(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// A directory of its own for one test, gone when dropped.
#[cfg(test)]
pub mod scratch {
    use std::path::{Path, PathBuf};

    /// Below the system's directory for temporary files.
    pub struct Scratch(PathBuf);

    impl Scratch {
        /// A new, empty one.
        #[expect(clippy::new_without_default, reason = "each call makes another directory")]
        pub fn new() -> Self {
            let path = std::env::temp_dir().join(format!("gennaker-{}", uuid::Uuid::now_v7().simple()));
            std::fs::create_dir_all(&path).expect("a temporary directory can be made");
            Self(path.canonicalize().expect("it is there"))
        }
        /// Absolute, links resolved.
        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::scratch::Scratch;
    use super::*;

    #[test]
    fn what_was_written_reads_back_and_nothing_else_is_left() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a.json");
        assert_eq!(read_json::<u32>(&path).expect("readable"), None);
        write_json(&path, &1_u32).expect("writable");
        write_json(&path, &2_u32).expect("writable");
        assert_eq!(read_json::<u32>(&path).expect("readable"), Some(2));
        assert_eq!(names(scratch.path()).expect("listable").len(), 1);
        remove(&path).expect("removable");
        remove(&path).expect("absent is fine");
    }

    #[test]
    fn an_error_names_the_path() {
        let error = write(Path::new("/nowhere/at/all"), b"x").expect_err("no such directory");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
