//! HTTP clients: HTTP/1.1 and HTTP/2, and raw bytes on a socket that no client would send.

use super::PATIENCE;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Method};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// All members that a problem may have (RFC 9457, and this filter's own).
const MEMBERS: [&str; 8] =
    ["type", "title", "status", "detail", "code", "retry_after", "first_seen", "original_status"];

/// A client's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// In order, duplicates kept.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `code` of a problem; empty if it is not a problem.
    ///
    /// # Panics
    ///
    /// If it is a problem that does not match the README: every test that reads a code checks
    /// the whole answer.
    pub fn code(&self) -> String {
        if self.header("content-type") != Some("application/problem+json") {
            return String::new();
        }
        let problem = self.json();
        let members = problem.as_object().unwrap();
        for member in members.keys() {
            assert!(MEMBERS.contains(&member.as_str()), "{member} in {}", self.text());
        }
        let code = problem["code"].as_str().unwrap();
        assert_eq!(problem["type"], format!("urn:idempotency:{code}"));
        assert_eq!(problem["status"], self.status);
        for text in ["title", "detail"] {
            assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
        let seconds = self.header("retry-after").map(|text| text.parse::<u64>().unwrap());
        assert_eq!(problem["retry_after"].as_u64(), seconds, "{problem}");
        let may_be_retried =
            ["in-progress", "store-unavailable", "origin-unreachable"].contains(&code);
        assert_eq!(seconds.is_some(), may_be_retried, "{problem}");
        if let Some(first_seen) = problem.get("first_seen") {
            let first_seen = first_seen.as_str().unwrap();
            assert!(first_seen.starts_with("20") && first_seen.ends_with('Z'), "{problem}");
        }
        assert!(!self.is_replay());
        code.to_owned()
    }

    /// It came from a record.
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }
}

/// A request to be sent.
#[derive(Clone)]
#[must_use]
pub struct Request {
    to: SocketAddr,
    method: Method,
    path: String,
    host: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    http2: bool,
}

impl Request {
    pub fn new(to: SocketAddr, method: &str, path: &str) -> Self {
        Self {
            to,
            method: method.parse().unwrap(),
            path: path.to_owned(),
            host: "api.example.com".to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            trailers: None,
            http2: false,
        }
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// Adds a header; may be repeated.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// `Idempotency-Key`.
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// `Authorization`.
    pub fn caller(self, caller: &str) -> Self {
        self.header("authorization", caller)
    }

    /// The body, without a content type.
    pub fn bytes(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The body, as JSON in just these bytes.
    pub fn json(self, body: &str) -> Self {
        self.header("content-type", "application/json").bytes(body)
    }

    /// Over HTTP/2.
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Over HTTP/2, ending in this trailer.
    pub fn trailer(mut self, name: &'static str, value: &'static str) -> Self {
        self.trailers.get_or_insert_default().insert(name, value.parse().unwrap());
        self.http2()
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Panics
    ///
    /// If there is none within [`PATIENCE`].
    pub async fn send(self) -> Answer {
        self.try_send().await.unwrap()
    }

    /// Sends it and reads the whole answer, which may break off.
    pub async fn try_send(self) -> io::Result<Answer> {
        let client = Client::connect(self.to, self.http2).await?;
        client.send(self).await
    }
}

/// A connection that serves one request after the other.
pub struct Client(Connection);

enum Connection {
    Http1(tokio::sync::Mutex<http1::SendRequest<Body>>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    /// Connects.
    pub async fn connect(to: SocketAddr, http2: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if http2 {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Self(Connection::Http2(sender)))
        } else {
            let (sender, connection) =
                http1::Builder::new().handshake(io).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Self(Connection::Http1(sender.into())))
        }
    }

    /// Sends a request on this connection and reads the whole answer.
    pub async fn send(&self, request: Request) -> io::Result<Answer> {
        timeout(PATIENCE, self.exchange(request))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer came"))?
    }

    /// Sends a request on this connection and reads the whole answer, however long it takes.
    pub async fn exchange(&self, request: Request) -> io::Result<Answer> {
        let http2 = matches!(self.0, Connection::Http2(_));
        let uri = if http2 {
            format!("http://{}{}", request.host, request.path)
        } else {
            request.path.clone()
        };
        let mut head = hyper::Request::builder().method(request.method.clone()).uri(uri);
        if !http2 {
            head = head.header("host", &request.host);
        }
        for (name, value) in &request.headers {
            head = head.header(name, value.as_slice());
        }
        let body = Bytes::from(request.body);
        let body: Body = match request.trailers {
            None => Full::new(body).boxed(),
            Some(trailers) => {
                Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()
            }
        };
        let request = head.body(body).map_err(io::Error::other)?;
        let response = match &self.0 {
            Connection::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await.map_err(io::Error::other)?;
                sender.send_request(request).await
            }
            Connection::Http2(sender) => sender.clone().send_request(request).await,
        };
        read(response.map_err(io::Error::other)?).await
    }
}

async fn read(response: hyper::Response<Incoming>) -> io::Result<Answer> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(io::Error::other)?;
    let trailers = collected.trailers().map(pairs).unwrap_or_default();
    Ok(Answer {
        status: head.status.as_u16(),
        headers: pairs(&head.headers),
        body: collected.to_bytes().to_vec(),
        trailers,
    })
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect()
}

/// The body of a GET; `None` if there is no answer yet.
pub async fn get(from: SocketAddr, path: &str) -> Option<String> {
    let answer = Request::new(from, "GET", path).try_send().await.ok()?;
    Some(answer.text())
}

/// A socket to write any bytes to.
pub struct Raw(TcpStream);

impl Raw {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Writes these bytes, as a packet of their own.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Reads an answer that announces its length; all that has come of one that breaks off.
    pub async fn read_answer(&mut self) -> io::Result<String> {
        let head = self.read_until("\r\n\r\n").await?;
        let Some((lines, body)) = head.split_once("\r\n\r\n") else { return Ok(head) };
        let length = lines.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0_usize);
        let mut rest = vec![0; length.saturating_sub(body.len())];
        timeout(PATIENCE, self.0.read_exact(&mut rest))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it never ended"))??;
        Ok(head + &String::from_utf8_lossy(&rest))
    }

    /// Reads until this text has come, and returns all that has.
    pub async fn read_until(&mut self, wanted: &str) -> io::Result<String> {
        let reading = async {
            let mut all = Vec::new();
            let mut piece = [0; 4096];
            loop {
                let length = self.0.read(&mut piece).await?;
                all.extend_from_slice(&piece[..length]);
                let text = String::from_utf8_lossy(&all);
                if text.contains(wanted) || length == 0 {
                    return Ok(text.into_owned());
                }
            }
        };
        timeout(PATIENCE, reading)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it never came"))?
    }
}
