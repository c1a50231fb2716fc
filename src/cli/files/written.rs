//! What exports wrote into a directory, so that only that is removed from it again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The file of the directory that keeps it, as `sha256sum` writes one. `apply` takes no hidden file.
const WRITTEN: &str = ".gennaker-export";

/// The files that exports wrote into a directory, each with the SHA-256 of what was written.
pub struct Written {
    directory: PathBuf,
    digests: BTreeMap<PathBuf, String>,
    /// As the file has it.
    kept: String,
}

impl Written {
    /// What is kept in a directory, which need not be there. A line that is none, such as a mark of a
    /// merge, is passed over: the file it was about stays.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(directory: &Path) -> anyhow::Result<Self> {
        let file = directory.join(WRITTEN);
        let kept = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("reading {}", file.display()))?,
        };
        let entries = kept.lines().filter_map(|line| line.split_once("  "));
        let digests = entries
            .filter(|(digest, _)| digest.len() == 64)
            .map(|(digest, path)| (PathBuf::from(path), digest.to_owned()))
            .collect();
        Ok(Self { directory: directory.to_owned(), digests, kept })
    }

    /// A file, named from the directory on, was written with this text.
    pub fn note(&mut self, path: &Path, text: &str) {
        self.digests.insert(path.to_owned(), digest(text));
    }

    /// Whether an export wrote a file, and it still has this text.
    pub fn holds(&self, path: &Path, text: &str) -> bool {
        self.digests.get(path).is_some_and(|known| *known == digest(text))
    }

    /// Keeps it, without the files that are gone. The file is whole at any time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(mut self) -> anyhow::Result<()> {
        self.digests.retain(|path, _| self.directory.join(path).is_file());
        let lines = self.digests.iter().map(|(path, digest)| format!("{digest}  {}\n", path.display()));
        let text: String = lines.collect();
        if text == self.kept {
            return Ok(());
        }
        let file = self.directory.join(WRITTEN);
        let temporary = self.directory.join(format!("{WRITTEN}.{}", Uuid::new_v4().simple()));
        let written = (|| {
            let mut new = File::create_new(&temporary)?;
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            fs::rename(&temporary, &file)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.with_context(|| format!("writing {}", file.display()))
    }
}

/// The SHA-256 of a text, as hex digits.
pub fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
