//! What an instance writes, in files named by a generation that only rises: a place in the log is
//! (generation, offset). A file that is full is followed by the next; the last three are kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::files;
use crate::providers::{LogPart, LogPlace};

/// So many files are kept.
const FILES: usize = 3;

/// The log of one instance, open for writing at its end.
pub struct Log {
    directory: PathBuf,
    generation: u64,
    file: File,
    size: u64,
    limit: u64,
    /// The last line has its end.
    ended: bool,
}

impl Log {
    /// Goes on where the last writer ended, on a line of its own. All files together have so many bytes at most, unless more
    /// than a third of them is appended at once.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(directory: &Path, bytes: u64) -> io::Result<Self> {
        files::make_directory(directory)?;
        let limit = bytes / FILES as u64;
        let generation = generations(directory)?.last().copied().unwrap_or(0);
        let (file, size) = open(directory, generation)?;
        let ended = ends_a_line(&path(directory, generation), size)?;
        let mut log = Self { directory: directory.to_path_buf(), generation, file, size, limit, ended };
        // A full disk must not keep an instance from its start.
        let _ = log.end_line();
        Ok(log)
    }

    /// Ends the last line, where its writer has not: nothing more is to come of it, and whoever follows
    /// the log is given whole lines.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn end_line(&mut self) -> io::Result<()> {
        if self.ended { Ok(()) } else { self.append(b"\n") }
    }

    /// Appends bytes; a file without room for them is closed and the oldest one too many removed.
    ///
    /// # Errors
    /// The operating system's; then nothing of these bytes may be there, or a part.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
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
        self.ended = bytes.last().map_or(self.ended, |byte| *byte == b'\n');
        Ok(())
    }
}

/// Whether a file's last byte is the end of a line; so it is where there is none.
fn ends_a_line(path: &Path, size: u64) -> io::Result<bool> {
    let Some(last) = size.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    let mut file = File::open(path).map_err(|error| files::about(path, "cannot read", &error))?;
    file.seek(SeekFrom::Start(last))?;
    file.read_exact(&mut byte)?;
    Ok(byte == *b"\n")
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

/// What stands from a place on, at most so many bytes; without a place, what [`tail`] would give.
/// A line is given once it is complete or longer than what was asked for. Parts do not go over
/// the end of a file, so that each has one place to go on from.
///
/// # Errors
/// The operating system's, with the path.
pub fn part(directory: &Path, from: Option<LogPlace>, bytes: usize) -> io::Result<LogPart> {
    let generations = generations(directory)?;
    let (Some(&oldest), Some(&newest)) = (generations.first(), generations.last()) else {
        let end = from.unwrap_or(LogPlace { generation: 0, offset: 0 });
        return Ok(LogPart { text: String::new(), end, after_gap: false, more: false });
    };
    let mut after_gap = false;
    let mut at = match from {
        Some(at) => at,
        None => tail_place(directory, &generations, bytes as u64)?,
    };
    if !generations.contains(&at.generation) || at.offset > size(directory, at.generation)? {
        after_gap = true;
        at = LogPlace { generation: oldest, offset: 0 };
    }
    let path = path(directory, at.generation);
    let mut read = Vec::new();
    let mut file = File::open(&path).map_err(|error| files::about(&path, "cannot read", &error))?;
    file.seek(SeekFrom::Start(at.offset))?;
    file.take(bytes as u64).read_to_end(&mut read)?;
    let full = read.len() == bytes;
    if full || at.generation == newest {
        match read.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => read.truncate(end + 1),
            None if full => read.truncate(whole_characters(&read)),
            None => read.clear(),
        }
    }
    let end = at.offset + read.len() as u64;
    // A file that has a successor is written no more.
    let finished = at.generation != newest && !full;
    let end = match generations.iter().find(|generation| **generation > at.generation) {
        Some(&next) if finished => LogPlace { generation: next, offset: 0 },
        _ => LogPlace { generation: at.generation, offset: end },
    };
    Ok(LogPart { text: String::from_utf8_lossy(&read).into_owned(), end, after_gap, more: full || finished })
}

/// Where the last so many bytes begin, moved on to the beginning of a line.
fn tail_place(directory: &Path, generations: &[u64], bytes: u64) -> io::Result<LogPlace> {
    let mut left = bytes;
    let mut place = LogPlace { generation: generations.first().copied().unwrap_or(0), offset: 0 };
    for &generation in generations.iter().rev() {
        let size = size(directory, generation)?;
        if size > left {
            place = LogPlace { generation, offset: size - left };
            break;
        }
        left -= size;
    }
    if place.offset > 0 {
        let mut file = File::open(path(directory, place.generation))?;
        file.seek(SeekFrom::Start(place.offset - 1))?;
        let mut read = Vec::new();
        file.take(bytes + 1).read_to_end(&mut read)?;
        let line = read.iter().position(|byte| *byte == b'\n').filter(|end| end + 1 < read.len());
        place.offset += line.unwrap_or(0) as u64;
    }
    Ok(place)
}

/// Bytes of a file; none where it was rotated away meanwhile.
fn size(directory: &Path, generation: u64) -> io::Result<u64> {
    match path(directory, generation).metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Without a character that is cut at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
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
    use super::super::MAX_INSTANCE_LOG_BYTES;
    use super::super::files::scratch::Scratch;
    use super::*;

    #[test]
    fn the_last_files_are_kept_and_the_tail_spans_them() {
        let scratch = Scratch::new();
        let mut log = Log::open(scratch.path(), 300).expect("opens");
        for line in 0..100 {
            log.append(format!("line {line:04}\n").as_bytes()).expect("writes");
        }
        assert_eq!(generations(scratch.path()).expect("listed"), [7, 8, 9]);
        let text = tail(scratch.path(), 155).expect("reads");
        assert!(text.starts_with("line ") && text.ends_with("line 0099\n"), "{text}");
        assert_eq!(text.lines().count(), 15);
    }

    #[test]
    fn parts_follow_a_log_over_its_files_and_tell_of_gaps() {
        let scratch = Scratch::new();
        let mut log = Log::open(scratch.path(), 300).expect("opens");
        let empty = part(scratch.path(), None, 1_000).expect("reads");
        assert_eq!((empty.text.as_str(), empty.more), ("", false));
        let mut at = empty.end;
        let mut seen = String::new();
        let mut read = |at: &mut LogPlace| {
            loop {
                let part = part(scratch.path(), Some(*at), 37).expect("reads");
                assert!(!part.after_gap);
                assert!(part.text.is_empty() || part.text.ends_with('\n'), "whole lines: {:?}", part.text);
                seen.push_str(&part.text);
                *at = part.end;
                if !part.more {
                    break;
                }
            }
        };
        let mut written = String::new();
        for line in 0..30 {
            let line = format!("line {line:04}\n");
            // In two pieces: a line counts once it is whole.
            log.append(&line.as_bytes()[..4]).expect("writes");
            read(&mut at);
            log.append(&line.as_bytes()[4..]).expect("writes");
            written.push_str(&line);
            if !written.len().is_multiple_of(3) {
                read(&mut at);
            }
        }
        read(&mut at);
        // Nothing is lost and nothing comes twice.
        assert_eq!(seen, written);
        for line in 0..100 {
            log.append(format!("later {line:04}\n").as_bytes()).expect("writes");
        }
        let part = part(scratch.path(), Some(at), 1_000).expect("reads");
        assert!(part.after_gap && part.text.starts_with("later "), "{part:?}");
    }

    #[test]
    fn a_part_without_a_place_is_the_tail_from_a_line_on() {
        let scratch = Scratch::new();
        let mut log = Log::open(scratch.path(), MAX_INSTANCE_LOG_BYTES).expect("opens");
        log.append("one\ntwo\nthree\n".as_bytes()).expect("writes");
        let tail = |bytes| part(scratch.path(), None, bytes).expect("reads").text;
        assert_eq!(tail(100), "one\ntwo\nthree\n");
        assert_eq!(tail(8), "three\n");
        assert_eq!(tail(6), "three\n");
        assert_eq!(tail(10), "two\nthree\n");
        // A line longer than what is asked for comes in pieces, of whole characters.
        log.append("ää\n".as_bytes()).expect("writes");
        let piece = part(scratch.path(), Some(LogPlace { generation: 0, offset: 14 }), 3).expect("reads");
        assert_eq!((piece.text.as_str(), piece.more), ("ä", true));
    }

    #[test]
    fn the_next_writer_goes_on_where_the_last_ended() {
        let scratch = Scratch::new();
        Log::open(scratch.path(), MAX_INSTANCE_LOG_BYTES).and_then(|mut log| log.append(b"one\n")).expect("writes");
        Log::open(scratch.path(), MAX_INSTANCE_LOG_BYTES).and_then(|mut log| log.append(b"two\n")).expect("writes");
        assert_eq!(tail(scratch.path(), 1_000).expect("reads"), "one\ntwo\n");
        // A line that its writer left unfinished does not become the beginning of another's.
        Log::open(scratch.path(), MAX_INSTANCE_LOG_BYTES).and_then(|mut log| log.append(b"hal")).expect("writes");
        let mut log = Log::open(scratch.path(), MAX_INSTANCE_LOG_BYTES).expect("opens");
        log.append(b"three\nfour").and_then(|()| log.end_line()).and_then(|()| log.end_line()).expect("writes");
        assert_eq!(part(scratch.path(), None, 1_000).expect("reads").text, "one\ntwo\nhal\nthree\nfour\n");
        assert_eq!(tail(&scratch.path().join("none"), 1_000).expect("nothing is fine"), "");
    }
}
