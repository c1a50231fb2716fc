//! What an instance writes, in files named by a generation that only rises: a place in the log is
//! (generation, offset). A file that is full is followed by the next; the last three are kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::files;

/// A file is followed by another when it holds this many bytes.
pub const FILE_BYTES: u64 = 10 * 1024 * 1024;

/// So many files are kept.
pub const FILES: usize = 3;

/// The log of one instance, open for writing at its end.
pub struct Log {
    directory: PathBuf,
    generation: u64,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    /// Goes on where the last writer ended.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Self::with_limit(directory, FILE_BYTES)
    }

    fn with_limit(directory: &Path, limit: u64) -> io::Result<Self> {
        files::make_directory(directory)?;
        let generation = generations(directory)?.last().copied().unwrap_or(0);
        let (file, size) = open(directory, generation)?;
        Ok(Self { directory: directory.to_path_buf(), generation, file, size, limit })
    }

    /// Appends bytes; a file that is full is closed and the oldest one too many removed.
    ///
    /// # Errors
    /// The operating system's; then nothing of these bytes may be there, or a part.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size >= self.limit {
            let (file, size) = open(&self.directory, self.generation + 1)?;
            (self.file, self.size) = (file, size);
            self.generation += 1;
            let generations = generations(&self.directory)?;
            for old in generations.iter().rev().skip(FILES) {
                files::remove(&path(&self.directory, *old))?;
            }
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// The end of a log, at most so many bytes, from the beginning of a line where one begins there.
///
/// # Errors
/// The operating system's, with the path.
pub fn tail(directory: &Path, bytes: usize) -> io::Result<String> {
    let mut left = bytes as u64;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut whole = true;
    for generation in generations(directory)?.into_iter().rev() {
        let path = path(directory, generation);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // Rotated away since we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(files::about(&path, "cannot read", &error)),
        };
        let size = file.metadata()?.len();
        let take = size.min(left);
        file.seek(SeekFrom::Start(size - take))?;
        let mut part = Vec::new();
        file.take(take).read_to_end(&mut part)?;
        parts.push(part);
        left -= take;
        if left == 0 {
            whole = take == size && generation == 0;
            break;
        }
    }
    parts.reverse();
    let all = parts.concat();
    let start = match all.iter().position(|byte| *byte == b'\n') {
        Some(end) if !whole && end + 1 < all.len() => end + 1,
        _ => 0,
    };
    Ok(String::from_utf8_lossy(&all[start..]).into_owned())
}

fn path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("output.{generation}.log"))
}

fn open(directory: &Path, generation: u64) -> io::Result<(File, u64)> {
    let path = path(directory, generation);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| files::about(&path, "cannot open", &error))?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Ascending.
fn generations(directory: &Path) -> io::Result<Vec<u64>> {
    let mut generations: Vec<u64> = files::names(directory)?
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("output.")?.strip_suffix(".log")?.parse().ok())
        .collect();
    generations.sort_unstable();
    Ok(generations)
}

#[cfg(test)]
mod tests {
    use super::super::files::scratch::Scratch;
    use super::*;

    #[test]
    fn the_last_files_are_kept_and_the_tail_spans_them() {
        let scratch = Scratch::new();
        let mut log = Log::with_limit(scratch.path(), 100).expect("opens");
        for line in 0..100 {
            log.append(format!("line {line:04}\n").as_bytes()).expect("writes");
        }
        assert_eq!(generations(scratch.path()).expect("listed"), [7, 8, 9]);
        let text = tail(scratch.path(), 155).expect("reads");
        assert!(text.starts_with("line ") && text.ends_with("line 0099\n"), "{text}");
        assert_eq!(text.lines().count(), 15);
    }

    #[test]
    fn the_next_writer_goes_on_where_the_last_ended() {
        let scratch = Scratch::new();
        Log::open(scratch.path()).and_then(|mut log| log.append(b"one\n")).expect("writes");
        Log::open(scratch.path()).and_then(|mut log| log.append(b"two\n")).expect("writes");
        assert_eq!(tail(scratch.path(), 1_000).expect("reads"), "one\ntwo\n");
        assert_eq!(tail(&scratch.path().join("none"), 1_000).expect("nothing is fine"), "");
    }
}
