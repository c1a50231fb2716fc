//! How a keeper becomes the next binary's without ending: the same process, with all it holds. The
//! descriptors are put into a socket that only this process has both ends of, and wait there while
//! the program is exchanged; the new one takes them out. Should it not manage, it ends, and its
//! worker starts another keeper, as after any end of one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::Options;
use super::handoff::{MAX_DESCRIPTORS, receive_all, send_all};
use super::identity::Identity;

/// What a keeper holds.
pub struct Estate {
    /// The lock of the host's directory.
    pub lock: File,
    pub held: BTreeMap<String, OwnedFd>,
    pub workers: Vec<Heir>,
}

/// A worker as the next keeper gets it.
pub struct Heir {
    pub stream: UnixStream,
    pub about: About,
}

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    pub process: Option<Identity>,
    pub program: PathBuf,
    pub serves: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
enum Message {
    /// With the lock's file.
    Lock,
    /// With a socket for each name.
    Held { names: Vec<String> },
    /// With the socket to it.
    Worker(About),
    /// That was all.
    End,
}

/// Exchanges the program of this process. Comes back only when that did not work out; then all is
/// as before.
pub fn hand_over(options: &Options, program: &Path, estate: &EstateRef<'_>) -> anyhow::Error {
    match prepare(estate) {
        Ok(()) => {
            let error = Command::new(program).args(options.arguments()).arg("--resume").exec();
            // Standard input was the way in for the other one.
            if let Ok(null) = File::open("/dev/null") {
                let _ = nix::unistd::dup2_stdin(null);
            }
            anyhow::Error::from(error).context(format!("cannot run {}", program.display()))
        }
        Err(error) => error,
    }
}

/// The same as [`Estate`], borrowed.
pub struct EstateRef<'a> {
    pub lock: BorrowedFd<'a>,
    pub held: &'a BTreeMap<String, OwnedFd>,
    pub workers: Vec<(BorrowedFd<'a>, About)>,
}

/// Standard input becomes a socket in which everything waits.
fn prepare(estate: &EstateRef<'_>) -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    // What does not fit must not be waited for: nobody reads before the program is exchanged.
    ours.set_nonblocking(true)?;
    let _ = nix::sys::socket::setsockopt(&ours, nix::sys::socket::sockopt::SndBuf, &(4 * 1024 * 1024));
    let sent = (|| {
        send_all(&ours, &Message::Lock, &[estate.lock])?;
        let held: Vec<_> = estate.held.iter().collect();
        for some in held.chunks(MAX_DESCRIPTORS) {
            let names = some.iter().map(|(name, _)| (*name).clone()).collect();
            let sockets: Vec<_> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
            send_all(&ours, &Message::Held { names }, &sockets)?;
        }
        for (stream, about) in &estate.workers {
            send_all(&ours, &Message::Worker(about.clone()), &[*stream])?;
        }
        send_all(&ours, &Message::End, &[])
    })();
    sent.context("what is held does not fit into a socket")?;
    nix::unistd::dup2_stdin(&theirs)?;
    // Ours and the copy of theirs close with the exchange; what was sent stays until it is read.
    Ok(())
}

/// Takes over what the program before put into standard input.
///
/// # Errors
/// When there is nothing, or not all.
pub fn take_over() -> anyhow::Result<Estate> {
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().context("no standard input")?);
    let (mut lock, mut held, mut workers) = (None, BTreeMap::new(), Vec::new());
    loop {
        let (message, descriptors) =
            receive_all::<Message>(&stream).context("nothing was handed over")?.context("not all was handed over")?;
        match message {
            Message::Lock => lock = descriptors.into_iter().next().map(File::from),
            Message::Held { names } => held.extend(names.into_iter().zip(descriptors)),
            Message::Worker(about) => {
                workers
                    .extend(descriptors.into_iter().map(|stream| Heir { stream: stream.into(), about: about.clone() }));
            }
            Message::End => break,
        }
    }
    // Not to be had by the workers that are started later.
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(Estate { lock: lock.context("the lock was not handed over")?, held, workers })
}
