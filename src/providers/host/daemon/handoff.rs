//! Listening sockets that outlive the worker: it binds them and hands copies to the keeper over a
//! Unix socket; the next worker gets them all at its start, so that no connection is refused.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{Backlog, ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The name under which the control socket is held.
pub const CONTROL: &str = "control";

/// A message has at most this many bytes.
const MAX_MESSAGE: u32 = 64 * 1024;

/// What a worker says to its keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum ToKeeper {
    /// It runs, and can take over.
    Hello,
    /// Keep the socket that comes with this under a name.
    Hold { name: String },
    /// Close the socket of that name.
    Drop { name: String },
    /// It serves; whoever served before may drain.
    Ready { pid: u32 },
    /// Start another worker in my place, from this binary or the same.
    Upgrade { binary: Option<PathBuf> },
    /// The host ends.
    Stop,
}

/// What a keeper says to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum ToWorker {
    /// A socket that was held.
    Held { name: String },
    /// That was the last one.
    All { keeper: u32 },
    /// Let go of the state; go on serving connections.
    Release,
    /// Another one serves: end what is open, then yourself.
    Drain,
}

/// Sends a message, with a socket if one is given.
pub fn send<T: Serialize>(stream: &UnixStream, message: &T, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_all(stream, message, socket.as_slice())
}

/// Descriptors that come with one message, at most.
pub const MAX_DESCRIPTORS: usize = 64;

/// The same with up to [`MAX_DESCRIPTORS`] descriptors.
pub fn send_all<T: Serialize>(stream: &UnixStream, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes();
    // The socket goes with the four bytes of the length, and so is received with them.
    let sockets = descriptors.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>();
    let control = if sockets.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&sockets)] };
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&length)], &control, MsgFlags::empty(), None)?;
    let mut writer = stream;
    writer.write_all(&length[sent..])?;
    writer.write_all(&body)
}

/// Waits for a message; none when the other side is gone.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    Ok(receive_all(stream)?.map(|(message, mut descriptors)| (message, descriptors.pop())))
}

/// The same with all descriptors that came with it.
pub fn receive_all<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut received_with = Vec::new();
    let mut read = 0;
    while read < length.len() {
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut length[read..])];
        let flags = if cfg!(target_os = "linux") { CLOSE_ON_EXEC } else { MsgFlags::empty() };
        let received = match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(received) => received,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    received_with.push(own(descriptor));
                }
            }
        }
        read += received.bytes;
    }
    let length = u32::from_be_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message between keeper and worker is too long"));
    }
    let mut body = vec![0; length as usize];
    let mut reader = stream;
    match reader.read_exact(&mut body) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let message = serde_json::from_slice(&body).map_err(io::Error::other)?;
    Ok(Some((message, received_with)))
}

#[cfg(target_os = "linux")]
const CLOSE_ON_EXEC: MsgFlags = MsgFlags::MSG_CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const CLOSE_ON_EXEC: MsgFlags = MsgFlags::empty();

#[expect(unsafe_code, reason = "the kernel gives received descriptors as numbers")]
fn own(descriptor: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The worker's listening sockets, copies of which the keeper holds.
pub struct Sockets {
    keeper: Mutex<Option<UnixStream>>,
    held: Mutex<BTreeMap<String, OwnedFd>>,
    /// What was let go of a moment ago: the keeper may have its copy still.
    released: Mutex<Vec<(String, Instant)>>,
}

/// How long the keeper may take to let go of a socket.
const LETTING_GO: Duration = Duration::from_secs(1);

impl Sockets {
    /// With what a keeper gave; without a keeper, nothing outlives the worker.
    #[must_use]
    pub fn new(keeper: Option<UnixStream>, held: BTreeMap<String, OwnedFd>) -> Self {
        Self { keeper: Mutex::new(keeper), held: Mutex::new(held), released: Mutex::default() }
    }

    /// A socket that is held.
    pub fn get(&self, name: &str) -> Option<OwnedFd> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.try_clone().ok()
    }

    /// Holds a socket from now on, here and at the keeper.
    pub fn hold(&self, name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
        let copy = socket.try_clone_to_owned()?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), copy);
        self.tell(&ToKeeper::Hold { name: name.to_owned() }, Some(socket));
        Ok(())
    }

    /// Lets go of a socket.
    pub fn release(&self, name: &str) {
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(name).is_some() {
            self.released.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), Instant::now()));
            self.tell(&ToKeeper::Drop { name: name.to_owned() }, None);
        }
    }

    /// A new listener; a port that was let go of a moment ago is waited for.
    fn bind(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        let port = format!(":{}", address.port());
        let still_leaves = || {
            let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
            released.retain(|(_, at)| at.elapsed() < LETTING_GO);
            released.iter().any(|(name, _)| name.ends_with(&port))
        };
        loop {
            match std::net::TcpListener::bind(address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && still_leaves() => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                outcome => return outcome,
            }
        }
    }

    /// The listener of a load balancer at an address: the one that is held, or a new one.
    pub fn listener(&self, balancer: &str, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        let name = listener_name(balancer, address);
        let listener = if let Some(held) = self.get(&name) {
            std::net::TcpListener::from(held)
        } else {
            let listener = self.bind(address)?;
            // More may wait than the standard library asks for: the backlog bridges a restart.
            let _ = nix::sys::socket::listen(&listener, Backlog::new(4096).unwrap_or(Backlog::MAXCONN));
            self.hold(&name, listener.as_fd())?;
            listener
        };
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// All names held.
    pub fn names(&self) -> Vec<String> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Says something to the keeper; false when there is none that hears.
    pub fn tell(&self, message: &ToKeeper, socket: Option<BorrowedFd<'_>>) -> bool {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.as_ref().is_some_and(|stream| send(stream, message, socket).is_ok())
    }

    /// Another keeper: it is told everything that is held.
    pub fn set_keeper(&self, keeper: UnixStream) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        for name in self.names() {
            if let Some(socket) = self.get(&name) {
                self.tell(&ToKeeper::Hold { name }, Some(socket.as_fd()));
            }
        }
    }
}

/// The name under which a load balancer's listener is held.
#[must_use]
pub fn listener_name(balancer: &str, address: SocketAddr) -> String {
    format!("lb/{balancer}/{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_goes_through_the_socket_and_still_listens() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("has one");
        send(&here, &ToKeeper::Hold { name: "lb/a".into() }, Some(listener.as_fd())).expect("sent");
        send(&here, &ToKeeper::Ready { pid: 1 }, None).expect("sent");
        drop(listener);
        drop(here);
        let (message, socket) = receive::<ToKeeper>(&there).expect("received").expect("a message");
        assert_eq!(message, ToKeeper::Hold { name: "lb/a".into() });
        let listener = std::net::TcpListener::from(socket.expect("a socket came with it"));
        std::net::TcpStream::connect(address).expect("it still listens");
        listener.accept().expect("and accepts");
        let (message, socket) = receive::<ToKeeper>(&there).expect("received").expect("a message");
        assert!(message == ToKeeper::Ready { pid: 1 } && socket.is_none());
        assert!(receive::<ToKeeper>(&there).expect("the end is no error").is_none());
    }

    #[test]
    fn many_descriptors_come_with_one_message_in_their_order() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let listeners: Vec<_> =
            (0..MAX_DESCRIPTORS).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("binds")).collect();
        let borrowed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        send_all(&here, &"all", &borrowed).expect("sent");
        let (message, received) = receive_all::<String>(&there).expect("received").expect("a message");
        assert_eq!(message, "all");
        let address = |listener: &std::net::TcpListener| listener.local_addr().expect("has one");
        let received: Vec<_> = received.into_iter().map(|socket| address(&socket.into())).collect();
        assert_eq!(received, listeners.iter().map(address).collect::<Vec<_>>());
    }

    #[test]
    fn a_held_listener_is_used_again() {
        let sockets = Sockets::new(None, BTreeMap::new());
        let any = "127.0.0.1:0".parse().expect("an address");
        let first = sockets.listener("a", any).expect("binds");
        let second = sockets.listener("a", any).expect("is held");
        assert_eq!(first.local_addr().expect("one"), second.local_addr().expect("one"));
        sockets.release(&listener_name("a", any));
        assert!(sockets.names().is_empty());
    }
}
