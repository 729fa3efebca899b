//! An origin that counts its executions, and does what a request's `x-origin-*` headers say.

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A request as the origin got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Seen {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    released: Mutex<HashSet<String>>,
    release: Notify,
}

/// A running origin; ends with this value.
///
/// | header of the request | what the origin does |
/// |---|---|
/// | `x-origin-hold: NAME` | waits for [`Origin::release`] before it answers |
/// | `x-origin-delay-ms: N` | waits so long |
/// | `x-origin-status: N` | answers with this status |
/// | `x-origin-header: NAME: VALUE` | adds it to its answer, in order; may be repeated |
/// | `x-origin-bytes: N` | answers with so many bytes, announced by `content-length` |
/// | `x-origin-stream: N` | answers with N pieces of 1,000 bytes, not announced |
/// | `x-origin-trailers: 1` | ends its answer with a trailer |
/// | `x-origin-die: before` / `middle` | closes the connection before or in the middle of its answer |
pub struct Origin {
    pub address: SocketAddr,
    state: Arc<State>,
    server: JoinHandle<()>,
}

impl Origin {
    /// Listens on a free port.
    pub async fn start() -> Self {
        Self::start_on(0).await
    }

    /// Listens on this port.
    pub async fn start_on(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let served = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let state = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A connection that breaks is what some tests are about.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, state, server }
    }

    /// Everything that was executed, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// How often this path was executed.
    pub fn executions(&self, path: &str) -> usize {
        self.state.seen.lock().unwrap().iter().filter(|seen| seen.path == path).count()
    }

    /// Lets requests go on that are held under this name, now and later.
    pub fn release(&self, name: &str) {
        self.state.released.lock().unwrap().insert(name.to_owned());
        self.state.release.notify_waiters();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl State {
    async fn released(&self, name: &str) {
        loop {
            let notified = self.release.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.released.lock().unwrap().contains(name) {
                return;
            }
            notified.await;
        }
    }
}

fn text(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect()
}

type Body = BoxBody<Bytes, io::Error>;

async fn answer(
    state: Arc<State>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    let collected = body.collect().await.map_err(io::Error::other)?;
    let trailers = collected.trailers().map(text).unwrap_or_default();
    let body = collected.to_bytes().to_vec();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    let number = {
        let mut seen = state.seen.lock().unwrap();
        seen.push(Seen {
            method: head.method.to_string(),
            path: path.clone(),
            headers: text(&head.headers),
            body,
            trailers,
        });
        seen.len()
    };
    let wish = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(name) = wish("x-origin-hold") {
        state.released(name).await;
    }
    if let Some(millis) = wish("x-origin-delay-ms").and_then(|text| text.parse().ok()) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    if wish("x-origin-die") == Some("before") {
        return Err(io::Error::other("the origin dies before its answer"));
    }
    let status = wish("x-origin-status").and_then(|text| text.parse().ok()).unwrap_or(200u16);
    let mut response = Response::builder().status(status);
    for line in head.headers.get_all("x-origin-header") {
        let (name, value) =
            line.to_str().ok().and_then(|line| line.split_once(": ")).unwrap_or(("x-bad", "line"));
        response = response.header(name, value);
    }
    let body = if wish("x-origin-die") == Some("middle") {
        let pieces = [Ok(vec![b'x'; 1_000]), Err(io::Error::other("the origin dies in the middle"))];
        stream(pieces.into(), false)
    } else if let Some(pieces) = wish("x-origin-stream").and_then(|text| text.parse().ok()) {
        let pieces = (0..pieces).map(|_: usize| Ok(vec![b's'; 1_000])).collect();
        stream(pieces, wish("x-origin-trailers").is_some())
    } else if let Some(bytes) = wish("x-origin-bytes").and_then(|text| text.parse().ok()) {
        full((0..bytes).map(|at: usize| b'a' + (at % 26) as u8).collect())
    } else {
        if head.headers.get("x-origin-header").is_none() {
            response = response.header("content-type", "application/json");
        }
        full(format!("{{\"execution\":{number},\"path\":\"{path}\"}}\n").into_bytes())
    };
    response.body(body).map_err(io::Error::other)
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed()
}

fn stream(pieces: Vec<io::Result<Vec<u8>>>, trailers: bool) -> Body {
    let mut frames: Vec<io::Result<Frame<Bytes>>> = pieces
        .into_iter()
        .map(|piece| piece.map(|bytes| Frame::data(Bytes::from(bytes))))
        .collect();
    if trailers {
        let mut map = HeaderMap::new();
        map.insert("x-checksum", "none".parse().unwrap());
        frames.push(Ok(Frame::trailers(map)));
    }
    StreamBody::new(tokio_stream::iter(frames)).boxed()
}
