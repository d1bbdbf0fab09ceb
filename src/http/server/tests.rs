use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use super::*;
use crate::kernel::Span;

async fn start(settings: HttpSettings, router: Router) -> (String, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let address = listener.local_addr().expect("address").to_string();
    let stopping = CancellationToken::new();
    let token = stopping.clone();
    let served = tokio::spawn(async move { serve(listener, router, &settings, token).await });
    (address, stopping, served)
}

async fn exchange(address: &str, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.expect("connection");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_in_flight_finishes_and_nothing_new_is_accepted() {
    let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, gate) = (Arc::clone(&entered), Arc::clone(&leave));
    let router = Router::new().route(
        "/slow",
        get(async move || {
            inside.notify_one();
            gate.notified().await;
            "done"
        }),
    );
    let (address, stopping, served) = start(HttpSettings::default(), router).await;
    let asked = tokio::spawn({
        let address = address.clone();
        async move { exchange(&address, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await }
    });
    entered.notified().await;
    stopping.cancel();
    while TcpStream::connect(&address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    leave.notify_one();
    assert!(asked.await.expect("asked").ends_with("done"));
    served.await.expect("served");
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let settings = HttpSettings { header_timeout: Span(Duration::from_millis(20)), ..HttpSettings::default() };
    let (address, stopping, served) = start(settings, Router::new()).await;
    for opening in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET / HTTP/1.1\r\nhost:"] {
        let answer = exchange(&address, opening).await;
        assert!(answer.is_empty() || answer.contains("408"), "{opening}: {answer}");
    }
    stopping.cancel();
    served.await.expect("served");
}

#[tokio::test]
async fn requests_that_never_end_are_dropped_after_the_grace_time() {
    let settings = HttpSettings { drain_grace: Span(Duration::from_millis(20)), ..HttpSettings::default() };
    let entered = Arc::new(Notify::new());
    let inside = Arc::clone(&entered);
    let router = Router::new().route(
        "/hang",
        get(async move || {
            inside.notify_one();
            std::future::pending::<&str>().await
        }),
    );
    let (address, stopping, served) = start(settings, router).await;
    let asked = tokio::spawn(async move { exchange(&address, "GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await });
    entered.notified().await;
    stopping.cancel();
    served.await.expect("served");
    assert_eq!(asked.await.expect("asked"), "");
}

#[tokio::test]
async fn both_versions_of_the_protocol_are_spoken() {
    let router = Router::new().route("/", get(async |request: Request| format!("{:?}", request.version())));
    let router = crate::http::dress(
        router,
        crate::kernel::Clock::system(),
        crate::telemetry::Traces::default(),
        &HttpSettings::default(),
    )
    .expect("dressed");
    let (address, stopping, served) = start(HttpSettings::default(), router).await;
    let connect = async || TokioIo::new(TcpStream::connect(&address).await.expect("connection"));
    let request = || Request::get(format!("http://{address}/")).body(axum::body::Body::empty()).expect("request");

    let (mut one, driver) = hyper::client::conn::http1::handshake(connect().await).await.expect("HTTP/1.1");
    tokio::spawn(driver);
    assert_eq!(text(one.send_request(request()).await.expect("answer")).await, "HTTP/1.1");
    let (mut two, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), connect().await).await.expect("HTTP/2");
    tokio::spawn(driver);
    assert_eq!(text(two.send_request(request()).await.expect("answer")).await, "HTTP/2.0");
    stopping.cancel();
    served.await.expect("served");
}

async fn text(response: hyper::Response<Incoming>) -> String {
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("body").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}
