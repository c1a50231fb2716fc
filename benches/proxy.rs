//! What the load balancer adds to a direct call, and how many requests it passes in a second.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gennaker::model::{InboundRule, Listener, LoadBalancerSpec, Place, Protocol};
use gennaker::providers::host::proxy::{Backend, Config, Proxy};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;

use crate::engine::tempdir;
use crate::figures::{head, line, percentile, us};

const CALLS: usize = 20_000;

pub async fn run() {
    head("proxy: GET of the sample application, one after the other and 32 at once");
    let dir = tempdir("proxy");
    let app = Application::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a plain socket");
    let proxy = Proxy::new(&dir.0).expect("the directory is writable");
    proxy.apply(config(address.port()), vec![listener]).expect("a bound listener");
    proxy.set_backends(
        "bench",
        vec![Backend {
            server_group: "bench-v000".into(),
            instance: "bench-v000-0001".into(),
            incarnation: 1,
            address: app.address,
            healthy: true,
            enabled: true,
        }],
    );

    // Interleaved, so that what else the machine does hits both alike.
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    let mut to_app = connect(app.address).await;
    let mut to_proxy = connect(address).await;
    for _ in 0..10 {
        one_by_one(&mut to_app, CALLS / 10, &mut direct).await;
        one_by_one(&mut to_proxy, CALLS / 10, &mut through).await;
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (without, with) = (percentile(&mut direct, share), percentile(&mut through, share));
        line(
            &format!("added {name} (direct {}, through {})", us(without), us(with)),
            &us(with.saturating_sub(without)),
            "no bar set",
            true,
        );
    }
    let without = rate(app.address).await;
    let with = rate(address).await;
    line(
        &format!("requests/s through the proxy (direct {without:.0}/s)"),
        &format!("{with:.0}/s, {:.0} % of direct", with / without * 100.0),
        "no bar set",
        true,
    );
}

fn config(port: u16) -> Config {
    Config {
        spec: LoadBalancerSpec {
            place: Place { account: "local".into(), location: "local".into() },
            name: "bench".into(),
            listeners: vec![Listener { address: [127, 0, 0, 1].into(), port, port_to: None }],
            health_check: None,
            security_groups: vec!["bench".into()],
            drain_seconds: 1,
        },
        inbound: vec![InboundRule {
            cidr: "127.0.0.0/8".parse().expect("a network"),
            protocol: Protocol::Tcp,
            port_from: port,
            port_to: port,
        }],
        shares: Vec::new(),
    }
}

async fn connect(address: SocketAddr) -> SendRequest<Empty<bytes::Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
    tokio::spawn(connection);
    sender
}

async fn call(sender: &mut SendRequest<Empty<bytes::Bytes>>) {
    let request = hyper::Request::get("/").header("host", "bench").body(Empty::new()).expect("a plain request");
    sender.ready().await.expect("the connection stays open");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.expect("a whole body").to_bytes();
    assert!(body.starts_with(b"hello from bench"), "{body:?}");
}

async fn one_by_one(sender: &mut SendRequest<Empty<bytes::Bytes>>, calls: usize, samples: &mut Vec<Duration>) {
    for _ in 0..calls {
        let begun = Instant::now();
        call(sender).await;
        samples.push(begun.elapsed());
    }
}

async fn rate(address: SocketAddr) -> f64 {
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..32 {
        tasks.push(tokio::spawn(async move {
            let mut sender = connect(address).await;
            for _ in 0..CALLS / 32 {
                call(&mut sender).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("no call fails");
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = (CALLS / 32 * 32) as f64 / begun.elapsed().as_secs_f64();
    rate
}

struct Application {
    process: Child,
    address: SocketAddr,
}

impl Application {
    async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let process = Command::new(env!("CARGO_BIN_EXE_gennaker"))
            .args(["sample-app", "--version", "bench", "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary is built");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let last = Instant::now() + Duration::from_secs(10);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < last, "the sample application does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, address }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
