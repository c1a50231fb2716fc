//! Which process is meant: boot, process id and start time together, so that a number that was
//! given to another process later is never signalled. Reads `/proc` on Linux and asks `ps` elsewhere.

use std::io;
use std::path::Path;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process of one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Of the machine; another one after a restart of it.
    pub boot: String,
    /// The process id.
    pub pid: i32,
    /// Clock ticks since boot on Linux; a text for people elsewhere.
    pub start: String,
}

impl Identity {
    /// The process that has this id now.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::of(pid).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}")))?;
        Ok(Self { boot: boot()?, pid, start: stat.start })
    }

    /// This process.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn own() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// Whether this very process lives; one that has ended and was not yet reaped does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot)
            && Stat::of(self.pid).is_some_and(|stat| stat.start == self.start && !stat.ended)
    }

    /// Sends a signal to the whole group that this process leads, if it still lives.
    pub fn signal_group(&self, signal: Signal) -> bool {
        self.is_alive() && killpg(Pid::from_raw(self.pid), signal).is_ok()
    }

    /// Sends a signal to this process alone, if it still lives.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_alive() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }
}

/// What the system says of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The parent's process id.
    pub parent: i32,
    /// The process group's id.
    pub group: i32,
    /// None where the system does not tell.
    pub session: Option<i32>,
    /// As of [`Identity::start`].
    pub start: String,
    /// Dead, but not yet reaped.
    pub ended: bool,
}

#[cfg(target_os = "linux")]
impl Stat {
    /// None when there is no such process.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // The name stands in parentheses and may hold anything, parentheses too.
        let rest = line.rsplit_once(')')?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            ended: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok(),
            start: (*fields.get(19)?).to_owned(),
        })
    }

    /// Whether it was started no earlier than another process of the same boot.
    fn is_as_young_as(&self, other: &Identity) -> bool {
        matches!((self.start.parse::<u64>(), other.start.parse::<u64>()), (Ok(own), Ok(others)) if own >= others)
    }

    /// All processes that there are.
    #[must_use]
    pub fn all() -> Vec<(i32, Self)> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                Some((pid, Self::of(pid)?))
            })
            .collect()
    }
}

#[cfg(not(target_os = "linux"))]
impl Stat {
    /// None when there is no such process.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Self::ask(&["-o", "pid=,ppid=,pgid=,stat=,lstart=", "-p", &pid.to_string()]).pop().map(|(_, stat)| stat)
    }

    /// All processes that there are.
    #[must_use]
    pub fn all() -> Vec<(i32, Self)> {
        Self::ask(&["-axo", "pid=,ppid=,pgid=,stat=,lstart="])
    }

    fn ask(arguments: &[&str]) -> Vec<(i32, Self)> {
        let Ok(output) = std::process::Command::new("ps").args(arguments).output() else { return Vec::new() };
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                let pid = fields.next()?.parse().ok()?;
                let parent = fields.next()?.parse().ok()?;
                let group = fields.next()?.parse().ok()?;
                let ended = fields.next()?.starts_with('Z');
                Some((pid, Self { parent, group, session: None, ended, start: fields.collect::<Vec<_>>().join(" ") }))
            })
            .collect()
    }
}

/// A text that is another one after each boot.
///
/// # Errors
/// Where the system does not tell.
#[cfg(target_os = "linux")]
pub fn boot() -> io::Result<String> {
    static BOOT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot.clone());
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT.get_or_init(|| boot).clone())
}

/// A text that is another one after each boot.
///
/// # Errors
/// Where the system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn boot() -> io::Result<String> {
    let output = std::process::Command::new("sysctl").args(["-n", "kern.boottime"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The processes of an instance: its group, and all that descend from its shim.
#[must_use]
pub fn family(shim: i32, group: i32) -> Vec<i32> {
    let all: std::collections::BTreeMap<i32, Stat> = Stat::all().into_iter().collect();
    let descends = |mut pid: i32| {
        // A chain of parents is short; the bound is against one that changes under our eyes.
        for _ in 0..64 {
            match all.get(&pid) {
                Some(stat) if stat.parent == shim => return true,
                Some(stat) if stat.parent > 1 => pid = stat.parent,
                _ => return false,
            }
        }
        false
    };
    all.iter()
        .filter(|(pid, stat)| !stat.ended && (stat.group == group || descends(**pid)))
        .map(|(pid, _)| *pid)
        .collect()
}

/// What a shim that was killed has left: the processes of its session and of its command's group,
/// those that were given the instance's own `home`, and what descends from them. Leaders may be dead for long: Linux gives the number of a session
/// or group to no other process while it has members, and what was started before the shim, or
/// belongs to another process that got a number later, is not meant.
#[cfg(target_os = "linux")]
#[must_use]
pub fn left_behind(shim: &Identity, command: Option<&Identity>, home: &Path) -> Vec<i32> {
    use std::os::unix::ffi::OsStrExt as _;
    if boot().ok().as_deref() != Some(shim.boot.as_str()) {
        return Vec::new();
    }
    let all: std::collections::BTreeMap<i32, Stat> = Stat::all().into_iter().collect();
    let still_its = |leader: &&Identity| all.get(&leader.pid).is_none_or(|stat| stat.start == leader.start);
    let session = Some(shim).filter(still_its).map(|shim| shim.pid);
    let group = command.filter(still_its).map(|command| command.pid);
    let member = |stat: &Stat| (session.is_some() && stat.session == session) || Some(stat.group) == group;
    let home = [b"HOME=", home.as_os_str().as_bytes()].concat();
    // What left the session, and lost its parent with the shim, is known by nothing else.
    let at_home = |pid: i32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == home))
    };
    let meant = |mut pid: i32| {
        // A chain of parents is short; the bound is against one that changes under our eyes.
        for _ in 0..64 {
            match all.get(&pid) {
                Some(stat) if stat.is_as_young_as(shim) && (member(stat) || at_home(pid)) => return true,
                Some(stat) if stat.is_as_young_as(shim) && stat.parent > 1 => pid = stat.parent,
                _ => return false,
            }
        }
        false
    };
    let own = nix::unistd::getpid().as_raw();
    all.iter().filter(|(pid, stat)| **pid != own && !stat.ended && meant(**pid)).map(|(pid, _)| *pid).collect()
}

/// What a shim that was killed has left: its command and what is in the command's group. Only a
/// leader that lives shows that the group's number is still the command's.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn left_behind(_: &Identity, command: Option<&Identity>, _: &Path) -> Vec<i32> {
    let Some(command) = command.filter(|command| command.is_alive()) else { return Vec::new() };
    let all = Stat::all().into_iter();
    all.filter(|(_, stat)| !stat.ended && stat.group == command.pid).map(|(pid, _)| pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_the_same_id() {
        let own = Identity::own().expect("this process is there");
        assert!(own.is_alive());
        let other = Identity { start: "1".to_owned(), ..own.clone() };
        assert!(!other.is_alive());
        assert!(!other.signal(Signal::SIGKILL), "nothing is sent to a process that is another");
        let earlier = Identity { boot: "another boot".to_owned(), ..own };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn a_process_that_ended_is_not_alive_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let identity = Identity::of(i32::try_from(child.id()).expect("fits")).expect("there");
        assert!(identity.is_alive());
        child.kill().expect("can be killed");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while identity.is_alive() {
            assert!(std::time::Instant::now() < deadline, "still alive");
            std::thread::yield_now();
        }
        child.wait().expect("reaped");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = "7 (a) b (c)) S 3 5 5 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let stat = Stat::parse(line).expect("parses");
        assert_eq!((stat.parent, stat.group, stat.start.as_str(), stat.ended), (3, 5, "4242", false));
        assert_eq!(stat.session, Some(5));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_older_than_a_shim_or_led_by_another_is_not_left_by_it() {
        use std::os::unix::process::CommandExt as _;
        let mut leader = std::process::Command::new("sleep")
            .arg("60")
            .env("HOME", "/the/instance's/home")
            .process_group(0)
            .spawn()
            .expect("sleep starts");
        let command = Identity::of(i32::try_from(leader.id()).expect("fits")).expect("there");
        let elsewhere = Path::new("/the/instance's");
        // No process has this id, so nothing is in its session.
        let shim = |start: &str| Identity { pid: i32::MAX, start: start.to_owned(), ..command.clone() };
        assert_eq!(left_behind(&shim(&command.start), Some(&command), elsewhere), [command.pid]);
        let home = Path::new("/the/instance's/home");
        let until_it_runs = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while left_behind(&shim(&command.start), None, home) != [command.pid] {
            assert!(std::time::Instant::now() < until_it_runs, "known by its home");
            std::thread::yield_now();
        }
        let later = (command.start.parse::<u64>().expect("a number") + 1).to_string();
        assert!(left_behind(&shim(&later), Some(&command), home).is_empty(), "started before the shim");
        let reused = Identity { start: "1".to_owned(), ..command.clone() };
        assert!(left_behind(&shim("1"), Some(&reused), elsewhere).is_empty(), "the number is another process's by now");
        let earlier = Identity { boot: "another boot".to_owned(), ..shim("1") };
        assert!(left_behind(&earlier, Some(&command), home).is_empty());
        leader.kill().expect("can be killed");
        leader.wait().expect("reaped");
    }
}
