//! Whose socket listens on a port: an instance counts as running only when its own processes do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::identity;

/// What was found on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// The instance's own processes, and no others.
    Own,
    /// Nobody.
    Nobody,
    /// Another process, or one besides.
    Foreign,
    /// The system does not tell.
    Unknown,
}

/// Where a socket was last seen, so that the next look is one system call.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Option<(u64, PathBuf)>>);

/// Who listens on the port, seen from an instance with this shim and process group.
#[must_use]
pub fn listening(port: u16, shim: i32, group: i32, seen: &Seen) -> Listening {
    let Some(sockets) = listeners(port) else { return Listening::Unknown };
    if sockets.is_empty() {
        return Listening::Nobody;
    }
    let mut seen = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((inode, path)) = &*seen
        && sockets.iter().eq([inode])
        && socket_at(path) == Some(*inode)
    {
        return Listening::Own;
    }
    *seen = None;
    let mut found: BTreeSet<u64> = BTreeSet::new();
    // Nearly always it is the command itself; only else are all its descendants looked for.
    for pids in [vec![group], identity::family(shim, group)] {
        for pid in pids {
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in entries.flatten() {
                if let Some(inode) = socket_at(&entry.path())
                    && sockets.contains(&inode)
                {
                    found.insert(inode);
                    *seen = Some((inode, entry.path()));
                }
            }
        }
        if found == sockets {
            return Listening::Own;
        }
    }
    Listening::Foreign
}

fn socket_at(path: &std::path::Path) -> Option<u64> {
    fs::read_link(path).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of the sockets that listen on a port; none where the system does not tell.
fn listeners(port: u16) -> Option<BTreeSet<u64>> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let mut inodes = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(file) = File::open(table) else { continue };
        for line in BufReader::new(file).lines().skip(1) {
            let Ok(line) = line else { break };
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            // The kernel lists what listens first; what follows are connections, maybe thousands.
            if *state != "0A" {
                break;
            }
            let here = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if here == Some(port)
                && let Ok(inode) = inode.parse()
            {
                inodes.insert(inode);
            }
        }
    }
    Some(inodes)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_told_by_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("has one").port();
        let own = nix::unistd::getpid().as_raw();
        let seen = Seen::default();
        // As its own leader, found through the descriptors of the process itself; then from memory.
        assert_eq!(listening(port, 1, own, &seen), Listening::Own);
        assert_eq!(listening(port, 1, own, &seen), Listening::Own);
        let mut other = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        let pid = i32::try_from(other.id()).expect("fits");
        assert_eq!(listening(port, pid, pid, &Seen::default()), Listening::Foreign);
        drop(listener);
        assert_eq!(listening(port, 1, own, &seen), Listening::Nobody);
        other.kill().expect("can be killed");
        other.wait().expect("reaped");
    }
}
