//! Listeners and the client connections they accept: who may enter, how long a connection may
//! rest, and how it is brought to an end without cutting a request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::balancer::Balancer;
use super::forward;
use super::upstream::now_ms;
use super::watched::{Watch, Watched};
use crate::model::LoadBalancerProblemKind;

/// Pause after the system refused to accept (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What did not come again for this long is over.
const CALM: Duration = Duration::from_secs(1);

/// One socket that a load balancer accepts on.
pub(super) struct Listener {
    pub address: SocketAddr,
    /// Of the socket: tells a copy of the same one from another at the same address.
    inode: u64,
    stage: watch::Sender<Stage>,
    closing: AtomicBool,
    accept: std::sync::OnceLock<AbortHandle>,
}

/// Where a listener's connections stand.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Open,
    /// Each answer asks its client to connect anew; connections that rest are closed at the first
    /// instant, the others at the second.
    Closing(Instant, Instant),
}

impl Listener {
    /// Address and inode of a socket.
    pub fn identity(socket: &std::net::TcpListener) -> io::Result<(SocketAddr, u64)> {
        Ok((socket.local_addr()?, nix::sys::stat::fstat(socket.as_fd())?.st_ino))
    }

    pub fn is(&self, identity: (SocketAddr, u64)) -> bool {
        (self.address, self.inode) == identity
    }

    /// Begins to accept; call it within the runtime.
    pub fn start(socket: TcpListener, (address, inode): (SocketAddr, u64), balancer: Arc<Balancer>) -> Arc<Self> {
        let listener = Arc::new(Self {
            address,
            inode,
            stage: watch::channel(Stage::Open).0,
            closing: AtomicBool::new(false),
            accept: std::sync::OnceLock::new(),
        });
        let task = tokio::spawn(accept(socket, Arc::clone(&listener), balancer));
        let _ = listener.accept.set(task.abort_handle());
        listener
    }

    /// Stops accepting, closes connections that rest after `rest` and all of them after `kill`.
    pub fn close(&self, rest: Duration, kill: Duration) {
        if let Some(accept) = self.accept.get() {
            accept.abort();
        }
        self.closing.store(true, Ordering::SeqCst);
        let now = Instant::now();
        self.stage.send_replace(Stage::Closing(now + rest.min(kill), now + kill));
    }
}

async fn accept(socket: TcpListener, listener: Arc<Listener>, balancer: Arc<Balancer>) {
    let shared = Arc::clone(&balancer.shared);
    let permits = Arc::new(Semaphore::new(shared.limits.client_connections));
    let trouble = |kind, over| Trouble {
        balancer: Arc::clone(&balancer),
        kind,
        listener: listener.address.to_string(),
        over,
        last: None,
    };
    let mut full = trouble(LoadBalancerProblemKind::Connections, "there is room for connections again");
    let mut refused = trouble(LoadBalancerProblemKind::Accept, "connections are accepted again");
    loop {
        full.look();
        refused.look();
        let permit = if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            permit
        } else {
            let waits =
                format!("{} connections are open, as many as allowed; new ones wait", shared.limits.client_connections);
            full.happens(&waits);
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            full.happens(&waits);
            permit
        };
        let calm = [full.calm_at(), refused.calm_at()].into_iter().flatten().min();
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = sleep_until(calm.unwrap_or_else(Instant::now)), if calm.is_some() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Before a byte is read.
                if !balancer.admits(peer.ip(), listener.address.port()) {
                    continue;
                }
                let client = Client::new(Arc::clone(&balancer), Arc::clone(&listener), peer.ip(), permit);
                shared.tracker.spawn(serve(stream, client));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                refused.happens(&format!("cannot accept: {error}"));
                drop(permit);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Something that keeps a listener from taking connections, and that comes and goes: the load
/// balancer's problem until it has been calm for [`CALM`], or the listener is closed.
struct Trouble {
    balancer: Arc<Balancer>,
    kind: LoadBalancerProblemKind,
    listener: String,
    /// What is said when it is over.
    over: &'static str,
    last: Option<Instant>,
}

impl Trouble {
    fn happens(&mut self, what: &str) {
        self.last = Some(Instant::now());
        self.balancer.begin_problem(self.kind, &self.listener, format!("listener {}: {what}", self.listener));
    }

    fn calm_at(&self) -> Option<Instant> {
        self.last.map(|last| last + CALM)
    }

    fn look(&mut self) {
        if self.calm_at().is_some_and(|at| at <= Instant::now()) {
            self.end();
        }
    }

    fn end(&mut self) {
        if self.last.take().is_some() {
            let message = format!("listener {}: {}", self.listener, self.over);
            self.balancer.end_problem(self.kind, &self.listener, &message);
        }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(stream: TcpStream, client: Arc<Client>) {
    if stream.set_nodelay(true).is_err() || setsockopt(&stream, sockopt::KeepAlive, &true).is_err() {
        return;
    }
    let limits = Arc::clone(&client.balancer.shared.limits);
    let mut stage = client.listener.stage.subscribe();
    // It may have begun to close before this one subscribed.
    stage.mark_changed();
    let io = TokioIo::new(Watched::new(stream, Reading(Arc::clone(&client))));
    let service = {
        let client = Arc::clone(&client);
        service_fn(move |request| forward::handle(Arc::clone(&client), request))
    };
    let connection = http1::Builder::new()
        // This file watches the time itself: a connection may rest for longer than a head may take.
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        .serve_connection(io, service)
        .with_upgrades();
    tokio::pin!(connection);
    let timer = sleep_until(Instant::now() + limits.look());
    tokio::pin!(timer);
    let mut kill: Option<Instant> = None;
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            changed = stage.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Stage::Closing(rest, end) = *stage.borrow_and_update() {
                    kill = Some(end);
                    timer.as_mut().reset(if asked { end } else { rest });
                }
            }
            () = timer.as_mut() => match kill {
                Some(end) if end <= Instant::now() => return,
                Some(end) => {
                    asked = true;
                    connection.as_mut().graceful_shutdown();
                    timer.as_mut().reset(end);
                }
                None => {
                    match client.phase() {
                        (Phase::Head, lasted) if lasted >= limits.header_read => return,
                        (Phase::Busy, _) if client.is_stalled() => return,
                        (Phase::Rest, lasted) if lasted >= limits.client_idle => {
                            connection.as_mut().graceful_shutdown();
                        }
                        _ => {}
                    }
                    timer.as_mut().reset(Instant::now() + limits.look());
                }
            },
        }
    }
}

/// One client's connection.
pub(super) struct Client {
    pub balancer: Arc<Balancer>,
    pub listener: Arc<Listener>,
    pub peer: IpAddr,
    /// The address as instances are told it.
    pub forwarded_for: HeaderValue,
    /// [`Phase`] in the two lowest bits, above them since when ([`now_ms`]).
    phase: AtomicU64,
    /// When a byte last passed.
    moved: AtomicU64,
    _permit: OwnedSemaphorePermit,
}

/// What a client's connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A head is awaited or has begun to come.
    Head = 0,
    /// A request is open.
    Busy = 1,
    /// Kept alive between requests.
    Rest = 2,
}

impl Client {
    fn new(balancer: Arc<Balancer>, listener: Arc<Listener>, peer: IpAddr, permit: OwnedSemaphorePermit) -> Arc<Self> {
        let peer = peer.to_canonical();
        let forwarded_for =
            HeaderValue::from_str(&peer.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        let now = now_ms();
        let (phase, moved) = (AtomicU64::new(now << 2), AtomicU64::new(now));
        Arc::new(Self { balancer, listener, peer, forwarded_for, phase, moved, _permit: permit })
    }

    /// Whether it should be asked to connect anew.
    pub fn is_closing(&self) -> bool {
        self.listener.closing.load(Ordering::Relaxed)
    }

    /// Waits until the listener's time is over.
    pub async fn killed(&self) {
        let mut stage = self.listener.stage.subscribe();
        let end = match stage.wait_for(|stage| matches!(stage, Stage::Closing(..))).await.as_deref() {
            Ok(Stage::Closing(_, end)) => *end,
            _ => return,
        };
        sleep_until(end).await;
    }

    /// Waits until nothing has moved for too long.
    pub async fn stalled(&self) {
        while !self.is_stalled() {
            tokio::time::sleep(self.balancer.shared.limits.look()).await;
        }
    }

    fn is_stalled(&self) -> bool {
        let lasted = now_ms().saturating_sub(self.moved.load(Ordering::Relaxed));
        Duration::from_millis(lasted) >= self.balancer.shared.limits.client_stall
    }

    fn set(&self, phase: Phase) {
        self.phase.store(now_ms() << 2 | phase as u64, Ordering::Relaxed);
    }

    /// And for how long.
    fn phase(&self) -> (Phase, Duration) {
        let packed = self.phase.load(Ordering::Relaxed);
        let phase = match packed & 3 {
            0 => Phase::Head,
            1 => Phase::Busy,
            _ => Phase::Rest,
        };
        (phase, Duration::from_millis(now_ms().saturating_sub(packed >> 2)))
    }
}

/// Sees bytes pass, and the first ones of a head come.
struct Reading(Arc<Client>);

impl Watch for Reading {
    fn received(&self, _bytes: usize) {
        self.sent();
        if self.0.phase.load(Ordering::Relaxed) & 3 == Phase::Rest as u64 {
            self.0.set(Phase::Head);
        }
    }
    fn sent(&self) {
        self.0.moved.store(now_ms(), Ordering::Relaxed);
    }
}

/// A request is open at a client's connection for as long as this lives.
pub(super) struct Busy(Arc<Client>);

impl Busy {
    pub fn begin(client: &Arc<Client>) -> Self {
        client.set(Phase::Busy);
        Self(Arc::clone(client))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(Phase::Rest);
    }
}
