//! The host's own log, where whoever started it gave it one: standard error is the file then, of the
//! keeper and of all that it starts. It is kept within bounds by copying it and emptying it, since a
//! file that is renamed goes on being written to under its new name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{fstat, stat};

/// At this size what it holds goes to `host.log.1`, in place of what was there.
pub const LOG_BYTES: u64 = 10 * 1024 * 1024;

/// Of `shim.log`, in which the shims of an instance say what went wrong: what is larger at the start
/// of the next one is thrown away.
pub const SHIM_LOG_BYTES: u64 = 64 * 1024;

/// Empties the log when it is large and standard error writes to it, having kept a copy.
pub fn keep_small(log: &Path) {
    if is_written_to(io::stderr(), log) {
        empty_when_large(log, LOG_BYTES, true);
    }
}

/// Empties the file when it is larger than that.
pub fn empty_when_large(path: &Path, most: u64, with_copy: bool) {
    if !std::fs::metadata(path).is_ok_and(|meta| meta.len() > most) {
        return;
    }
    if with_copy {
        let aside = path.with_extension("log.1");
        // Where there is no room for a copy, the log must not take what there is.
        if copy(path, &aside, most.saturating_mul(2)).is_err() {
            let _ = std::fs::remove_file(&aside);
        }
    }
    let _ = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
}

/// The last so many bytes of it, in place of the older copy.
fn copy(from: &Path, to: &Path, most: u64) -> io::Result<()> {
    use std::io::{Seek as _, SeekFrom};
    let mut from = File::open(from)?;
    let size = from.metadata()?.len();
    from.seek(SeekFrom::Start(size.saturating_sub(most)))?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    io::copy(&mut from, &mut to).map(drop)
}

/// Whether what is written there goes to the end of that file: only such a file may be emptied.
fn is_written_to(to: impl AsFd, path: &Path) -> bool {
    let same = || -> nix::Result<bool> {
        let (open, named) = (fstat(&to)?, stat(path)?);
        let appends = OFlag::from_bits_truncate(fcntl(&to, FcntlArg::F_GETFL)?).contains(OFlag::O_APPEND);
        Ok(appends && (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino))
    };
    same().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::files::scratch::Scratch;
    use super::*;

    #[test]
    fn a_large_log_is_copied_and_emptied_under_whoever_writes_it() {
        let scratch = Scratch::new();
        let path = scratch.path().join("host.log");
        let aside = scratch.path().join("host.log.1");
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).expect("opened");
        writer.write_all(&[b'a'; 100]).expect("written");
        empty_when_large(&path, 100, true);
        assert!(!aside.exists(), "it may have that much");
        for byte in *b"bc" {
            writer.write_all(&[byte; 101]).expect("written");
            empty_when_large(&path, 100, true);
            writer.write_all(b"next").expect("written");
            assert_eq!(std::fs::read(&path).expect("read"), b"next");
            assert!(std::fs::read(&aside).expect("read").ends_with(&[byte; 101]));
        }
        assert_eq!(std::fs::metadata(&aside).expect("there").len(), 4 + 101, "the copy before is gone");
        // Much at once is cut, too.
        writer.write_all(&[b'd'; 1_000]).expect("written");
        empty_when_large(&path, 100, true);
        assert_eq!(std::fs::metadata(&aside).expect("there").len(), 200);
    }

    #[test]
    fn only_a_file_that_is_appended_to_may_be_emptied() {
        let scratch = Scratch::new();
        let path = scratch.path().join("host.log");
        let appends = OpenOptions::new().append(true).create(true).open(&path).expect("opened");
        assert!(is_written_to(&appends, &path));
        assert!(!is_written_to(&appends, &scratch.path().join("other")));
        let overwrites = OpenOptions::new().write(true).open(&path).expect("opened");
        assert!(!is_written_to(&overwrites, &path));
        std::fs::rename(&path, scratch.path().join("host.log.1")).expect("renamed");
        assert!(!is_written_to(&appends, &path));
    }
}
