//! One process behind a load balancer: the connections to it, how many requests it has open, and
//! whether it is being drained. A connection is driven by whoever uses it, not by a task of its
//! own, so that a request changes tasks nowhere on its way.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, setsockopt, shutdown, sockopt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::body::RequestBody;
use super::limits::Limits;
use super::watched::{Watch, Watched};

/// Reads and writes for as long as it is polled.
type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// One process (instance and incarnation) as one load balancer knows it.
pub(super) struct Upstream {
    /// Unique in this process.
    pub id: u64,
    pub group: Arc<str>,
    pub address: SocketAddr,
    open: AtomicUsize,
    /// Over all load balancers and instances of the server group.
    group_open: Arc<AtomicUsize>,
    pool: Mutex<Pool>,
    sockets: Arc<Sockets>,
    cut: watch::Sender<()>,
    /// Passed over until then, if there are others; see [`now_ms`].
    suspect_until: AtomicU64,
}

struct Pool {
    resting: Vec<Channel>,
    /// Since when nothing new is sent here, and when what is open is cut.
    cut_at: Option<Instant>,
}

/// Every open socket to the process, so that they can be cut from outside.
#[derive(Default)]
struct Sockets(Mutex<HashMap<u64, RawFd>>);

/// Told when the drain time is over.
pub(super) type Cut = watch::Receiver<()>;

impl Upstream {
    pub fn new(group: Arc<str>, address: SocketAddr, group_open: Arc<AtomicUsize>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            group,
            address,
            open: AtomicUsize::new(0),
            group_open,
            pool: Mutex::new(Pool { resting: Vec::new(), cut_at: None }),
            sockets: Arc::default(),
            cut: watch::channel(()).0,
            suspect_until: AtomicU64::new(0),
        }
    }

    /// Counts a request in; it is out when the answer is dropped.
    pub fn enter(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.group_open.fetch_add(1, Ordering::SeqCst);
        Open(Arc::clone(self))
    }

    /// Open requests and upgraded connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// No connection could be made a moment ago.
    pub fn is_suspect(&self, now_ms: u64) -> bool {
        self.suspect_until.load(Ordering::Relaxed) > now_ms
    }

    pub fn suspect(&self, span: Duration) {
        self.suspect_until.store(now_ms() + span.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn trust(&self) {
        if self.suspect_until.load(Ordering::Relaxed) != 0 {
            self.suspect_until.store(0, Ordering::Relaxed);
        }
    }

    /// A resting connection that the process has not closed.
    pub fn resting(&self, limits: &Limits) -> Option<Channel> {
        let now = Instant::now();
        loop {
            let channel = lock(&self.pool).resting.pop()?;
            if channel.is_young(now, limits) && channel.is_alive() {
                return Some(channel);
            }
        }
    }

    /// A new connection.
    pub async fn connect(&self, limits: &Limits) -> io::Result<Channel> {
        let stream = tokio::time::timeout(limits.connect, TcpStream::connect(self.address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // A connection to a free port of the ephemeral range may meet itself.
        if stream.local_addr()? == self.address {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        let received = Arc::new(AtomicU64::new(0));
        let fd = stream.as_raw_fd();
        let registration = Registration::new(&stream, Arc::clone(&self.sockets), Arc::clone(&received));
        let io = TokioIo::new(Watched::new(stream, registration));
        let (sender, connection) =
            http1::Builder::new().max_header_size(limits.header_bytes).handshake(io).await.map_err(io::Error::other)?;
        let connection: Option<Connection> = Some(Box::pin(connection.with_upgrades()));
        let now = Instant::now();
        Ok(Channel { sender, connection, received, fd, born: now, rested: now, reused: false })
    }

    /// Takes a connection back for the next request, if it can carry one.
    pub fn give_back(&self, mut channel: Channel, limits: &Limits) {
        if !channel.settle() {
            return;
        }
        channel.rested = Instant::now();
        channel.reused = true;
        let mut pool = lock(&self.pool);
        if pool.cut_at.is_none() && pool.resting.len() < limits.instance_idle {
            pool.resting.push(channel);
        }
    }

    /// Nothing new goes here; what is open may go on for a while.
    pub fn drain(&self, span: Duration) {
        let resting = {
            let mut pool = lock(&self.pool);
            if pool.cut_at.is_none() {
                pool.cut_at = Some(Instant::now() + span);
            }
            std::mem::take(&mut pool.resting)
        };
        drop(resting);
    }

    /// Takes requests again.
    pub fn resume(&self) {
        lock(&self.pool).cut_at = None;
    }

    /// Closes connections that rested too long, and everything when the drain time is over.
    pub fn tidy(&self, limits: &Limits) {
        let now = Instant::now();
        let mut gone = Vec::new();
        let cut = {
            let mut pool = lock(&self.pool);
            let mut index = 0;
            while index < pool.resting.len() {
                if pool.resting[index].is_young(now, limits) && pool.resting[index].is_alive() {
                    index += 1;
                } else {
                    gone.push(pool.resting.swap_remove(index));
                }
            }
            pool.cut_at.is_some_and(|at| at <= now)
        };
        drop(gone);
        if cut {
            self.cut.send_replace(());
            self.sockets.cut();
        }
    }

    /// For those who would not notice the end of a socket, since they have two.
    pub fn cut(&self) -> Cut {
        self.cut.subscribe()
    }
}

/// A request that is open at an instance.
pub(super) struct Open(Arc<Upstream>);

impl Open {
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.group_open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection to an instance, with the state machine that moves its bytes.
pub(super) struct Channel {
    sender: SendRequest<RequestBody>,
    /// Absent once it has ended.
    connection: Option<Connection>,
    /// Bytes that came from the instance.
    received: Arc<AtomicU64>,
    /// Valid for as long as `connection` is there.
    fd: RawFd,
    born: Instant,
    rested: Instant,
    /// Has carried a request before.
    pub reused: bool,
}

/// Why a request got no answer.
pub(super) struct Unanswered {
    /// Given back when not a byte of it was sent.
    pub unsent: Option<Request<RequestBody>>,
    /// Bytes of an answer had come.
    pub begun: bool,
    pub error: hyper::Error,
}

impl Channel {
    /// Sends a request and waits for the head of the answer.
    pub async fn exchange(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, Unanswered> {
        let before = self.received.load(Ordering::Relaxed);
        let connection = &mut self.connection;
        let mut answer = pin!(self.sender.try_send_request(request));
        let result: Result<_, TrySendError<_>> = poll_fn(|cx| {
            drive(connection, cx);
            answer.as_mut().poll(cx)
        })
        .await;
        result.map_err(|mut error| Unanswered {
            unsent: error.take_message(),
            begun: self.received.load(Ordering::Relaxed) != before,
            error: error.into_error(),
        })
    }

    /// Moves bytes; called whenever more of an answer is waited for.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, cx);
    }

    /// The rest of the connection, to be run until an upgrade is through.
    pub fn into_connection(self) -> Option<impl Future<Output = hyper::Result<()>> + Send> {
        self.connection
    }

    /// Lets the connection see the end of the answer; true when it can carry another request.
    fn settle(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let mut cx = Context::from_waker(Waker::noop());
        if pin!(tokio::task::unconstrained(connection)).poll(&mut cx).is_ready() {
            self.connection = None;
        }
        self.connection.is_some() && self.sender.is_ready()
    }

    fn is_young(&self, now: Instant, limits: &Limits) -> bool {
        now.duration_since(self.rested) < limits.pool_idle && now.duration_since(self.born) < limits.pool_age
    }

    /// Whether the other side has neither closed nor said anything: asks the kernel, which knows
    /// before the runtime does.
    fn is_alive(&self) -> bool {
        self.connection.is_some()
            && matches!(
                recv(self.fd, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT),
                Err(Errno::EAGAIN | Errno::EINTR)
            )
    }
}

fn drive(connection: &mut Option<Connection>, cx: &mut Context<'_>) {
    if let Some(running) = connection
        && running.as_mut().poll(cx).is_ready()
    {
        // Dropping it answers whoever waits on it.
        *connection = None;
    }
}

/// What is kept of a socket to an instance for as long as it is open.
struct Registration {
    id: u64,
    sockets: Arc<Sockets>,
    received: Arc<AtomicU64>,
}

impl Registration {
    fn new(stream: &TcpStream, sockets: Arc<Sockets>, received: Arc<AtomicU64>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        lock(&sockets.0).insert(id, stream.as_raw_fd());
        Self { id, sockets, received }
    }
}

impl Watch for Registration {
    fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Registration {
    /// Before the socket is closed, so that no number in the list ever belongs to another file.
    fn drop(&mut self) {
        lock(&self.sockets.0).remove(&self.id);
    }
}

impl Sockets {
    /// Ends every connection; those who use them see the end.
    fn cut(&self) {
        for fd in lock(&self.0).values() {
            let _ = shutdown(*fd, Shutdown::Both);
        }
    }
}

/// Milliseconds since this process first asked.
pub(super) fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
