//! One instance's directory: what its shim says there, starting a shim, and stopping what runs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{files, own_log};
use crate::providers::host::launch::Stop;
use crate::providers::host::shim::{Exit, Exited, InstanceDirectory, Running, Start};

/// What is known of the process of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// It was never started, or its shim never got to it.
    Nothing,
    /// A shim is at work, but has not said what runs.
    Starting,
    Runs(Running),
    /// It ended; by whom it was written is no matter.
    Ended(Exit),
}

/// Looks at the files and the processes that they name.
///
/// # Errors
/// Files that cannot be read.
pub fn observe(directory: &InstanceDirectory, incarnation: u64) -> io::Result<Observed> {
    let ended = || -> io::Result<Option<Exit>> {
        let exited = files::read_json::<Exited>(&directory.exited())?;
        Ok(exited.filter(|exited| exited.incarnation == incarnation).map(|exited| exited.how))
    };
    if let Some(exit) = ended()? {
        return Ok(Observed::Ended(exit));
    }
    let running = files::read_json::<Running>(&directory.running())?;
    if let Some(running) = running.filter(|running| running.incarnation == incarnation) {
        if running.shim.is_alive() {
            return Ok(if running.process.is_some() { Observed::Runs(running) } else { Observed::Starting });
        }
        // It may have written its last word since we looked.
        if let Some(exit) = ended()? {
            return Ok(Observed::Ended(exit));
        }
        // The shim was killed: what it started must not go on unseen.
        let _ = running.kill_left_behind(directory);
        return Ok(Observed::Ended(Exit::Unknown));
    }
    end_late(directory, incarnation)?;
    Ok(if shim_is_there(directory) { Observed::Starting } else { Observed::Nothing })
}

/// Ends a shim that came so late that its incarnation was given up: those after it would wait for its
/// lock for as long as its command runs.
fn end_late(directory: &InstanceDirectory, incarnation: u64) -> io::Result<()> {
    let Some(late) = files::read_json::<Running>(&directory.running())? else { return Ok(()) };
    if late.incarnation >= incarnation || !late.shim.is_alive() {
        return Ok(());
    }
    // One that has said how its command ended is on its way out.
    let exited = files::read_json::<Exited>(&directory.exited())?;
    if exited.is_none_or(|exited| exited.incarnation < late.incarnation) {
        tracing::warn!(directory = %directory.0.display(), incarnation = late.incarnation, "a shim came too late and is ended");
        late.shim.signal(Signal::SIGKILL);
        let _ = late.kill_left_behind(directory);
    }
    Ok(())
}

/// Whether a shim that was killed left something that is not gone yet.
fn something_is_left(directory: &InstanceDirectory) -> bool {
    matches!(files::read_json::<Running>(&directory.running()), Ok(Some(running)) if running.kill_left_behind(directory))
}

/// Whether a shim holds the instance's lock.
#[must_use]
pub fn shim_is_there(directory: &InstanceDirectory) -> bool {
    let Ok(lock) = File::options().write(true).open(directory.lock()) else { return false };
    matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

/// Starts a shim for what is written here first.
///
/// # Errors
/// The operating system's, saying what could not be done.
pub fn start(directory: &InstanceDirectory, start: &Start, program: &Path) -> io::Result<()> {
    files::write_json(&directory.start(), start)?;
    let log = directory.0.join("shim.log");
    own_log::empty_when_large(&log, own_log::SHIM_LOG_BYTES, false);
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(|error| files::about(&log, "cannot open", &error))?;
    let child = tokio::process::Command::new(program)
        .arg("shim")
        .arg("--dir")
        .arg(&directory.0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| files::about(program, "cannot run the shim", &error))?;
    // Not waited for: it outlives us, and is reaped in the background while we live.
    drop(child);
    Ok(())
}

/// Ends what runs: asks, waits for the grace time, kills. Comes back when nothing is left.
pub async fn stop(directory: &InstanceDirectory, incarnation: u64, stop: &Stop) {
    // A shim that has not begun yet finds nothing to start.
    let _ = files::remove(&directory.start());
    let begun = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        match observe(directory, incarnation) {
            Ok(Observed::Runs(running)) => {
                let group = running.process.as_ref();
                match asked {
                    None => {
                        group.map(|process| process.signal_group(stop.signal()));
                        asked = Some(Instant::now());
                    }
                    Some(at) if at.elapsed() >= stop.grace() + Duration::from_secs(10) => {
                        // The shim should long have cleaned up; it is stuck.
                        group.map(|process| process.signal_group(Signal::SIGKILL));
                        running.shim.signal(Signal::SIGKILL);
                    }
                    Some(at) if at.elapsed() >= stop.grace() => {
                        group.map(|process| process.signal_group(Signal::SIGKILL));
                    }
                    Some(_) => {}
                }
            }
            Ok(Observed::Starting) if begun.elapsed() < Duration::from_secs(30) => {}
            Ok(ended @ (Observed::Starting | Observed::Nothing | Observed::Ended(_))) => {
                let cleaned = ended != Observed::Ended(Exit::Unknown) || !something_is_left(directory);
                if (cleaned && !shim_is_there(directory)) || begun.elapsed() > stop.grace() + Duration::from_secs(60) {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(directory = %directory.0.display(), %error, "cannot see what runs");
                if begun.elapsed() > stop.grace() + Duration::from_secs(60) {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::scratch::Scratch;
    use super::super::identity::Identity;
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_shim_that_came_too_late_stands_in_no_ones_way() {
        let scratch = Scratch::new();
        let directory = InstanceDirectory(scratch.path().to_path_buf());
        let mut shim = std::process::Command::new("sleep").arg("600").spawn().expect("started");
        let identity = Identity::of(i32::try_from(shim.id()).expect("fits")).expect("lives");
        let late = Running {
            incarnation: 1,
            shim: identity,
            process: None,
            launched_at: Clock::system().now(),
            limits: None,
            cgroup: None,
        };
        files::write_json(&directory.running(), &late).expect("written");
        let exited = |incarnation| Exited { incarnation, at: late.launched_at, how: Exit::Status { code: 0 } };
        // One that is just ending is let end.
        files::write_json(&directory.exited(), &exited(1)).expect("written");
        assert_eq!(observe(&directory, 2).expect("seen"), Observed::Nothing);
        assert!(late.shim.is_alive());
        files::write_json(&directory.exited(), &exited(0)).expect("written");
        assert_eq!(observe(&directory, 2).expect("seen"), Observed::Nothing);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&shim.wait().expect("ended")), Some(9));
    }
}
