//! The parent of one instance: a small process without an async runtime, in a session of its own,
//! that outlives the host. It starts the command, holds its output pipe and rotates the log, reaps
//! every descendant, records how the command ended, and leaves nothing behind.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, Utc};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User};
use serde::{Deserialize, Serialize};

use super::daemon::MAX_INSTANCE_LOG_BYTES;
use super::daemon::files;
use super::daemon::identity::{self, Identity};
use super::daemon::limits::{self, Cgroup};
use super::daemon::logs::Log;
use super::launch::Launch;
use crate::clock::Clock;
use crate::footprint;
use crate::model::NOT_STARTED;
use crate::secrets::{self, Secrets};

/// `start.json`: what the host wants started. Written before the shim is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// The instance's id.
    pub instance: String,
    /// Which start of this instance it is, from 1.
    pub incarnation: u64,
    /// How to run it.
    pub launch: Launch,
    /// The unpacked artifact; the command's working directory.
    pub directory: PathBuf,
    /// The port that it has to listen on; `PORT` in its environment.
    pub port: u16,
    /// Below which `secret://file/…` may point.
    pub secret_roots: Vec<PathBuf>,
    /// Of the log, at most. A host of an earlier version does not say.
    #[serde(default = "log_bytes")]
    pub max_log_bytes: u64,
}

const fn log_bytes() -> u64 {
    MAX_INSTANCE_LOG_BYTES
}

/// `pid.json`: what runs. The shim itself is written before the command is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Of the [`Start`] that it was started by.
    pub incarnation: u64,
    /// The parent of the command.
    pub shim: Identity,
    /// The command; leads a process group of its own.
    pub process: Option<Identity>,
    /// When the shim began.
    pub launched_at: DateTime<Utc>,
    /// How the limits asked for are enforced.
    pub limits: Option<String>,
    /// The control group that it lives in, where it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

impl Running {
    /// Kills, once, what the shim left when it was killed itself. Whether anything was there.
    #[must_use]
    pub fn kill_left_behind(&self, directory: &InstanceDirectory) -> bool {
        if let Some(cgroup) = &self.cgroup {
            limits::kill_and_remove(cgroup);
        }
        let left = identity::left_behind(&self.shim, self.process.as_ref(), &directory.home());
        for pid in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        !left.is_empty()
    }
}

/// `exit.json`: how the command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exited {
    /// Of the [`Start`] that it was started by.
    pub incarnation: u64,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// In which way.
    pub how: Exit,
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum Exit {
    /// It ended by itself.
    Status {
        /// Its exit status; 0 is no better than others to the host.
        code: i32,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        number: i32,
        /// The kernel sent it, since the instance's control group had no memory left.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        out_of_memory: bool,
    },
    /// It never ran.
    NotStarted {
        /// Why, and what to do.
        message: String,
    },
    /// The shim was killed before it could say.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { code } => write!(f, "exit status {code}"),
            Self::Signal { number, out_of_memory: false } => write!(f, "signal {number}"),
            Self::Signal { number, .. } => write!(f, "signal {number}: it took more memory than its limit"),
            Self::NotStarted { message } => write!(f, "{NOT_STARTED}{message}"),
            Self::Unknown => f.write_str("unknown: its shim was killed"),
        }
    }
}

/// The files of an instance's directory.
#[derive(Debug, Clone)]
pub struct InstanceDirectory(pub PathBuf);

impl InstanceDirectory {
    /// A [`Start`].
    #[must_use]
    pub fn start(&self) -> PathBuf {
        self.0.join("start.json")
    }
    /// A [`Running`], of the latest start; it stays when that has ended.
    #[must_use]
    pub fn running(&self) -> PathBuf {
        self.0.join("pid.json")
    }
    /// An [`Exited`], of the latest start that has ended.
    #[must_use]
    pub fn exited(&self) -> PathBuf {
        self.0.join("exit.json")
    }
    /// Locked by the shim as long as it lives.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("shim.lock")
    }
    /// The command's `HOME`; kept over its restarts.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.0.join("home")
    }
    /// Where the log files lie.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("log")
    }
}

/// How long a shim waits for another one of the same instance to go.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How long the shim tries to kill what its command left behind.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Runs the instance of a directory to its end. Must be called before any thread is started.
///
/// # Errors
/// What kept the shim from its work; what kept the command from starting is recorded in `exit.json`.
pub fn run(directory: &Path) -> anyhow::Result<()> {
    // Fails only for the leader of a process group, which a host never starts us as.
    let _ = nix::unistd::setsid();
    let forwarded = forwarded_signals();
    forwarded.thread_block().context("cannot block signals")?;
    let directory = InstanceDirectory(directory.to_path_buf());
    let lock = lock(&directory)?;
    let start: Start = files::read_json(&directory.start())?
        .with_context(|| format!("nothing to start: no {}", directory.start().display()))?;
    if files::read_json::<Exited>(&directory.exited())?.is_some_and(|exit| exit.incarnation >= start.incarnation) {
        anyhow::bail!("incarnation {} of {} has already run", start.incarnation, start.instance);
    }
    end_predecessor(&directory)?;
    adopt_orphans()?;

    let clock = Clock::system();
    let mut running = Running {
        incarnation: start.incarnation,
        shim: Identity::own()?,
        process: None,
        launched_at: clock.now(),
        limits: None,
        cgroup: None,
    };
    files::write_json(&directory.running(), &running)?;
    let how = match spawn(&start, &directory, &mut running) {
        Ok(child) => {
            running.process = Identity::of(child.pid).ok();
            // Recorded even where the process has already ended: its group may live.
            if let Err(error) = files::write_json(&directory.running(), &running) {
                let _ = killpg(Pid::from_raw(child.pid), Signal::SIGKILL);
                return Err(error.into());
            }
            let log = Log::open(&directory.logs(), start.max_log_bytes)?;
            attend(child, log, forwarded)?
        }
        Err(error) => Exit::NotStarted { message: format!("{error:#}") },
    };
    files::write_json(&directory.exited(), &Exited { incarnation: start.incarnation, at: clock.now(), how })?;
    drop(lock);
    Ok(())
}

/// Whoever holds it is the one shim of this instance; it goes with the process.
fn lock(directory: &InstanceDirectory) -> anyhow::Result<File> {
    let path = directory.lock();
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| files::about(&path, "cannot open", &error))?;
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                anyhow::bail!("another shim runs the instance of {}", directory.0.display())
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(files::about(&path, "cannot lock", &error).into()),
        }
    }
}

/// Kills what an earlier shim that was itself killed may have left running.
fn end_predecessor(directory: &InstanceDirectory) -> anyhow::Result<()> {
    let Some(before) = files::read_json::<Running>(&directory.running())? else { return Ok(()) };
    let exited = files::read_json::<Exited>(&directory.exited())?;
    if exited.is_some_and(|exited| exited.incarnation >= before.incarnation) {
        // It cleaned up itself.
        return Ok(());
    }
    let give_up = Instant::now() + CLEAN_UP;
    while before.kill_left_behind(directory) && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Descendants that lose their parent become ours.
fn adopt_orphans() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
    Ok(())
}

/// What is passed on to the instance instead of ending the shim.
fn forwarded_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set
}

struct Child {
    pid: i32,
    output: OwnedFd,
    cgroup: Option<Cgroup>,
}

fn spawn(start: &Start, directory: &InstanceDirectory, running: &mut Running) -> anyhow::Result<Child> {
    let launch = &start.launch;
    let environment = environment(start, directory)?;
    let user = user(launch.run_as.as_deref())?;
    let home = directory.home();
    files::make_directory(&home)?;
    if let Some(user) = &user {
        nix::unistd::chown(&home, Some(user.uid), Some(user.gid)).context("cannot give the home directory away")?;
    }
    let mut plan = limits::plan(&format!("{}-{}", start.instance, std::process::id()), &launch.limits, user.as_ref());
    running.limits.clone_from(&plan.report);
    if let Some(cgroup) = &plan.cgroup {
        // Before anything lives in it, so that whoever comes after us finds it.
        running.cgroup = Some(cgroup.path().to_owned());
        files::write_json(&directory.running(), running)?;
    }
    let (reader, writer) = nix::unistd::pipe().context("cannot make a pipe")?;
    for end in [&reader, &writer] {
        nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    let (program, arguments) = launch.command.split_first().context("the command is empty")?;
    let program = program.strip_prefix("./").map_or_else(|| PathBuf::from(program), |rest| start.directory.join(rest));
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer.try_clone()?))
        .stderr(Stdio::from(writer))
        .process_group(0);
    let steps = prepare(&mut command, &start.directory, user.as_ref(), &mut plan)?;
    let child = command.spawn();
    // The command holds copies of the pipes' writing ends; the log ends only when all are closed.
    drop(command);
    let child = child.map_err(|error| {
        if let Some(cgroup) = &plan.cgroup {
            cgroup.remove();
        }
        match steps.failed() {
            Some(step) if start.directory.is_dir() => {
                let what = step.failed(&start.directory, user.as_ref(), &plan);
                anyhow::anyhow!("cannot prepare the instance's process: {what}: {error}")
            }
            _ => not_run(&launch.command[0], &program, &start.directory, &error),
        }
    })?;
    let pid = i32::try_from(child.id()).context("process id out of range")?;
    Ok(Child { pid, output: reader, cgroup: plan.cgroup })
}

/// Why a program could not be run, in words that say where to look.
fn not_run(written: &str, program: &Path, artifact: &Path, error: &io::Error) -> anyhow::Error {
    let wrong_format = error.raw_os_error() == Some(Errno::ENOEXEC as i32);
    let why = match error.kind() {
        io::ErrorKind::NotFound if !artifact.is_dir() => {
            format!("the artifact's directory {} is gone", artifact.display())
        }
        io::ErrorKind::NotFound if program.exists() => {
            "it is there, but the interpreter or loader that it names is not on this host".to_owned()
        }
        io::ErrorKind::NotFound if written.starts_with("./") => {
            let names: Vec<_> = files::names(artifact).unwrap_or_default().into_iter().map(|(name, _)| name).collect();
            let more = if names.len() > 10 { ", …" } else { "" };
            format!("it is not in the artifact, which has: {}{more}", names[..names.len().min(10)].join(", "))
        }
        io::ErrorKind::NotFound if written.contains('/') => "there is no such file on this host".to_owned(),
        io::ErrorKind::NotFound => {
            "it is in no directory of PATH; a program that is in the artifact is written with `./` before it".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "it may not be executed; set its execute bit before it is packed, and let the instance's user reach it"
                .to_owned()
        }
        _ if wrong_format => {
            "it is no program that this system runs: built for another one, or a script without a `#!` line".to_owned()
        }
        _ => error.to_string(),
    };
    anyhow::anyhow!("cannot run the program `{written}`: {why}")
}

/// What the new process does before it becomes the command. It tells the one that fails by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Signals,
    Directory,
    Cgroup,
    Limits,
    Groups,
    Group,
    User,
    DeathSignal,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Signals,
        Self::Directory,
        Self::Cgroup,
        Self::Limits,
        Self::Groups,
        Self::Group,
        Self::User,
        Self::DeathSignal,
    ];

    /// What failed, and on what.
    fn failed(self, artifact: &Path, user: Option<&User>, plan: &limits::Plan) -> String {
        let user = user.map(|user| format!("`{}` (uid {}, gid {})", user.name, user.uid, user.gid)).unwrap_or_default();
        match self {
            Self::Signals => "its signals cannot be unblocked".to_owned(),
            Self::Directory => format!("the artifact's directory {} cannot be entered", artifact.display()),
            Self::Cgroup => {
                let path = plan.cgroup.as_ref().map(|cgroup| cgroup.path().display().to_string()).unwrap_or_default();
                format!("its control group {path} cannot be entered")
            }
            Self::Limits => {
                let limits: Vec<_> = plan.rlimits.iter().map(|(which, limit)| format!("{which:?} {limit}")).collect();
                format!("its limits ({}) cannot be set; the host may have lower ones", limits.join(", "))
            }
            Self::Groups => format!("the groups of user {user} cannot be taken on"),
            Self::Group => format!("the primary group of user {user} cannot be taken on"),
            Self::User => format!("it cannot become user {user}"),
            Self::DeathSignal => "it cannot be tied to its shim".to_owned(),
        }
    }
}

/// Reads which step failed.
struct Steps(io::PipeReader);

impl Steps {
    /// None where all were done, and what failed is the program's start. To be called when nobody
    /// else has the writing end.
    fn failed(mut self) -> Option<Step> {
        let mut number = [0];
        self.0.read_exact(&mut number).ok()?;
        Step::ALL.into_iter().find(|step| *step as u8 == number[0])
    }
}

/// What is done in the new process between fork and exec.
fn prepare(
    command: &mut Command,
    directory: &Path,
    user: Option<&User>,
    plan: &mut limits::Plan,
) -> anyhow::Result<Steps> {
    let rlimits = plan.rlimits.clone();
    let entry = plan.cgroup.as_mut().and_then(Cgroup::take_entry);
    let directory = CString::new(directory.as_os_str().as_bytes()).context("the artifact's directory has a NUL")?;
    let name = user.and_then(|user| CString::new(user.name.as_str()).ok());
    let ids = user.map(|user| (user.uid, user.gid));
    // Both ends are closed by the exec.
    let (reader, mut writer) = io::pipe().context("cannot make a pipe")?;
    let before_exec = move || -> io::Result<()> {
        let mut step = |step: Step, done: nix::Result<()>| {
            done.map_err(|error| {
                let _ = writer.write(&[step as u8]);
                io::Error::from(error)
            })
        };
        step(Step::Signals, SigSet::all().thread_unblock())?;
        step(Step::Directory, nix::unistd::chdir(directory.as_c_str()))?;
        if let Some(entry) = &entry {
            step(Step::Cgroup, nix::unistd::write(entry, b"0").map(drop))?;
        }
        for (resource, limit) in &rlimits {
            step(Step::Limits, nix::sys::resource::setrlimit(*resource, *limit, *limit))?;
        }
        if let Some((uid, gid)) = ids {
            #[cfg(target_os = "linux")]
            if let Some(name) = &name {
                step(Step::Groups, nix::unistd::initgroups(name, gid))?;
            }
            #[cfg(not(target_os = "linux"))]
            let _ = &name;
            step(Step::Group, nix::unistd::setgid(gid))?;
            step(Step::User, nix::unistd::setuid(uid))?;
        }
        // Should the shim be killed, its command does not go on unseen.
        #[cfg(target_os = "linux")]
        step(Step::DeathSignal, nix::sys::prctl::set_pdeathsig(Signal::SIGKILL))?;
        Ok(())
    };
    #[expect(unsafe_code, reason = "the new process limits itself before it becomes the command")]
    // SAFETY: the shim has one thread at this point, so nothing is locked in the copy; everything
    // the closure needs was made before, and it makes only system calls (initgroups reads files).
    unsafe {
        command.pre_exec(before_exec);
    }
    Ok(Steps(reader))
}

/// PATH, HOME, PORT and what is declared, with secrets resolved now.
///
/// # Errors
/// A secret that cannot be resolved, by the name of its variable.
pub fn environment(start: &Start, directory: &InstanceDirectory) -> anyhow::Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned())),
        ("HOME".to_owned(), directory.home().display().to_string()),
    ]);
    let secrets = Secrets::new(start.secret_roots.iter().cloned());
    for (name, value) in &start.launch.environment {
        let value = if value.starts_with(secrets::SCHEME) {
            secrets.resolve(value).with_context(|| format!("variable {name}"))?.expose().to_owned()
        } else {
            value.clone()
        };
        environment.insert(name.clone(), value);
    }
    environment.insert("PORT".to_owned(), start.port.to_string());
    Ok(environment)
}

/// The user to run as, when it is not the one we are.
///
/// # Errors
/// An unknown user, or one that only root may become.
pub fn user(name: Option<&str>) -> anyhow::Result<Option<User>> {
    let Some(name) = name else { return Ok(None) };
    let user = User::from_name(name)
        .with_context(|| format!("cannot look up user {name}"))?
        .with_context(|| format!("runAs: there is no user {name} on this host"))?;
    let own = nix::unistd::geteuid();
    if user.uid == own {
        return Ok(None);
    }
    anyhow::ensure!(own.is_root(), "runAs {name} needs a host that runs as root");
    anyhow::ensure!(
        may_become_others(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()),
        "runAs {name}: this host runs as root, but it may not become another user (it lacks CAP_SETUID or CAP_SETGID). \
         In a unit of systemd `User=root` takes CAP_SETUID away where there is NoNewPrivileges; write `User=` with \
         nothing behind it"
    );
    Ok(Some(user))
}

/// Whether root may still do it: what `/proc/self/status` says of the capabilities in effect.
fn may_become_others(status: &str) -> bool {
    const SETGID_AND_SETUID: u64 = 1 << 6 | 1 << 7;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // Where there is no telling, the attempt shows.
    effective.is_none_or(|effective| effective & SETGID_AND_SETUID == SETGID_AND_SETUID)
}

/// Stays until the command has ended and everything it left is gone.
fn attend(child: Child, log: Log, forwarded: SigSet) -> anyhow::Result<Exit> {
    footprint::give_back_the_start();
    let output = File::from(child.output);
    let copier = std::thread::Builder::new().name("log".to_owned()).spawn(move || copy(output, log))?;
    let group = Pid::from_raw(child.pid);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = forwarded.wait() {
            let _ = killpg(group, signal);
        }
    })?;
    let mut how = reap(child.pid);
    if let Exit::Signal { number: 9, out_of_memory } = &mut how {
        *out_of_memory = child.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory);
    }
    clean_up(child.pid, child.cgroup.as_ref());
    // All writers are gone, so the log ends by itself; bounded in case one could not be killed.
    let give_up = Instant::now() + Duration::from_secs(2);
    while !copier.is_finished() && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(how)
}

fn copy(mut output: File, mut log: Log) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => break,
            // A full disk must not stop the instance: what cannot be written is dropped.
            Ok(count) => drop(log.append(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = log.end_line();
}

/// Reaps whatever ends, until the command does.
fn reap(main: i32) -> Exit {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == main => return Exit::Status { code },
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == main => {
                return Exit::Signal { number: signal as i32, out_of_memory: false };
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Exit::Unknown,
        }
    }
}

/// Kills what is left of the command's group and descendants, and reaps it.
fn clean_up(group: i32, cgroup: Option<&Cgroup>) {
    let own = nix::unistd::getpid();
    let give_up = Instant::now() + CLEAN_UP;
    loop {
        if let Some(cgroup) = cgroup {
            cgroup.kill();
        }
        let left = identity::family(own.as_raw(), group);
        for pid in left.iter().filter(|pid| **pid != own.as_raw()) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        if left.is_empty() || Instant::now() > give_up {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_without_the_capability_becomes_nobody_else() {
        assert!(may_become_others("Name:\tx\nCapEff:\t000001f3fdfeffff\n"));
        assert!(!may_become_others("CapEff:\t000001f3fdfeff7f\n"), "no CAP_SETUID");
        assert!(!may_become_others("CapEff:\t0000000000000000\n"));
        assert!(may_become_others(""));
    }

    #[test]
    fn an_end_reads_as_people_say_it() {
        assert_eq!(Exit::Status { code: 3 }.to_string(), "exit status 3");
        let signal = |number, out_of_memory| Exit::Signal { number, out_of_memory };
        assert_eq!(signal(15, false).to_string(), "signal 15");
        assert_eq!(signal(9, true).to_string(), "signal 9: it took more memory than its limit");
        // As earlier versions have written it.
        let before: Exit = serde_json::from_str(r#"{"type":"signal","number":9}"#).expect("read");
        assert_eq!(before, signal(9, false));
    }
}
