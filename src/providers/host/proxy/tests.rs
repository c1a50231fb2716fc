//! The proxy under load and under changes, with real servers and connections on loopback.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Backend, Config, Limits, Proxy};
use crate::clock::Clock;
use crate::model::{InboundRule, Listener, LoadBalancerProblemKind, LoadBalancerSpec, Place, Protocol, Share};

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);

pub(super) fn spec(name: &str, listeners: &[u16]) -> LoadBalancerSpec {
    LoadBalancerSpec {
        place: Place { account: "local".into(), location: "local".into() },
        name: name.into(),
        listeners: listeners
            .iter()
            .map(|port| Listener { address: [127, 0, 0, 1].into(), port: *port, port_to: None })
            .collect(),
        health_check: None,
        security_groups: Vec::new(),
        drain_seconds: 5,
    }
}

fn everyone() -> Vec<InboundRule> {
    vec![rule("127.0.0.0/8", 1, u16::MAX)]
}

fn rule(cidr: &str, port_from: u16, port_to: u16) -> InboundRule {
    InboundRule { cidr: cidr.parse().expect("a network"), protocol: Protocol::Http, port_from, port_to }
}

/// A proxy with one load balancer `app` on a port of its own.
struct Bench {
    proxy: Proxy,
    address: SocketAddr,
    socket: StdListener,
    config: Config,
    dir: PathBuf,
}

impl Bench {
    fn start() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let dir = std::env::temp_dir().join(format!("gennaker-proxy-{}", uuid::Uuid::new_v4().simple()));
        let proxy = Proxy::with(&dir, limits, Clock::system()).expect("a proxy");
        let socket = StdListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let config = Config { spec: spec("app", &[address.port()]), inbound: everyone(), shares: Vec::new() };
        proxy.apply(config.clone(), vec![socket.try_clone().expect("a copy")]).expect("applied");
        Self { proxy, address, socket, config, dir }
    }

    fn backends(&self, backends: &[Backend]) {
        self.proxy.set_backends("app", backends.to_vec());
    }

    fn counted(&self) -> (u64, u64, u64) {
        let traffic = self.proxy.traffic("app", 0);
        traffic.iter().fold((0, 0, 0), |(requests, failed, retried), second| {
            (requests + second.requests, failed + second.failed, retried + second.retried)
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A real server that answers with its name.
struct Instance {
    backend: Backend,
    stop: watch::Sender<bool>,
    tasks: Option<tokio::task::JoinHandle<()>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// Requests for /hold.
    held: AtomicUsize,
    /// While set, /hold does not answer.
    hold: watch::Sender<bool>,
    /// Close after the head of the next request was read.
    drop_next: AtomicBool,
}

impl Instance {
    async fn start(group: &str, name: &str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let backend = Backend {
            server_group: group.into(),
            instance: name.into(),
            incarnation: 1,
            address: socket.local_addr().expect("bound"),
            healthy: true,
            enabled: true,
        };
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = watch::channel(false);
        let tasks = tokio::spawn(serve(socket, group.to_owned(), Arc::clone(&seen), stopped));
        Self { backend, stop, tasks: Some(tasks), seen }
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Accepts no more, closes what rests, finishes what is open.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        let tasks = self.tasks.take().expect("stopped once");
        timeout(SOON, tasks).await.expect("a server stops").expect("no panic");
    }

    /// As a process that is killed: every socket is closed at once.
    fn kill(mut self) {
        self.tasks.take().expect("killed once").abort();
    }
}

async fn serve(socket: TcpListener, group: String, seen: Arc<Seen>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = socket.accept() => accepted.expect("accept").0,
            _ = stopped.wait_for(|stopped| *stopped) => break,
            Some(_) = connections.join_next() => continue,
        };
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (group, seen, mut stopped) = (group.clone(), Arc::clone(&seen), stopped.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, group.clone(), Arc::clone(&seen)));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        });
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}

#[derive(Debug)]
struct Dropped;
impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("told to drop the connection")
    }
}
impl std::error::Error for Dropped {}

async fn answer(
    mut request: Request<Incoming>,
    group: String,
    seen: Arc<Seen>,
) -> Result<Response<Full<Bytes>>, Dropped> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    if request.uri().path() == "/drop" && seen.drop_next.swap(false, Ordering::SeqCst) {
        return Err(Dropped);
    }
    match request.uri().path() {
        "/hold" => {
            seen.held.fetch_add(1, Ordering::SeqCst);
            let _ = seen.hold.subscribe().wait_for(|hold| !*hold).await;
            Ok(Response::new(Full::new(group.into())))
        }
        "/headers" => {
            let mut lines: Vec<String> = request
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
                .collect();
            lines.sort();
            Ok(Response::new(Full::new(format!("{} {}\n{}", request.method(), request.uri(), lines.join("\n")).into())))
        }
        "/echo" => {
            let body = request.into_body().collect().await.map_err(|_| Dropped)?.to_bytes();
            Ok(Response::new(Full::new(body)))
        }
        "/ws" => {
            let key = request.headers().get("sec-websocket-key").expect("a key").clone();
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let io = TokioIo::new(upgrade.await.expect("upgraded"));
                let role = tokio_tungstenite::tungstenite::protocol::Role::Server;
                let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(io, role, None).await;
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_close() || socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", HeaderValue::from_static("Upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-accept", HeaderValue::from_str(&accept).expect("base64"));
            Ok(response)
        }
        _ => Ok(Response::new(Full::new(group.into()))),
    }
}

/// A client that keeps its connection and never tries anything twice.
struct Client {
    address: SocketAddr,
    sender: Option<hyper::client::conn::http1::SendRequest<Full<Bytes>>>,
}

impl Client {
    const fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, String), String> {
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => {
                let stream = TcpStream::connect(self.address).await.map_err(|error| format!("connect: {error}"))?;
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| format!("handshake: {error}"))?;
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await.map_err(|error| format!("ready: {error}"))?;
        let response = sender.send_request(request).await.map_err(|error| format!("send: {error:?}"))?;
        let status = response.status();
        let close = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
        let body = response.into_body().collect().await.map_err(|error| format!("body: {error:?}"))?.to_bytes();
        if !close {
            self.sender = Some(sender);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn get(&mut self, path: &str) -> Result<(StatusCode, String), String> {
        self.send(request(Method::GET, path, "")).await
    }
}

fn request(method: Method, path: &str, body: &str) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from(body.to_owned()));
    Request::builder().method(method).uri(path).header("host", "shop.example").body(body).expect("a request")
}

async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, String), String> {
    Client::new(address).get(path).await
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn ok(text: &str) -> Result<(StatusCode, String), String> {
    Ok((StatusCode::OK, text.to_owned()))
}

/// Steady GETs over kept-alive connections, until told to stop; every answer by its text.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    workers: JoinSet<(BTreeMap<String, usize>, Vec<String>)>,
}

impl Load {
    fn start(address: SocketAddr, workers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicUsize::new(0));
        let mut set = JoinSet::new();
        for _ in 0..workers {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            set.spawn(async move {
                let mut client = Client::new(address);
                let (mut answers, mut failures) = (BTreeMap::new(), Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    sent.fetch_add(1, Ordering::SeqCst);
                    match client.get("/").await {
                        Ok((StatusCode::OK, text)) => *answers.entry(text).or_default() += 1,
                        Ok((status, text)) => failures.push(format!("{status}: {text}")),
                        Err(error) => failures.push(error),
                    }
                }
                (answers, failures)
            });
        }
        Self { stop, sent, workers: set }
    }

    async fn more(&self, requests: usize) {
        let goal = self.sent.load(Ordering::SeqCst) + requests;
        until("requests to be sent", || self.sent.load(Ordering::SeqCst) >= goal).await;
    }

    async fn end(mut self) -> (BTreeMap<String, usize>, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let (mut answers, mut failures) = (BTreeMap::new(), Vec::new());
        while let Some(worker) = self.workers.join_next().await {
            let (more, failed) = worker.expect("no panic");
            for (text, count) in more {
                *answers.entry(text).or_default() += count;
            }
            failures.extend(failed);
        }
        (answers, failures)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_rollouts_under_load_fail_no_request() {
    let bench = Bench::start();
    let mut old = vec![Instance::start("v000", "a").await, Instance::start("v000", "b").await];
    bench.backends(&old.iter().map(|instance| instance.backend.clone()).collect::<Vec<_>>());
    let load = Load::start(bench.address, 8);
    for round in 1..=50 {
        let group = format!("v{round:03}");
        let new = vec![Instance::start(&group, "a").await, Instance::start(&group, "b").await];
        let all = |old_enabled: bool, old: &[Instance]| -> Vec<Backend> {
            let old = old.iter().map(|instance| Backend { enabled: old_enabled, ..instance.backend.clone() });
            old.chain(new.iter().map(|instance| instance.backend.clone())).collect()
        };
        bench.backends(&all(true, &old));
        load.more(20).await;
        let before = std::mem::take(&mut old);
        match round % 4 {
            // Disabled, drained, stopped: the way of a red/black deploy.
            0 => {
                bench.backends(&all(false, &before));
                let group = before[0].backend.server_group.clone();
                until("the old group to be drained", || bench.proxy.open_to(&group) == 0).await;
                for instance in before {
                    instance.stop().await;
                }
                bench.backends(&all(true, &[]));
            }
            // Stopped with grace before anybody says so.
            1 => {
                for instance in before {
                    instance.stop().await;
                    load.more(10).await;
                }
                bench.backends(&all(true, &[]));
            }
            // Killed before anybody says so.
            2 => {
                for instance in before {
                    instance.kill();
                    load.more(10).await;
                }
                bench.backends(&all(true, &[]));
            }
            // Taken out and killed in the same instant.
            _ => {
                bench.backends(&all(true, &[]));
                for instance in before {
                    instance.kill();
                }
            }
        }
        load.more(20).await;
        old = new;
    }
    let (answers, failures) = load.end().await;
    assert!(failures.is_empty(), "{} failures: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(answers.len() >= 50, "every group answered: {answers:?}");
    let (requests, failed, _) = bench.counted();
    assert_eq!(failed, 0);
    assert_eq!(requests as usize, answers.values().sum::<usize>(), "every request is counted once");
}

#[tokio::test]
async fn shares_are_exact_and_switch_in_one_step() {
    let mut bench = Bench::start();
    let old = Instance::start("v000", "a").await;
    let new = [Instance::start("v001", "b").await, Instance::start("v001", "c").await];
    bench.backends(&[old.backend.clone(), new[0].backend.clone(), new[1].backend.clone()]);
    let share = |group: &str, basis_points| Share { server_group: group.into(), basis_points };
    bench.config.shares = vec![share("v000", 9_000), share("v001", 1_000)];
    bench.proxy.update(bench.config.clone());
    let mut client = Client::new(bench.address);
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..500 {
        *answers.entry(client.get("/").await.expect("an answer").1).or_default() += 1;
    }
    assert_eq!(answers, BTreeMap::from([("v000".into(), 450), ("v001".into(), 50)]));
    assert_eq!((new[0].requests(), new[1].requests()), (25, 25), "even within the group");
    bench.config.shares = vec![share("v000", 0), share("v001", 10_000)];
    bench.proxy.update(bench.config.clone());
    for _ in 0..50 {
        assert_eq!(client.get("/").await, ok("v001"), "from the next request on");
    }
    let down = |instance: &Instance| Backend { healthy: false, ..instance.backend.clone() };
    bench.backends(&[old.backend.clone(), down(&new[0]), down(&new[1])]);
    assert_eq!(client.get("/").await, ok("v000"), "a share with nothing healthy goes to the others");
    let told = bench.proxy.problems("app");
    assert!(told.len() == 1 && told[0].message.contains("`v001` goes to the others"), "{told:?}");
    let changes = bench.proxy.problems_changed();
    bench.backends(&[old.backend.clone(), down(&new[0])]);
    bench.proxy.apply(bench.config.clone(), vec![bench.socket.try_clone().expect("a copy")]).expect("applied");
    assert!(!changes.has_changed().expect("it lives"), "said once");
    assert_eq!(bench.proxy.problems("app"), told, "and still the case, however often it is applied");
    bench.backends(&[old.backend.clone(), new[0].backend.clone()]);
    assert_eq!(bench.proxy.problems("app"), []);
    assert!(changes.has_changed().expect("it lives"));
    assert_eq!(client.get("/").await, ok("v001"));
}

#[tokio::test]
async fn good_news_of_one_share_does_not_hide_another_and_a_share_that_is_gone_is_no_problem() {
    let mut bench = Bench::start();
    let share = |group: &str| Share { server_group: group.into(), basis_points: 5_000 };
    let backend = |group: &str, healthy| Backend {
        server_group: group.into(),
        instance: format!("{group}-a"),
        incarnation: 1,
        address: bench.address,
        healthy,
        enabled: true,
    };
    bench.config.shares = vec![share("v000"), share("v001")];
    bench.proxy.update(bench.config.clone());
    let told = |proxy: &Proxy| proxy.problems("app").into_iter().map(|problem| problem.about).collect::<Vec<_>>();
    assert_eq!(told(&bench.proxy), ["v000", "v001"]);
    bench.backends(&[backend("v000", true), backend("v001", false)]);
    assert_eq!(told(&bench.proxy), ["v001"]);
    bench.config.shares.clear();
    bench.proxy.update(bench.config.clone());
    assert_eq!(told(&bench.proxy), [""; 0]);
}

#[tokio::test]
async fn a_listener_without_room_is_a_problem_beside_others_until_there_is_room() {
    let mut bench = Bench::with(Limits { client_connections: 1, ..Limits::default() });
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let told = |proxy: &Proxy| proxy.problems("app").into_iter().map(|problem| problem.kind).collect::<Vec<_>>();
    let mut first = Client::new(bench.address);
    assert_eq!(first.get("/").await, ok("v000"));
    until("the problem", || told(&bench.proxy) == [LoadBalancerProblemKind::Connections]).await;
    let problem = bench.proxy.problems("app").remove(0);
    assert_eq!(problem.about, bench.address.to_string());
    assert!(problem.message.contains("1 connections are open, as many as allowed"), "{problem:?}");
    // Another problem comes and goes meanwhile.
    bench.config.shares = vec![Share { server_group: "v001".into(), basis_points: 1_000 }];
    bench.proxy.update(bench.config.clone());
    assert_eq!(told(&bench.proxy), [LoadBalancerProblemKind::Connections, LoadBalancerProblemKind::Share]);
    bench.config.shares.clear();
    bench.proxy.update(bench.config.clone());
    assert_eq!(bench.proxy.problems("app"), [problem]);
    drop(first);
    until("no problem", || told(&bench.proxy).is_empty()).await;
    // A listener that is closed has none.
    let mut second = Client::new(bench.address);
    assert_eq!(second.get("/").await, ok("v000"));
    until("the problem again", || !told(&bench.proxy).is_empty()).await;
    bench.proxy.apply(bench.config.clone(), Vec::new()).expect("applied");
    until("no problem of a closed listener", || told(&bench.proxy).is_empty()).await;
}

#[tokio::test]
async fn connections_to_instances_are_used_again() {
    let bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let mut client = Client::new(bench.address);
    for _ in 0..100 {
        assert_eq!(client.get("/").await, ok("v000"));
        let head = client.send(request(Method::HEAD, "/", "")).await;
        assert_eq!(head, ok(""));
        let text = "body ".repeat(5_000);
        assert_eq!(client.send(request(Method::POST, "/echo", &text)).await, ok(&text));
    }
    assert_eq!(instance.seen.connections.load(Ordering::SeqCst), 1);
    assert_eq!(bench.proxy.open_to("v000"), 0);
}

#[tokio::test]
async fn who_is_not_let_in_is_closed_before_a_byte_is_read() {
    let mut bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let mut inside = Client::new(bench.address);
    assert_eq!(inside.get("/").await, ok("v000"));
    let port = bench.address.port();
    for inbound in [vec![], vec![rule("10.0.0.0/8", 1, u16::MAX)], vec![rule("127.0.0.1/32", port + 1, u16::MAX)]] {
        bench.config.inbound = inbound;
        bench.proxy.update(bench.config.clone());
        let mut stream = TcpStream::connect(bench.address).await.expect("the socket listens");
        let mut answer = Vec::new();
        let read = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("closed at once");
        assert!(read.is_err() || answer.is_empty(), "not a byte: {answer:?}");
    }
    let refused = inside.get("/").await.expect("an answer");
    assert_eq!(refused.0, StatusCode::FORBIDDEN, "a connection from before is let in no longer");
    bench.config.inbound = vec![rule("127.0.0.1/32", port, port)];
    bench.proxy.update(bench.config.clone());
    assert_eq!(get(bench.address, "/").await, ok("v000"));
    assert_eq!(instance.requests(), 2);
}

#[tokio::test]
async fn a_websocket_goes_through_and_is_cut_after_the_drain_time() {
    let mut bench = Bench::start();
    bench.config.spec.drain_seconds = 1;
    bench.proxy.update(bench.config.clone());
    let instance = Instance::start("v000", "a").await;
    let other = Instance::start("v001", "b").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let (mut socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{}/ws", bench.address)).await.expect("a websocket");
    for text in ["one", "two"] {
        socket.send(text.into()).await.expect("sent");
        assert_eq!(socket.next().await.expect("open").expect("read").to_text().expect("text"), text);
    }
    assert_eq!(bench.proxy.open_to("v000"), 1, "it counts as open");
    bench.backends(&[Backend { enabled: false, ..instance.backend.clone() }, other.backend.clone()]);
    socket.send("three".into()).await.expect("sent");
    assert_eq!(socket.next().await.expect("open").expect("read").to_text().expect("text"), "three", "goes on at first");
    assert_eq!(get(bench.address, "/").await, ok("v001"), "new requests go elsewhere");
    assert!(!matches!(timeout(SOON, socket.next()).await.expect("cut in time"), Some(Ok(_))));
    until("the tunnel to be gone", || bench.proxy.open_to("v000") == 0).await;
}

#[tokio::test]
async fn a_get_without_an_answer_is_sent_to_another_instance_and_a_post_is_not() {
    let bench = Bench::start();
    let bad = Instance::start("v000", "a").await;
    let good = Instance::start("v000", "b").await;
    // Only the bad one first, so that it is the one that is asked.
    for (method, expected) in [(Method::GET, true), (Method::PUT, true), (Method::POST, false)] {
        bad.seen.drop_next.store(true, Ordering::SeqCst);
        let mut answers = Vec::new();
        bench.backends(&[bad.backend.clone(), good.backend.clone()]);
        // In turn, so within two requests the bad one is asked.
        for _ in 0..2 {
            let answer = get_with(bench.address, method.clone()).await.expect("an answer");
            answers.push(answer.0 == StatusCode::OK);
        }
        assert!(!bad.seen.drop_next.load(Ordering::SeqCst), "the bad one was asked");
        assert_eq!(answers.iter().all(|ok| *ok), expected, "{method}");
        // Connections from before are gone, so that the next method begins anew.
        bench.backends(&[]);
    }
    let (_, failed, retried) = bench.counted();
    assert_eq!((failed, retried), (1, 2));
}

async fn get_with(address: SocketAddr, method: Method) -> Result<(StatusCode, String), String> {
    let body = if method == Method::GET { "" } else { "a body" };
    Client::new(address).send(request(method, "/drop", body)).await
}

#[tokio::test]
async fn a_post_goes_elsewhere_when_no_connection_can_be_made() {
    let bench = Bench::start();
    let good = Instance::start("v000", "b").await;
    let closed = StdListener::bind("127.0.0.1:0").expect("a port");
    let gone = Backend { instance: "a".into(), address: closed.local_addr().expect("bound"), ..good.backend.clone() };
    drop(closed);
    bench.backends(&[gone.clone(), good.backend.clone()]);
    for _ in 0..4 {
        assert_eq!(Client::new(bench.address).send(request(Method::POST, "/echo", "text")).await, ok("text"));
    }
    bench.backends(&[gone]);
    assert_eq!(get(bench.address, "/").await.expect("an answer").0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_connection_that_the_instance_closed_fails_nothing() {
    let bench = Bench::start();
    let first = Instance::start("v000", "a").await;
    let address = first.backend.address;
    bench.backends(std::slice::from_ref(&first.backend));
    let mut client = Client::new(bench.address);
    assert_eq!(client.get("/").await, ok("v000"));
    first.kill();
    // Another process at the same address, and nobody has told the proxy.
    let socket = loop {
        match TcpListener::bind(address).await {
            Ok(socket) => break socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(serve(socket, "again".into(), Arc::default(), stopped));
    assert_eq!(client.send(request(Method::POST, "/echo", "text")).await, ok("text"), "seen to be closed before use");
    assert_eq!(client.get("/").await, ok("again"));
}

#[tokio::test]
async fn without_an_instance_the_answer_says_so_and_when_to_come_again() {
    let bench = Bench::start();
    let mut stream = TcpStream::connect(bench.address).await.expect("listens");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(text.contains("\r\nretry-after: 1\r\n"), "{text}");
    assert!(text.ends_with("load balancer `app` has no healthy instance\n"), "{text}");
    let mut stream = TcpStream::connect(bench.address).await.expect("listens");
    stream.write_all(b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.expect("read");
    assert_eq!(&start, b"HTTP/1.1 405");
    assert_eq!(bench.counted(), (1, 1, 0));
}

#[tokio::test]
async fn an_instance_gets_what_it_should_know_and_no_more() {
    let bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let mut stream = TcpStream::connect(bench.address).await.expect("listens");
    stream
        .write_all(
            b"GET http://real.example/headers?a=%20b HTTP/1.1\r\nhost: forged\r\nconnection: close, x-hop\r\n\
              x-hop: 1\r\nte: trailers\r\nx-forwarded-for: 10.1.1.1\r\naccept: */*\r\n\r\n",
        )
        .await
        .expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    let body = text.split_once("\r\n\r\n").expect("a head").1;
    assert_eq!(
        body,
        "GET /headers?a=%20b\naccept: */*\nhost: real.example\nx-forwarded-for: 10.1.1.1, 127.0.0.1\n\
         x-forwarded-host: real.example\nx-forwarded-proto: http"
    );
}

#[tokio::test]
async fn an_instance_that_is_taken_out_finishes_what_it_has() {
    let bench = Bench::start();
    let (old, new) = (Instance::start("v000", "a").await, Instance::start("v001", "b").await);
    old.seen.hold.send_replace(true);
    bench.backends(std::slice::from_ref(&old.backend));
    let slow = tokio::spawn(async move { get(bench.address, "/hold").await });
    until("the request to arrive", || old.requests() == 1).await;
    assert_eq!(bench.proxy.open_to("v000"), 1);
    // A new incarnation of the same instance is another process.
    let again = Backend { incarnation: 2, address: new.backend.address, ..old.backend.clone() };
    bench.backends(&[again]);
    assert_eq!(get(bench.address, "/").await, ok("v001"));
    old.seen.hold.send_replace(false);
    assert_eq!(slow.await.expect("no panic"), ok("v000"));
    until("nothing to be open", || bench.proxy.open_to("v000") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_takes_over_the_socket_fails_no_request_and_knows_the_counters() {
    let bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    instance.seen.hold.send_replace(true);
    bench.backends(std::slice::from_ref(&instance.backend));
    let load = Load::start(bench.address, 4);
    load.more(100).await;
    let address = bench.address;
    let slow = tokio::spawn(async move { get(address, "/hold").await });
    until("the slow request to arrive", || instance.seen.held.load(Ordering::SeqCst) == 1).await;
    // As on an upgrade: the next one listens on a copy of the socket before the first one stops.
    let next = Proxy::new(&bench.dir).expect("a proxy");
    next.set_backends("app", vec![instance.backend.clone()]);
    next.apply(bench.config.clone(), vec![bench.socket.try_clone().expect("a copy")]).expect("applied");
    let first = bench.proxy.clone();
    let drained = tokio::spawn(async move { first.drain(SOON).await });
    load.more(100).await;
    assert!(!drained.is_finished(), "it waits for the slow request");
    instance.seen.hold.send_replace(false);
    assert_eq!(slow.await.expect("no panic"), ok("v000"), "an open request is finished");
    timeout(SOON, drained).await.expect("drained").expect("no panic");
    load.more(100).await;
    let (answers, failures) = load.end().await;
    assert_eq!(failures, Vec::<String>::new());
    let total = answers["v000"] as u64 + 1;
    let counted = || next.traffic("app", 0).iter().map(|second| second.requests).sum::<u64>();
    until("the counters of both to be known", || counted() == total).await;
    drop(next);
    let last = Proxy::new(&bench.dir).expect("a proxy");
    let counted: u64 = last.traffic("app", 0).iter().map(|second| second.requests).sum();
    assert_eq!(counted, total, "also to one that was started later");
}

#[tokio::test]
async fn a_listener_that_is_still_wanted_goes_on_and_one_that_is_not_closes() {
    let mut bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let mut client = Client::new(bench.address);
    assert_eq!(client.get("/").await, ok("v000"));
    let second = StdListener::bind("127.0.0.1:0").expect("a port");
    let second_address = second.local_addr().expect("bound");
    bench.config.spec.drain_seconds = 1;
    let copy = bench.socket.try_clone().expect("a copy");
    bench.proxy.apply(bench.config.clone(), vec![copy, second.try_clone().expect("a copy")]).expect("applied");
    assert!(client.sender.as_ref().is_some_and(|sender| !sender.is_closed()), "the connection stays");
    assert_eq!(client.get("/").await, ok("v000"));
    assert_eq!(get(second_address, "/").await, ok("v000"));
    bench.proxy.apply(bench.config.clone(), vec![second]).expect("applied");
    assert_eq!(client.get("/").await, ok("v000"), "finished");
    assert!(client.sender.is_none(), "and asked to connect anew");
    assert_eq!(get(second_address, "/").await, ok("v000"));
    // The test holds the first socket, so connections queue up and are not accepted.
    let mut stream = TcpStream::connect(bench.address).await.expect("in the queue");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err());
    bench.proxy.remove("app");
    until("the last listener to close", || std::net::TcpStream::connect(second_address).is_err()).await;
    assert_eq!(bench.proxy.traffic("app", 0), []);
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up_and_a_client_too_many_waits() {
    let limits = Limits {
        client_connections: 1,
        response_head: Duration::from_millis(100),
        instance_requests: 1,
        ..Limits::default()
    };
    let bench = Bench::with(limits);
    let instance = Instance::start("v000", "a").await;
    instance.seen.hold.send_replace(true);
    bench.backends(std::slice::from_ref(&instance.backend));
    let mut first = Client::new(bench.address);
    assert_eq!(first.get("/hold").await.expect("an answer").0, StatusCode::GATEWAY_TIMEOUT);
    let mut second = Client::new(bench.address);
    assert!(timeout(Duration::from_millis(200), second.get("/")).await.is_err(), "the first holds the only place");
    drop(first);
    let answered = timeout(SOON, get(bench.address, "/")).await.expect("in time");
    assert_eq!(answered, ok("v000"));
    assert_eq!(bench.proxy.open_to("v000"), 0);
}

#[tokio::test]
async fn a_large_body_streams_both_ways_and_a_broken_one_breaks_the_answer() {
    let bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    let text = "0123456789".repeat(500_000);
    assert_eq!(Client::new(bench.address).send(request(Method::PUT, "/echo", &text)).await, ok(&text));
    // An instance that promises more than it sends.
    let broken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = Backend { address: broken.local_addr().expect("bound"), ..instance.backend.clone() };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = broken.accept().await {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        }
    });
    bench.backends(&[backend]);
    get(bench.address, "/").await.expect_err("a cut body is not taken for a whole one");
    assert_eq!(bench.proxy.open_to("v000"), 0);
}

#[tokio::test]
async fn a_client_that_dawdles_rests_or_stalls_is_closed() {
    let span = Duration::from_millis(150);
    let limits = Limits { header_read: span, client_idle: span, client_stall: span, ..Limits::default() };
    let bench = Bench::with(limits);
    let instance = Instance::start("v000", "a").await;
    instance.seen.hold.send_replace(true);
    bench.backends(std::slice::from_ref(&instance.backend));
    for (sent, answer) in [
        ("", ""),
        ("GET / HTTP/1.1\r\nhost:", ""),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET", "HTTP/1.1 200 OK\r\n"),
        ("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf", ""),
        ("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n", ""),
    ] {
        let mut stream = TcpStream::connect(bench.address).await.expect("listens");
        stream.write_all(sent.as_bytes()).await.expect("sent");
        let mut text = String::new();
        timeout(SOON, stream.read_to_string(&mut text)).await.expect("closed in time").expect("read");
        assert!(text.starts_with(answer) && text.is_empty() == answer.is_empty(), "{sent:?}: {text:?}");
    }
    until("nothing to be open", || bench.proxy.open_to("v000") == 0).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let bench = Bench::start();
    let instance = Instance::start("v000", "a").await;
    bench.backends(std::slice::from_ref(&instance.backend));
    for (size, status) in [(60 * 1024, "200"), (70 * 1024, "431")] {
        let mut stream = TcpStream::connect(bench.address).await.expect("listens");
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(size));
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.expect("read");
        assert_eq!(String::from_utf8_lossy(&start), format!("HTTP/1.1 {status}"));
    }
    assert_eq!(instance.requests(), 1);
}

#[tokio::test]
async fn an_instance_that_is_taken_out_is_cut_after_the_drain_time_and_not_if_it_comes_back() {
    let mut bench = Bench::start();
    bench.config.spec.drain_seconds = 1;
    bench.proxy.update(bench.config.clone());
    let instance = Instance::start("v000", "a").await;
    let other = Instance::start("v001", "b").await;
    for instance in [&instance, &other] {
        instance.seen.hold.send_replace(true);
    }
    let out = |instance: &Instance| Backend { enabled: false, ..instance.backend.clone() };
    let address = bench.address;
    let hold = || tokio::spawn(async move { get(address, "/hold").await });
    let arrives = async |instance: &Instance, count: usize| {
        until("the request to arrive", || instance.seen.held.load(Ordering::SeqCst) == count).await;
    };
    bench.backends(std::slice::from_ref(&other.backend));
    let lost = hold();
    arrives(&other, 1).await;
    bench.backends(&[instance.backend.clone(), out(&other)]);
    let slow = hold();
    arrives(&instance, 1).await;
    // Both are out at once, and one comes back: when the other is cut, its time is over too.
    bench.backends(&[instance.backend.clone(), other.backend.clone()]);
    bench.backends(&[out(&instance), out(&other)]);
    bench.backends(&[instance.backend.clone(), out(&other)]);
    let later = hold();
    arrives(&instance, 2).await;
    // Nothing of it was answered, so it is asked here once more.
    arrives(&instance, 3).await;
    assert_eq!(bench.proxy.open_to("v001"), 0);
    assert_eq!(bench.proxy.open_to("v000"), 3, "it came back, so nothing is cut");
    bench.backends(&[out(&instance), out(&other)]);
    until("what was open to be cut", || bench.proxy.open_to("v000") == 0).await;
    for request in [lost, slow, later] {
        assert_eq!(request.await.expect("no panic").expect("an answer").0, StatusCode::BAD_GATEWAY);
    }
}
