//! The worker: reads what is wanted, takes over what runs, serves the control socket and the load
//! balancers, until it is told to end or another one takes over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::SigSet;
use nix::unistd::ForkResult;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::api::{self, Command, Control, Guarded};
use super::fences::Fences;
use super::handoff::{CONTROL, Sockets, ToKeeper, ToWorker, receive};
use super::hub::{BalancerCell, GroupCell, Hub, Inner};
use super::records::{BalancerRecord, GroupRecord, InstanceRecord, Layout, SecurityRecord};
use super::{Options, files, instance, supervisor};
use crate::clock::Clock;
use crate::footprint;
use crate::model::Place;
use crate::providers::host::launch::{Launch, Stop};
use crate::providers::host::protocol::{self, StopHost};
use crate::providers::host::proxy::Proxy;
use crate::providers::host::shim::InstanceDirectory;

/// How long the first checks of adopted instances may hold up the load balancers.
const FIRST_CHECKS: Duration = Duration::from_secs(3);

/// How long what is open may go on after another worker has taken over.
const HANDED_OVER: Duration = Duration::from_secs(600);

/// How long what is open may go on when the host ends.
const ENDING: Duration = Duration::from_secs(5);

/// How long calls at the control socket may go on when the worker lets go.
const CALLS: Duration = Duration::from_secs(2);

/// Runs a worker whose standard input is the socket to its keeper.
///
/// # Errors
/// What kept it from serving.
pub fn run(options: Options) -> anyhow::Result<()> {
    // The keeper blocks signals to wait for them, and its children inherit that.
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let keeper = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().context("no socket to a keeper")?);
    super::handoff::send(&keeper, &ToKeeper::Hello, None)
        .context("standard input is no socket to a keeper; start `gennaker host` instead")?;
    let mut held = BTreeMap::new();
    let keeper_id = loop {
        match receive::<ToWorker>(&keeper)? {
            Some((ToWorker::Held { name }, Some(socket))) => {
                held.insert(name, socket);
            }
            Some((ToWorker::All { keeper }, _)) => break keeper,
            Some(_) => {}
            None => anyhow::bail!("the keeper is gone"),
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("host")
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(options, keeper, keeper_id, held));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What the keeper says, and its end.
enum Word {
    Release,
    Drain,
    Gone,
}

/// Reads the keeper's messages on a thread of its own.
fn listen(keeper: UnixStream, words: mpsc::Sender<Word>) -> io::Result<()> {
    std::thread::Builder::new().name("keeper".to_owned()).spawn(move || {
        loop {
            let word = match receive::<ToWorker>(&keeper) {
                Ok(Some((ToWorker::Release, _))) => Word::Release,
                Ok(Some((ToWorker::Drain, _))) => Word::Drain,
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => Word::Gone,
            };
            let last = matches!(word, Word::Gone);
            if words.blocking_send(word).is_err() || last {
                return;
            }
        }
    })?;
    Ok(())
}

async fn serve(
    options: Options,
    keeper: UnixStream,
    keeper_id: u32,
    held: BTreeMap<String, OwnedFd>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (words, mut heard) = mpsc::channel(8);
    listen(keeper.try_clone()?, words.clone())?;
    let layout = Layout(options.directory.clone());
    // Freed by the one before when it lets go, or by its end.
    let lock = tokio::task::spawn_blocking({
        let path = layout.worker_lock();
        move || lock(&path)
    })
    .await??;
    let sockets = Sockets::new(Some(keeper), held);
    let hub = open(options.clone(), sockets, Clock::system())?;
    begin(&hub).await;
    let keeper_id = Arc::new(AtomicU32::new(keeper_id));
    let (commands, mut ordered) = mpsc::channel(8);
    let control = Control { hub: Arc::clone(&hub), commands, keeper: Arc::clone(&keeper_id) };
    let closing = CancellationToken::new();
    let listener = control_socket(&hub)?;
    let server = tokio::spawn({
        let closing = closing.clone();
        async move {
            axum::serve(Guarded(listener), api::router(control)).with_graceful_shutdown(closing.cancelled_owned()).await
        }
    });
    hub.sockets.tell(&ToKeeper::Ready { pid: std::process::id() }, None);
    tracing::info!(directory = %options.directory.display(), "host serves");
    footprint::give_back_the_start();

    let mut server = Some(server);
    let mut lock = Some(lock);
    let mut released = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(command) = ordered.recv() => match command {
                Command::Upgrade(upgrade) => {
                    hub.sockets.tell(&ToKeeper::Upgrade { binary: upgrade.binary }, None);
                }
                Command::Stop(how, done) => {
                    end(&hub, &how).await;
                    hub.sockets.tell(&ToKeeper::Stop, None);
                    let _: Result<(), ()> = done.send(());
                    closing.cancel();
                    if let Some(server) = server.take() {
                        let _ = tokio::time::timeout(CALLS, server).await;
                    }
                    return Ok(());
                }
            },
            Some(word) = heard.recv() => match word {
                Word::Release => {
                    tracing::info!("another worker takes over");
                    let_go(&hub, &closing, server.take()).await;
                    drop(lock.take());
                    released = true;
                }
                Word::Drain => {
                    tokio::select! {
                        () = hub.proxy.drain(HANDED_OVER) => {}
                        _ = terminate.recv() => {}
                    }
                    return Ok(());
                }
                // Whoever comes next finds the sockets with us; unless we are on our way out.
                Word::Gone if released => {
                    hub.proxy.drain(ENDING).await;
                    return Ok(());
                }
                Word::Gone => {
                    tracing::warn!("the keeper is gone; another one is started");
                    match revive_keeper(&hub) {
                        Ok((stream, id)) => {
                            listen(stream, words.clone())?;
                            keeper_id.store(id, Ordering::Relaxed);
                        }
                        Err(error) => {
                            tracing::error!(%error, "no keeper can be started; trying again");
                            let words = words.clone();
                            tokio::spawn(async move {
                                tokio::time::sleep(Duration::from_secs(1)).await;
                                let _ = words.send(Word::Gone).await;
                            });
                        }
                    }
                }
            },
        }
    }
    let_go(&hub, &closing, server.take()).await;
    hub.proxy.drain(ENDING).await;
    Ok(())
}

/// Lets go of the state: nothing of it is changed by this worker from then on.
async fn let_go(hub: &Arc<Hub>, closing: &CancellationToken, server: Option<tokio::task::JoinHandle<io::Result<()>>>) {
    closing.cancel();
    hub.stop.cancel();
    if let Some(mut server) = server
        && tokio::time::timeout(CALLS, &mut server).await.is_err()
    {
        server.abort();
    }
    hub.tasks.close();
    let _ = tokio::time::timeout(CALLS, hub.tasks.wait()).await;
}

/// The end of the host: nothing new is let in, and the instances stop, if they are to.
async fn end(hub: &Arc<Hub>, how: &StopHost) {
    if let Err(error) = std::fs::write(hub.layout.stopped(), b"") {
        tracing::warn!(%error, "a connected server will start a host again: the mark of the stop cannot be written");
    }
    hub.stop.cancel();
    hub.tasks.close();
    let _ = tokio::time::timeout(CALLS, hub.tasks.wait()).await;
    hub.proxy.drain(ENDING).await;
    if how.instances {
        stop_instances(hub).await;
    }
}

/// Stops everything that runs; it is still wanted, and comes back with the host.
async fn stop_instances(hub: &Arc<Hub>) {
    let all: Vec<_> =
        hub.read(|inner| inner.groups.iter().flat_map(|(name, group)| stops(&hub.layout, name, group)).collect());
    stop_each(all).await;
}

/// Stops what a host that was killed, with its keeper, left running in a directory.
///
/// # Errors
/// A host that has the directory, or files that cannot be read.
pub async fn stop_left_behind(directory: &Path) -> anyhow::Result<()> {
    let layout = Layout(directory.to_path_buf());
    if !layout.groups().is_dir() {
        return Ok(());
    }
    let lock = File::options().write(true).create(true).truncate(false).open(layout.worker_lock())?;
    lock.try_lock().with_context(|| format!("a host has {} and does not answer", directory.display()))?;
    let mut all = Vec::new();
    for (name, _) in files::names(&layout.groups())? {
        if let Some(group) = read_group(&layout, &name)? {
            all.extend(stops(&layout, &name, &group));
        }
    }
    stop_each(all).await;
    Ok(())
}

type ToStop = (InstanceDirectory, u64, Stop);

fn stops(layout: &Layout, name: &str, group: &GroupCell) -> Vec<ToStop> {
    let instances = group.instances.values();
    instances
        .map(|cell| (layout.instance(name, &cell.record.id), cell.record.incarnation, group.launch.stop.clone()))
        .collect()
}

async fn stop_each(all: Vec<ToStop>) {
    let mut stops = tokio::task::JoinSet::new();
    for (directory, incarnation, stop) in all {
        stops.spawn(async move { instance::stop(&directory, incarnation, &stop).await });
    }
    while stops.join_next().await.is_some() {}
}

fn lock(path: &Path) -> io::Result<File> {
    let open = || {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error: io::Error| files::about(path, "cannot lock", &error))
}

/// The hub with everything that the directory says.
///
/// # Errors
/// A directory or file that cannot be read; what it is, is said.
pub fn open(options: Options, sockets: Sockets, clock: Clock) -> anyhow::Result<Arc<Hub>> {
    let layout = Layout(options.directory.clone());
    for directory in
        [layout.path().to_path_buf(), layout.groups(), layout.artifacts(), layout.balancers(), layout.security_groups()]
    {
        files::make_directory(&directory)?;
    }
    let fences = Fences::open(layout.fences())?;
    let proxy = Proxy::new(&layout.stats()).context("cannot open the counters")?;
    let mut inner = Inner::default();
    for (name, path) in files::names(&layout.security_groups())? {
        if name.ends_with(".json")
            && let Some(record) = files::read_json::<SecurityRecord>(&path)?
        {
            inner.security_groups.insert(record.spec.name.clone(), record);
        }
    }
    for (name, path) in files::names(&layout.balancers())? {
        if name.ends_with(".json")
            && let Some(record) = files::read_json::<BalancerRecord>(&path)?
        {
            inner.balancers.insert(record.spec.name.clone(), BalancerCell::new(record));
        }
    }
    for (name, path) in files::names(&layout.groups())? {
        match read_group(&layout, &name)? {
            Some(group) => {
                inner.groups.insert(name, group);
            }
            // Begun and not made, or forgotten and not removed.
            None => files::remove_tree(&path)?,
        }
    }
    for cell in inner.balancers.values_mut() {
        // A host of an earlier version kept the shares of groups that are gone.
        cell.record.shares.retain(|share| inner.groups.contains_key(&share.server_group));
    }
    inner.host.clone_from(&options.host_name);
    check_places(&options, &inner)?;
    let id = own_id(&layout)?;
    Ok(Hub::new(options, id, clock, proxy, sockets, fences, inner))
}

/// What is there belongs to the account and location that the host is started for: nobody would find
/// it under others.
fn check_places(options: &Options, inner: &Inner) -> anyhow::Result<()> {
    let groups = inner.groups.values().map(|cell| (&cell.record.spec.place, &cell.record.spec.name));
    let balancers = inner.balancers.values().map(|cell| (&cell.record.spec.place, &cell.record.spec.name));
    let security = inner.security_groups.values().map(|record| (&record.spec.place, &record.spec.name));
    for (Place { account, location }, name) in groups.chain(balancers).chain(security) {
        anyhow::ensure!(
            *account == options.account && *location == options.location,
            "{} has `{name}` of account {account}, location {location}, not of {}, {}; start it with --account {account} \
             --location {location}, or give another directory",
            options.directory.display(),
            options.account,
            options.location
        );
    }
    Ok(())
}

/// The directory's id, made at the first start.
fn own_id(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.id();
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(files::about(&path, "cannot read", &error).into());
        }
        _ => {}
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    files::write(&path, id.as_bytes())?;
    Ok(id)
}

fn read_group(layout: &Layout, name: &str) -> anyhow::Result<Option<GroupCell>> {
    let Some(record) = files::read_json::<GroupRecord>(&layout.group_spec(name))? else { return Ok(None) };
    let launch = Launch::read(&record.spec.launch)
        .map_err(|(pointer, message)| anyhow::anyhow!("server group {name}: launch{pointer}: {message}"))?;
    let mut group = GroupCell::new(record, launch);
    for (id, path) in files::names(&layout.instances(name))? {
        match files::read_json::<InstanceRecord>(&layout.instance_record(name, &id))? {
            Some(record) => {
                let cell = supervisor::new_cell(&group, record);
                group.instances.insert(id, cell);
            }
            // Its record is written before anything of it is started.
            None => files::remove_tree(&path)?,
        }
    }
    Ok(Some(group))
}

/// Takes over what runs, then opens the load balancers: connections wait until it is known which
/// instances are healthy.
pub async fn begin(hub: &Arc<Hub>) {
    let groups: Vec<String> = hub.read(|inner| inner.groups.keys().cloned().collect());
    hub.adopt_running();
    for group in groups {
        supervisor::start(hub, group);
    }
    let mut changes = hub.revision.subscribe();
    let checked = async {
        while !hub.read(Inner::adopted_are_checked) {
            let _ = changes.changed().await;
        }
    };
    let _ = tokio::time::timeout(FIRST_CHECKS, checked).await;
    let balancers: Vec<String> = hub.read(|inner| inner.balancers.keys().cloned().collect());
    for name in &balancers {
        hub.open_balancer(name);
    }
    for held in hub.sockets.names() {
        let known = balancers.iter().any(|name| held.starts_with(&format!("lb/{name}/")));
        if held != CONTROL && !known {
            hub.sockets.release(&held);
        }
    }
    for name in &balancers {
        let record = hub.read(|inner| inner.balancers.get(name).map(|cell| cell.record.clone()));
        hub.close_unused(name, record.as_ref());
    }
    hub.tasks.spawn(reopen(Arc::clone(hub)));
    hub.tasks.spawn(problems(Arc::clone(hub)));
    hub.tasks.spawn(sweep(Arc::clone(hub)));
}

/// Takes away artifacts that are not used any more, now and then.
async fn sweep(hub: Arc<Hub>) {
    loop {
        let swept = Arc::clone(&hub);
        let _ = tokio::task::spawn_blocking(move || swept.sweep_artifacts()).await;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
            () = hub.stop.cancelled() => return,
        }
    }
}

/// Tries the load balancers again whose ports were taken, and looks which have nobody who answers.
async fn reopen(hub: Arc<Hub>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = hub.stop.cancelled() => return,
        }
        hub.look_again();
        let closed: Vec<String> = hub.read(|inner| {
            inner.balancers.iter().filter(|(_, cell)| !cell.open).map(|(name, _)| name.clone()).collect()
        });
        for name in closed {
            let _exclusive = hub.exclusive("network".to_owned()).await;
            hub.open_balancer(&name);
        }
    }
}

/// What the data plane says is in a load balancer's way is told with it.
async fn problems(hub: Arc<Hub>) {
    let mut changed = hub.proxy.problems_changed();
    loop {
        changed.mark_unchanged();
        hub.take_problems();
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = hub.stop.cancelled() => return,
        }
    }
}

/// The control socket: the one that is held, or a new one that only its owner may reach.
fn control_socket(hub: &Hub) -> anyhow::Result<UnixListener> {
    let path = protocol::socket_path(&hub.options.directory);
    let listener = if let Some(held) = hub.sockets.get(CONTROL) {
        std::os::unix::net::UnixListener::from(held)
    } else {
        // The lock is ours, so a socket that lies there is nobody's.
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(files::about(&path, "cannot remove", &error).into()),
        }
        // Bound under a name that nobody knows until its mode is set.
        let hidden = path.with_extension("new");
        let _ = std::fs::remove_file(&hidden);
        let listener = std::os::unix::net::UnixListener::bind(&hidden).map_err(|error| {
            files::about(&hidden, "cannot listen at (paths of sockets are short, at most 107 bytes)", &error)
        })?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&hidden, &path)?;
        hub.sockets.hold(CONTROL, listener.as_fd())?;
        listener
    };
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Starts a keeper in place of one that was killed, and hands it all sockets.
fn revive_keeper(hub: &Hub) -> io::Result<(UnixStream, u32)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (mut reader, mut writer) = io::pipe()?;
    let mut command = Process::new(&hub.options.program);
    command.args(hub.options.arguments()).arg("--adopt").stdin(Stdio::from(OwnedFd::from(theirs))).current_dir("/");
    // Not our child but that of whoever looks after services: systemd hears of the end of its own only.
    #[expect(unsafe_code, reason = "a new process forks once more before it becomes the keeper")]
    // SAFETY: only system calls, on what was made before.
    unsafe {
        command.pre_exec(move || match nix::unistd::fork()? {
            ForkResult::Parent { .. } => nix::libc::_exit(0),
            ForkResult::Child => writer.write_all(&std::process::id().to_ne_bytes()),
        });
    }
    let mut between = command.spawn()?;
    between.wait()?;
    let mut id = [0; 4];
    reader.read_exact(&mut id)?;
    hub.sockets.set_keeper(ours.try_clone()?);
    hub.sockets.tell(&ToKeeper::Ready { pid: std::process::id() }, None);
    Ok((ours, u32::from_ne_bytes(id)))
}
