//! An origin that asks the ledger before it runs a request, and ends it as the request's fate says.

use super::ledger::{Fate, Ledger};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Channel, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// Listens on a free port until this process ends.
pub(super) async fn start(ledger: Arc<Ledger>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(ledger.clone(), request));
                // Broken connections are part of the test.
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn answer(
    ledger: Arc<Ledger>,
    request: Request<Incoming>,
) -> io::Result<Response<BoxBody<Bytes, io::Error>>> {
    let (head, body) = request.into_parts();
    // A request that breaks off is not executed.
    body.collect().await.map_err(io::Error::other)?;
    let text = |name| text(&head.headers, name);
    let key = text("idempotency-key").trim_matches('"').parse().map_err(io::Error::other)?;
    let envoy = text(super::ENVOY_HEADER).parse().map_err(io::Error::other)?;
    let attempt = text("idempotency-attempt").parse().unwrap_or(0);
    let delay = text("x-soak-delay-ms").parse().map_err(io::Error::other)?;
    let fate = Fate::ALL.into_iter().find(|fate| fate.word() == text("x-soak-fate"));
    let fate = fate.ok_or_else(|| io::Error::other("no fate"))?;
    let number = ledger.begins(key, envoy, fate, attempt, Instant::now());
    // In a task of its own: the execution goes on when its connection breaks.
    let running = tokio::spawn(async move {
        sleep(Duration::from_millis(delay)).await;
        ledger.ends(key, number, fate, Instant::now());
    });
    running.await.map_err(io::Error::other)?;
    let status = match fate {
        Fate::DieBefore => return Err(io::Error::other("the origin dies before its answer")),
        Fate::Refuse => 429,
        Fate::Answer | Fate::DieMiddle | Fate::Leave => 200,
    };
    let body = if fate == Fate::DieMiddle {
        let (mut sender, body) = Channel::new(1);
        tokio::spawn(async move {
            let _ = sender.send_data(Bytes::from_static(b"{\"execution\":")).await;
            sender.abort(io::Error::other("the origin dies in the middle"));
        });
        body.boxed()
    } else {
        let body = format!("{{\"execution\":{number}}}\n");
        Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed()
    };
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body)
        .map_err(io::Error::other)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
