//! The keeper: a small process without an async runtime that holds copies of all listening sockets
//! and has a worker running. What arrives while there is none waits in the sockets' queues.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::handoff::{ToKeeper, ToWorker, receive, send};
use super::identity::Identity;
use super::records::Layout;
use super::succession::{self, About, Estate, EstateRef, Heir};
use super::{Options, files, own_log};
use crate::providers::host::protocol;
use crate::{footprint, systemd};

/// Before a worker that ended at once is started again, at first and at most.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// A worker that served this long is started again at once.
const SETTLED: Duration = Duration::from_secs(10);
/// How long workers may take to end with the host.
const ENDING: Duration = Duration::from_secs(15);
/// How long a worker that has lost its keeper may take to have another one.
const HEIR: Duration = Duration::from_secs(10);
/// How long a worker may take to end a message that it has begun.
const QUIET: Duration = Duration::from_secs(2);

enum Happening {
    Signal(Signal),
    Said { worker: u64, message: ToKeeper, socket: Option<OwnedFd> },
    Gone { worker: u64 },
}

struct Worker {
    id: u64,
    stream: UnixStream,
    /// None for one that was there before us, until it says.
    process: Option<Identity>,
    started: Instant,
    /// The binary that it runs.
    program: PathBuf,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Has not said a word.
    Started,
    /// May take the state when it is free.
    Waiting,
    Serving,
    /// Has been told to let go.
    Released,
}

struct Keeper {
    options: Options,
    /// Of the host's directory; goes with the process.
    lock: File,
    held: BTreeMap<String, OwnedFd>,
    workers: Vec<Worker>,
    next: u64,
    happenings: Sender<Happening>,
    delay: Duration,
    start_at: Option<Instant>,
    ending: Option<Instant>,
    /// Held for reading by whoever takes a message out of a socket, until it has been passed on.
    reading: Arc<RwLock<()>>,
    upgrading: Option<Upgrading>,
}

/// Another worker was asked for, to go over to its binary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upgrading {
    /// It was started.
    To(u64),
    /// It serves: the keeper follows.
    Done,
}

/// Where a keeper comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It starts a host.
    New,
    /// A worker whose keeper was killed has started it; standard input is the socket to it.
    Adopts,
    /// It is another binary in the same process; standard input has what the one before held.
    Resumes,
}

/// Keeps a host running until it is told to stop.
///
/// # Errors
/// Another host on the same directory, or what kept this one from starting.
pub fn run(options: Options, origin: Origin) -> anyhow::Result<()> {
    // Fails for a process that a shell started in the foreground: then it stays there.
    let _ = nix::unistd::setsid();
    protocol::check_directory(&options.directory)?;
    files::make_directory(&options.directory)?;
    if let Some(warning) = options.ports.warning().filter(|_| origin == Origin::New) {
        tracing::warn!("{warning}");
    }
    let layout = Layout(options.directory.clone());
    if origin == Origin::New {
        give_way(&layout);
    }
    let mut estate = None;
    let lock = if origin == Origin::Resumes {
        let Estate { lock, held, workers } = succession::take_over()?;
        estate = Some((held, workers));
        lock
    } else {
        match lock(&layout, origin == Origin::Adopts)? {
            Locked::Ours(file) => file,
            // A keeper that a worker started in place of a killed one: the service goes on with it.
            Locked::By(Some(keeper)) if systemd::is_there() => {
                systemd::notify(&format!("MAINPID={keeper}\nREADY=1"));
                return Ok(());
            }
            Locked::By(keeper) => anyhow::bail!(
                "a host runs on {} already{}; ask it with `gennaker host status --dir …`, or give another directory",
                options.directory.display(),
                keeper.map(|pid| format!(" (process {pid})")).unwrap_or_default()
            ),
        }
    };
    // Whoever starts a host wants one.
    let _ = std::fs::remove_file(layout.stopped());
    if origin == Origin::New {
        let _ = match systemd::is_there() {
            true => std::fs::write(layout.service(), b""),
            false => std::fs::remove_file(layout.service()),
        };
    }
    own_log::keep_small(&layout.log());
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let waited = waited_for();
    waited.thread_block().context("cannot block signals")?;
    let (happenings, happened) = channel();
    let signals = happenings.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = waited.wait() {
            if signals.send(Happening::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    let mut keeper = Keeper {
        options,
        lock,
        held: BTreeMap::new(),
        workers: Vec::new(),
        next: 0,
        happenings,
        delay: FIRST_DELAY,
        start_at: None,
        ending: None,
        reading: Arc::default(),
        upgrading: None,
    };
    let program = keeper.options.program.clone();
    match (origin, estate) {
        (Origin::Resumes, Some((held, workers))) => {
            keeper.held = held;
            for Heir { stream, about } in workers {
                let stage = if about.serves { Stage::Serving } else { Stage::Released };
                keeper.attend(stream, about.process, about.program, stage)?;
            }
            tracing::info!("the keeper is of version {} now", env!("CARGO_PKG_VERSION"));
        }
        (Origin::Adopts, _) => {
            let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().context("no socket to a worker")?);
            // Not to be had by the workers that are started later.
            let null = File::open("/dev/null")?;
            nix::unistd::dup2_stdin(null)?;
            keeper.attend(stream, None, program, Stage::Serving)?;
        }
        _ => keeper.start(program).map(drop)?,
    }
    keeper.keep(&happened)
}

enum Locked {
    Ours(File),
    /// Another keeper has it; its process id, where it could be read.
    By(Option<u32>),
}

/// A worker that has lost its keeper goes on serving, and starts another one: that one comes first.
fn give_way(layout: &Layout) {
    let give_up = Instant::now() + HEIR;
    while taken(&layout.worker_lock()) && !taken(&layout.host_lock()) && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether somebody holds the lock of a file.
fn taken(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

/// One host per directory: the lock goes with the process.
fn lock(layout: &Layout, adopt: bool) -> anyhow::Result<Locked> {
    let path = layout.host_lock();
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| files::about(&path, "cannot open", &error))?;
    // The lock of a keeper that was just killed may take a moment to go.
    let give_up = Instant::now() + if adopt { Duration::from_secs(5) } else { Duration::ZERO };
    loop {
        match file.try_lock() {
            Ok(()) => {
                // For whoever finds it taken; the lock holds without it.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                return Ok(Locked::Ours(file));
            }
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Ok(Locked::By(holder(&path)));
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(files::about(&path, "cannot lock", &error).into());
            }
        }
    }
}

/// The process that holds the lock. It writes its number a moment after it has taken it: until then
/// there is that of the one before, which is gone.
fn holder(lock: &Path) -> Option<u32> {
    let give_up = Instant::now() + Duration::from_secs(2);
    loop {
        let written: Option<i32> = std::fs::read_to_string(lock).ok().and_then(|text| text.trim().parse().ok());
        if Instant::now() > give_up || written.is_some_and(|pid| Identity::of(pid).is_ok()) {
            return written.and_then(|pid| u32::try_from(pid).ok());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn waited_for() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set
}

impl Keeper {
    fn keep(mut self, happened: &Receiver<Happening>) -> anyhow::Result<()> {
        let log = Layout(self.options.directory.clone()).log();
        loop {
            if self.is_over() {
                return Ok(());
            }
            let wait = self
                .start_at
                .map_or(Duration::from_secs(1), |at| at.saturating_duration_since(Instant::now()))
                .min(Duration::from_secs(1));
            match happened.recv_timeout(wait) {
                Ok(happening) => self.deal_with(happening),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the keeper's threads are gone"),
            }
            reap();
            own_log::keep_small(&log);
            if self.ending.is_none() && self.start_at.is_some_and(|at| at <= Instant::now()) {
                self.start_at = None;
                let program = self.options.program.clone();
                if let Err(error) = self.start(program) {
                    tracing::error!("cannot start a worker: {error:#}");
                    self.start_later();
                }
            }
            if self.upgrading == Some(Upgrading::Done) && self.ending.is_none() {
                self.upgrading = None;
                self.follow(happened);
            }
        }
    }

    /// Goes over to the binary that the worker runs. What does not work out is logged; then this
    /// keeper stays, which does no harm.
    fn follow(&mut self, happened: &Receiver<Happening>) {
        let reading = Arc::clone(&self.reading);
        let give_up = Instant::now() + QUIET;
        // Nobody is half through a message, and what was read is dealt with. (A signal that has been
        // taken by its thread in this very moment is lost; whoever sent it asks again.)
        let _quiet = loop {
            match reading.try_write() {
                Ok(quiet) => break quiet,
                Err(_) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => {
                    tracing::warn!("a worker does not end its message; the keeper stays the old one");
                    return;
                }
            }
        };
        while let Ok(happening) = happened.try_recv() {
            self.deal_with(happening);
        }
        // One that has just begun would be forgotten.
        let settled = |worker: &Worker| matches!(worker.stage, Stage::Serving | Stage::Released);
        if self.ending.is_some() || !self.workers.iter().all(settled) {
            return;
        }
        let workers = self.workers.iter().map(|worker| {
            let (process, program) = (worker.process.clone(), worker.program.clone());
            (worker.stream.as_fd(), About { process, program, serves: worker.stage == Stage::Serving })
        });
        let estate = EstateRef { lock: self.lock.as_fd(), held: &self.held, workers: workers.collect() };
        let error = succession::hand_over(&self.options, &self.options.program, &estate);
        tracing::warn!("the keeper stays the old one: {error:#}");
    }

    fn deal_with(&mut self, happening: Happening) {
        match happening {
            Happening::Signal(Signal::SIGCHLD) => {}
            Happening::Signal(signal) => self.end(Some(signal)),
            Happening::Said { worker, message, socket } => self.hear(worker, message, socket),
            Happening::Gone { worker } => self.lose(worker),
        }
    }

    fn is_over(&self) -> bool {
        self.ending.is_some_and(|since| {
            if since.elapsed() > ENDING {
                for worker in &self.workers {
                    worker.signal(Signal::SIGKILL);
                }
                return true;
            }
            self.workers.is_empty()
        })
    }

    /// Starts a worker and hands it all that is held; its number.
    fn start(&mut self, program: PathBuf) -> anyhow::Result<u64> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&program)
            .args(self.options.arguments())
            .arg("--worker")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .current_dir("/")
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let process = i32::try_from(child.id()).ok().and_then(|pid| Identity::of(pid).ok());
        for (name, socket) in &self.held {
            send(&ours, &ToWorker::Held { name: name.clone() }, Some(socket.as_fd()))?;
        }
        send(&ours, &ToWorker::All { keeper: std::process::id() }, None)?;
        self.attend(ours, process, program, Stage::Started)
    }

    /// Listens to a worker on a thread of its own.
    fn attend(
        &mut self,
        stream: UnixStream,
        process: Option<Identity>,
        program: PathBuf,
        stage: Stage,
    ) -> anyhow::Result<u64> {
        self.next += 1;
        let id = self.next;
        let reader = stream.try_clone()?;
        let happenings = self.happenings.clone();
        let reading = Arc::clone(&self.reading);
        std::thread::Builder::new().name("worker".to_owned()).spawn(move || {
            loop {
                // Waits without taking anything: what is not taken out stays for whoever comes next.
                await_message(&reader);
                let _reading = reading.read().unwrap_or_else(PoisonError::into_inner);
                let happening = match receive::<ToKeeper>(&reader) {
                    Ok(Some((message, socket))) => Happening::Said { worker: id, message, socket },
                    Ok(None) | Err(_) => Happening::Gone { worker: id },
                };
                let last = matches!(happening, Happening::Gone { .. });
                if happenings.send(happening).is_err() || last {
                    return;
                }
            }
        })?;
        self.workers.push(Worker { id, stream, process, started: Instant::now(), program, stage });
        Ok(id)
    }

    fn hear(&mut self, id: u64, message: ToKeeper, socket: Option<OwnedFd>) {
        match message {
            ToKeeper::Hello => {
                self.set_stage(id, Stage::Waiting);
                // The one that serves lets go only for one that is known to run.
                for worker in self.workers.iter_mut().filter(|worker| worker.stage == Stage::Serving) {
                    worker.stage = Stage::Released;
                    let _ = send(&worker.stream, &ToWorker::Release, None);
                }
            }
            ToKeeper::Hold { name } => {
                if let Some(socket) = socket {
                    self.held.insert(name, socket);
                }
            }
            ToKeeper::Drop { name } => {
                self.held.remove(&name);
            }
            ToKeeper::Ready { pid } => {
                self.set_stage(id, Stage::Serving);
                if let Some(worker) = self.workers.iter_mut().find(|worker| worker.id == id) {
                    worker.process = i32::try_from(pid).ok().and_then(|pid| Identity::of(pid).ok());
                    self.options.program.clone_from(&worker.program);
                }
                systemd::notify("READY=1");
                footprint::give_back_the_start();
                if self.upgrading == Some(Upgrading::To(id)) {
                    self.upgrading = Some(Upgrading::Done);
                }
                for worker in self.workers.iter().filter(|worker| worker.stage == Stage::Released) {
                    let _ = send(&worker.stream, &ToWorker::Drain, None);
                }
            }
            ToKeeper::Upgrade { binary } => {
                // One at a time: a second one while the first is under way would only compete.
                if self.workers.iter().all(|worker| worker.stage == Stage::Serving || worker.stage == Stage::Released) {
                    let program = binary.unwrap_or_else(|| self.options.program.clone());
                    match self.start(program) {
                        Ok(id) => self.upgrading = Some(Upgrading::To(id)),
                        Err(error) => tracing::error!("cannot upgrade: {error:#}"),
                    }
                }
            }
            ToKeeper::Stop => self.end(None),
        }
    }

    fn set_stage(&mut self, id: u64, stage: Stage) {
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.id == id) {
            worker.stage = stage;
        }
    }

    /// A worker has ended: there must be one that serves, or will.
    fn lose(&mut self, id: u64) {
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return };
        let lost = self.workers.remove(index);
        let others = self.workers.iter().any(|worker| worker.stage != Stage::Released);
        if self.ending.is_some() || others {
            return;
        }
        if lost.stage == Stage::Serving && lost.started.elapsed() >= SETTLED {
            self.delay = FIRST_DELAY;
        }
        tracing::warn!("the worker has ended; another one is started");
        self.start_later();
    }

    fn start_later(&mut self) {
        self.start_at = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
    }

    /// The host ends; its workers are asked to, unless they know.
    fn end(&mut self, signal: Option<Signal>) {
        if self.ending.is_none() {
            self.ending = Some(Instant::now());
            systemd::notify("STOPPING=1");
        }
        // The one that asked for the end ends by itself.
        for worker in self.workers.iter().filter(|worker| signal.is_some() || worker.stage != Stage::Serving) {
            worker.signal(Signal::SIGTERM);
        }
    }
}

impl Worker {
    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }
}

/// Until there is something to read, or the other side is gone.
fn await_message(stream: &UnixStream) {
    let mut wanted = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    while matches!(poll(&mut wanted, PollTimeout::NONE), Err(nix::errno::Errno::EINTR)) {}
}

/// Workers, and shims whose worker is gone.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
