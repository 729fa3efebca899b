//! An origin that counts its executions, and behaves as a request's `x-origin-*` headers say.

use http_body_util::channel::Sender;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Channel, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{HeaderMap, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Requests that a connection of HTTP/2 may carry at once. More than any test sends.
const STREAMS: u32 = 100_000;

/// Bytes in a piece of a streamed answer.
pub const PIECE: usize = 1_000;

/// A request as the origin got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    /// In order, duplicates kept.
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

/// A running origin; ends with this value.
///
/// | header of the request | what the origin does |
/// |---|---|
/// | `x-origin-hold: NAME` | waits for [`Origin::release`] before it answers |
/// | `x-origin-delay-ms: N` | waits so long before it answers |
/// | `x-origin-status: N` | answers with this status |
/// | `x-origin-header: NAME: VALUE` | adds it to its answer, in order; may be repeated |
/// | `x-origin-bytes: N` | answers with so many bytes, announced by `content-length` |
/// | `x-origin-stream: N` | answers with N pieces of [`PIECE`] bytes, not announced |
/// | `x-origin-hold-stream: NAME` | waits for the release before the last piece of a stream |
/// | `x-origin-trailers: 1` | ends a stream with the trailer `x-checksum` |
/// | `x-origin-die: before` / `middle` | closes the connection before or in the middle of its answer |
/// | `x-origin-until-try: N` | from the Nth try of Envoy's router on (`x-envoy-attempt-count`), does none of this |
///
/// Without any it answers 200 and the number of this execution, as JSON.
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
        Self::start_as(port, State::default()).await
    }

    /// Counts without keeping the requests: a load would fill the memory.
    pub async fn forgetful() -> Self {
        Self::start_as(0, State { forgetful: true, ..State::default() }).await
    }

    async fn start_as(port: u16, state: State) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(state);
        let served = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let state = served.clone();
                tokio::spawn(async move {
                    let answering = state.clone();
                    let service = service_fn(move |request| answer(answering.clone(), request));
                    let mut builder = auto::Builder::new(TokioExecutor::new());
                    builder
                        .http2()
                        .max_concurrent_streams(STREAMS)
                        // Many requests that a test's Envoy resets in one moment are not an attack.
                        .max_pending_accept_reset_streams(Some(STREAMS as usize));
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    // Some tests break connections.
                    tokio::select! {
                        _ = connection => {}
                        () = state.died() => {}
                    }
                });
            }
        });
        Self { address, state, server }
    }

    /// Everything that was executed, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// How often anything was executed.
    pub fn executions(&self) -> usize {
        self.state.executions.load(Ordering::SeqCst)
    }

    /// Lets requests go on that are held under this name, now and later.
    pub fn release(&self, name: &str) {
        self.state.released.lock().unwrap().insert(name.to_owned());
        self.state.release.notify_waiters();
    }

    /// Closes its port and its connections, as a crash would. What it executed stays counted.
    pub async fn die(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
        self.state.dead.store(true, Ordering::SeqCst);
        self.state.death.notify_waiters();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Default)]
struct State {
    forgetful: bool,
    executions: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    released: Mutex<HashSet<String>>,
    release: Notify,
    dead: AtomicBool,
    death: Notify,
}

impl State {
    /// Counts an execution, and returns its number.
    fn executed(&self, head: &Parts, body: Vec<u8>, trailers: Option<&HeaderMap>) -> usize {
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        if self.forgetful {
            return self.executions.fetch_add(1, Ordering::SeqCst) + 1;
        }
        // Counted under the lock: a reader of the count finds as many requests.
        let mut seen = self.seen.lock().unwrap();
        seen.push(Seen {
            method: head.method.to_string(),
            path: path.to_owned(),
            headers: text(&head.headers),
            body,
            trailers: trailers.map(text).unwrap_or_default(),
        });
        self.executions.store(seen.len(), Ordering::SeqCst);
        seen.len()
    }

    async fn released(&self, name: &str) {
        until(&self.release, || self.released.lock().unwrap().contains(name)).await;
    }

    async fn died(&self) {
        until(&self.death, || self.dead.load(Ordering::SeqCst)).await;
    }
}

/// Waits until it is true; the code that makes it true notifies.
async fn until(change: &Notify, is_so: impl Fn() -> bool) {
    loop {
        let notified = change.notified();
        tokio::pin!(notified);
        // Before the check, so that a change between the check and the wait is not missed.
        notified.as_mut().enable();
        if is_so() {
            return;
        }
        notified.await;
    }
}

/// The behaviour that a request asks for in its headers.
struct Wishes<'a>(&'a HeaderMap);

impl Wishes<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|value| value.to_str().ok())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }
}

type Body = BoxBody<Bytes, io::Error>;

async fn answer(
    state: Arc<State>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    // A request that breaks off is not executed.
    let collected = body.collect().await.map_err(io::Error::other)?;
    let trailers = collected.trailers().cloned();
    let number = state.executed(&head, collected.to_bytes().to_vec(), trailers.as_ref());
    let none = HeaderMap::new();
    let wishes = Wishes(&head.headers);
    let tries = wishes.number::<u32>("x-envoy-attempt-count").unwrap_or(1);
    let until = wishes.number::<u32>("x-origin-until-try");
    let wishes = if until.is_some_and(|until| tries >= until) { Wishes(&none) } else { wishes };
    if let Some(name) = wishes.text("x-origin-hold") {
        state.released(name).await;
    }
    if let Some(millis) = wishes.number("x-origin-delay-ms") {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    if wishes.text("x-origin-die") == Some("before") {
        return Err(io::Error::other("the origin dies before its answer"));
    }
    let mut response =
        Response::builder().status(wishes.number("x-origin-status").unwrap_or(200_u16));
    for line in head.headers.get_all("x-origin-header") {
        let line = line.to_str().map_err(io::Error::other)?;
        let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other("no header"))?;
        response = response.header(name, value.trim());
    }
    let dies = wishes.text("x-origin-die") == Some("middle");
    let pieces = wishes.number("x-origin-stream").or(dies.then_some(1));
    let body = if let Some(pieces) = pieces {
        let end = if dies {
            End::Death
        } else if wishes.text("x-origin-trailers").is_some() {
            End::Trailers
        } else {
            End::Clean
        };
        let hold = wishes.text("x-origin-hold-stream").map(str::to_owned);
        let (sender, body) = Channel::new(1);
        tokio::spawn(stream(state, sender, pieces, hold, end));
        body.boxed()
    } else if let Some(bytes) = wishes.number("x-origin-bytes") {
        full((0..bytes).map(|at: usize| b'a' + (at % 26) as u8).collect())
    } else {
        if wishes.text("x-origin-header").is_none() {
            response = response.header("content-type", "application/json");
        }
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        full(format!("{{\"execution\":{number},\"path\":\"{path}\"}}\n").into_bytes())
    };
    response.body(body).map_err(io::Error::other)
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed()
}

/// How a streamed answer ends.
enum End {
    Clean,
    Trailers,
    Death,
}

async fn stream(
    state: Arc<State>,
    mut sender: Sender<Bytes, io::Error>,
    pieces: usize,
    hold: Option<String>,
    end: End,
) {
    for piece in 0..pieces {
        if let Some(name) = hold.as_deref().filter(|_| piece + 1 == pieces) {
            state.released(name).await;
        }
        if sender.send_data(Bytes::from(vec![b's'; PIECE])).await.is_err() {
            return;
        }
    }
    match end {
        End::Clean => {}
        End::Trailers => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", hyper::header::HeaderValue::from_static("none"));
            let _ = sender.send_trailers(trailers).await;
        }
        End::Death => sender.abort(io::Error::other("the origin dies in the middle")),
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
