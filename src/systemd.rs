//! What a service says to systemd: one datagram to the socket that `NOTIFY_SOCKET` names. Started
//! by anything else there is no such variable, and nothing is said.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The variable with the socket's path; `@` begins the name of one without a file.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// How long systemd waits for a sign of life, in microseconds, and whose it is.
const WATCHDOG_VARIABLES: [&str; 2] = ["WATCHDOG_USEC", "WATCHDOG_PID"];

/// What is taken out of the environment of programs that speak for themselves.
pub const VARIABLES: [&str; 3] = [SOCKET_VARIABLE, WATCHDOG_VARIABLES[0], WATCHDOG_VARIABLES[1]];

/// Whether systemd (or one that does the same) has started this process and listens.
#[must_use]
pub fn is_there() -> bool {
    std::env::var_os(SOCKET_VARIABLE).is_some_and(|socket| !socket.is_empty())
}

/// Says something: `READY=1`, `STOPPING=1`, several on a line each. What cannot be said is dropped:
/// a service does not fail because nobody listens.
pub fn notify(state: &str) {
    if let Some(socket) = std::env::var_os(SOCKET_VARIABLE).filter(|socket| !socket.is_empty())
        && let Err(error) = send(&socket, state)
    {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    // A full queue must not hold up the service.
    sender.set_nonblocking(true)?;
    match socket.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            sender.send_to_addr(state.as_bytes(), &address)?;
        }
        _ => {
            sender.send_to(state.as_bytes(), socket)?;
        }
    }
    Ok(())
}

/// How often to say `WATCHDOG=1`: half of what systemd waits. None where it does not watch this process.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    watchdog_of(variable(WATCHDOG_VARIABLES[0]), variable(WATCHDOG_VARIABLES[1]), std::process::id())
}

fn watchdog_of(micros: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let micros: u64 = micros?.parse().ok().filter(|micros| *micros > 0)?;
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    ours.then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_told_twice_in_its_time_by_whom_it_watches() {
        let half = |micros: &str, pid: Option<&str>| watchdog_of(Some(micros.into()), pid.map(Into::into), 7);
        assert_eq!(half("30000000", None), Some(Duration::from_secs(15)));
        assert_eq!(half("30000000", Some("7")), Some(Duration::from_secs(15)));
        assert_eq!(half("30000000", Some("8")), None);
        assert_eq!((half("0", None), half("x", None)), (None, None));
        assert_eq!(watchdog_of(None, None, 7), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_message_arrives_at_sockets_with_and_without_a_file() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("gennaker-notify-{}", uuid::Uuid::new_v4().simple());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
        let path = std::env::temp_dir().join(&name);
        let listeners = [
            (UnixDatagram::bind_addr(&address).expect("binds"), format!("@{name}")),
            (UnixDatagram::bind(&path).expect("binds"), path.display().to_string()),
        ];
        for (listener, socket) in listeners {
            send(OsStr::new(&socket), "READY=1").expect("sent");
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], b"READY=1");
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(send(path.as_os_str(), "READY=1").is_err());
    }
}
