//! The guarded client against real servers on this machine.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::response::Redirect;
use axum::routing::{any, get};

use super::address::special;
use super::*;

fn get_of(url: &str) -> Request {
    Request {
        method: Method::GET,
        url: url.to_owned(),
        headers: HeaderMap::new(),
        body: None,
        timeout: Duration::from_secs(10),
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn allowing(entries: &[&str]) -> Options {
    Options { allow: entries.iter().map(|text| text.parse().expect("an entry")).collect(), ..Options::default() }
}

/// `public.test` looks like a host on the internet but leads to `address`.
fn named(address: &'static str) -> Lookup {
    Arc::new(move |_| Box::pin(async move { Ok(vec![address.parse().expect("an address")]) }))
}

#[test]
fn special_ranges_are_known_by_address() {
    for text in [
        "127.0.0.1",
        "127.8.9.1",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "169.254.1.1",
        "100.64.0.1",
        "100.127.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.0.192",
        "198.18.0.1",
        "168.63.129.16",
        "::1",
        "::",
        "::ffff:8.8.8.8",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "2001::1",
        "100::1",
    ] {
        assert!(special(text.parse().expect(text)).is_some(), "{text}");
    }
    for text in ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450::1"] {
        assert_eq!(special(text.parse().expect(text)), None, "{text}");
    }
}

#[test]
fn allow_entries_are_networks_addresses_or_host_and_port() {
    let net = |text: &str| Allow::Net(text.parse().expect("a network"));
    let host = |host: &str, port| Allow::Host { host: host.into(), port };
    assert_eq!("10.0.0.0/8".parse(), Ok(net("10.0.0.0/8")));
    assert_eq!("::1".parse(), Ok(net("::1/128")));
    assert_eq!("127.0.0.1".parse(), Ok(net("127.0.0.1/32")));
    assert_eq!("127.0.0.1:80".parse(), Ok(host("127.0.0.1", 80)));
    assert_eq!("[::1]:80".parse(), Ok(host("::1", 80)));
    assert_eq!("Hooks.Internal:8443".parse(), Ok(host("hooks.internal", 8443)));
    for text in ["", "internal", "internal:", ":80", "internal:0", "internal:99999"] {
        assert_eq!(text.parse::<Allow>(), Err(InvalidAllow(text.into())), "{text}");
    }
}

#[tokio::test]
async fn a_local_server_is_refused_unless_an_entry_or_a_listener_of_ours_says_otherwise() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let address = serve(Router::new().route(
        "/",
        get(|| async {
            CALLS.fetch_add(1, Ordering::SeqCst);
            "hello"
        }),
    ))
    .await;
    let port = address.port();
    let urls = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://2130706433:{port}/"),
    ];
    let guarded = Outbound::new(Options::default());
    for url in &urls {
        let refused = guarded.send(get_of(url)).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{url}: {refused:?}");
    }
    let elsewhere = Outbound::new(allowing(&["10.0.0.0/8", "127.0.0.1:1", "localhost:1"]));
    for url in &urls {
        assert!(matches!(elsewhere.send(get_of(url)).await, Err(Error::Refused(_))), "{url}");
    }
    assert_eq!(CALLS.load(Ordering::SeqCst), 0);

    let own: OwnListeners = Arc::new(move |ip, at| ip == address.ip() && at == port);
    for options in [
        allowing(&["127.0.0.0/8"]),
        allowing(&[&format!("127.0.0.1:{port}")]),
        Options { own_listeners: own, ..Options::default() },
    ] {
        let answer = Outbound::new(options).send(get_of(&urls[0])).await.expect("it is allowed");
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"hello"[..]));
    }
    let by_name =
        Outbound::new(Options { lookup: named("127.0.0.1"), ..allowing(&[&format!("hooks.internal:{port}")]) });
    assert!(by_name.send(get_of(&format!("http://hooks.internal:{port}/"))).await.is_ok());
    let refused = by_name.send(get_of(&format!("http://public.test:{port}/"))).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "a public name that leads inside: {refused:?}");
}

#[tokio::test]
async fn a_redirect_is_judged_as_the_first_call_is() {
    let inner = serve(Router::new().route("/secret", any(|| async { "inner" }))).await;
    let to = format!("http://127.0.0.1:{}/secret", inner.port());
    let outer = serve(
        Router::new()
            .route(
                "/out",
                get({
                    let to = to.clone();
                    move || async move { Redirect::temporary(&to) }
                }),
            )
            .route(
                "/post",
                any({
                    let to = to.clone();
                    move || async move { Redirect::temporary(&to) }
                }),
            )
            .route("/loop", get(|| async { Redirect::to("/loop") }))
            .route("/relative", any(|| async { Redirect::to("here") }))
            .route("/here", get(|headers: HeaderMap| async move { format!("{:?}", headers.get("x-token")) }))
            .route("/file", get(|| async { Redirect::to("file:///etc/passwd") })),
    )
    .await;
    let port = outer.port();
    let client = Outbound::new(allowing(&[&format!("127.0.0.1:{port}")]));
    let at = |path: &str| format!("http://127.0.0.1:{port}{path}");

    let refused = client.send(get_of(&at("/out"))).await;
    assert!(matches!(&refused, Err(Error::Refused(refused)) if refused.port == inner.port()), "{refused:?}");
    let looped = client.send(get_of(&at("/loop"))).await;
    assert!(matches!(looped, Err(Error::TooManyRedirects { max: 5, .. })), "{looped:?}");
    let file = client.send(get_of(&at("/file"))).await;
    assert!(matches!(file, Err(Error::Redirect { .. })), "{file:?}");
    let mut post = Request { method: Method::POST, body: Some(b"x".to_vec()), ..get_of(&at("/relative")) };
    post.headers.insert("x-token", "t".parse().expect("a value"));
    let followed = client.send(post).await.expect("it stays at home");
    assert_eq!(&*followed.body, b"Some(\"t\")");

    let both = Outbound::new(allowing(&["127.0.0.1"]));
    assert_eq!(&*both.send(get_of(&at("/out"))).await.expect("both are allowed").body, b"inner");
    let post = Request { method: Method::POST, body: Some(b"x".to_vec()), ..get_of(&at("/post")) };
    let carried = both.send(post).await;
    assert!(matches!(carried, Err(Error::Redirect { .. })), "{carried:?}");
}

#[tokio::test]
async fn bodies_and_waiting_have_limits_and_other_schemes_are_refused() {
    let address = serve(
        Router::new()
            .route("/large", get(|| async { "x".repeat(3000) }))
            .route("/never", get(|| async { std::future::pending::<()>().await })),
    )
    .await;
    let client = Outbound::new(Options { body_bytes_max: 1000, ..allowing(&["127.0.0.1"]) });
    let large = client.send(get_of(&format!("http://{address}/large"))).await.expect("an answer");
    assert_eq!((large.body.len(), large.truncated), (1000, true));
    let never = get_of(&format!("http://{address}/never"));
    let never = client.send(Request { timeout: Duration::from_millis(200), ..never }).await;
    assert!(matches!(&never, Err(error @ Error::Timeout { .. }) if error.may_have_been_received()), "{never:?}");
    for url in ["ftp://example.com/", "file:///etc/passwd", "nothing", "http://", "http://u:p@127.0.0.1/"] {
        assert!(matches!(client.send(get_of(url)).await, Err(Error::Url { .. })), "{url}");
    }
    let closed = client.send(get_of("http://127.0.0.1:1/")).await;
    assert!(matches!(&closed, Err(error @ Error::Connect { .. }) if !error.may_have_been_received()), "{closed:?}");
}

#[tokio::test]
async fn a_download_is_judged_bounded_and_written_as_it_comes() {
    let address = serve(
        Router::new()
            .route("/file", get(|| async { "x".repeat(3_000_000) }))
            .route("/moved", get(|| async { Redirect::temporary("/file") }))
            .route("/never", get(|| async { std::future::pending::<()>().await })),
    )
    .await;
    let client = Outbound::new(Options { lookup: named("127.0.0.1"), ..allowing(&["127.0.0.1"]) });
    let soon = Duration::from_secs(10);
    let at = |path: &str| format!("http://{address}{path}");
    for path in ["/file", "/moved"] {
        let mut written = Vec::new();
        let bytes = client.download(&at(path), 3_000_000, soon, &mut written).await.expect("as large as may be");
        assert_eq!((bytes, written.len()), (3_000_000, 3_000_000), "{path}");
    }
    let mut written = Vec::new();
    let large = client.download(&at("/file"), 2_999_999, soon, &mut written).await;
    assert!(matches!(large, Err(Error::TooLarge { max: 2_999_999, .. })), "{large:?}");
    assert!(written.len() <= 2_999_999);
    let missing = client.download(&at("/none"), 1, soon, &mut Vec::new()).await;
    assert!(matches!(missing, Err(Error::Status { status: StatusCode::NOT_FOUND, .. })), "{missing:?}");
    let never = client.download(&at("/never"), 1, Duration::from_millis(200), &mut Vec::new()).await;
    assert!(matches!(never, Err(Error::Timeout { .. })), "{never:?}");

    let guarded = Outbound::new(Options { lookup: named("127.0.0.1"), ..Options::default() });
    for url in [at("/file"), format!("http://public.test:{}/file", address.port())] {
        let mut written = Vec::new();
        let refused = guarded.download(&url, 3_000_000, soon, &mut written).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{url}: {refused:?}");
        assert!(written.is_empty());
    }
}
