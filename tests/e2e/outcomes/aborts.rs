//! Upstreams that abort every request, each in one way.

use std::io;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Duration, timeout};

/// How an upstream behaves after it has read a request's headers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Abort {
    /// Answers bytes that are not HTTP.
    Garbage,
    /// Stops listening, then closes the connection: a next try is refused.
    LastBreath,
    /// HTTP/2: resets the stream with this error (RFC 9113 section 7).
    Reset(u32),
    /// HTTP/2: says that it has taken no stream at all, and closes.
    GoAway,
}

/// A listening upstream; ends with this value.
pub(super) struct AbortingUpstream {
    pub(super) port: u16,
    server: JoinHandle<io::Result<()>>,
}

impl AbortingUpstream {
    pub(super) async fn start(abort: Abort) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { port, server: tokio::spawn(serve(listener, abort)) }
    }
}

impl Drop for AbortingUpstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, abort: Abort) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        match abort {
            Abort::LastBreath => {
                let stream = headers_read(stream).await?;
                drop(listener);
                drop(stream);
                return Ok(());
            }
            Abort::Garbage => {
                tokio::spawn(async move {
                    let mut stream = headers_read(stream).await?;
                    stream.write_all(b"this is not HTTP\r\n\r\n").await
                });
            }
            Abort::Reset(code) => {
                tokio::spawn(http2(stream, Some(code)));
            }
            Abort::GoAway => {
                tokio::spawn(http2(stream, None));
            }
        }
    }
}

/// Reads an HTTP/1 request as far as its headers.
async fn headers_read(mut stream: TcpStream) -> io::Result<TcpStream> {
    let mut all = Vec::new();
    let mut piece = [0; 1024];
    while !all.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = stream.read(&mut piece).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        all.extend_from_slice(&piece[..length]);
    }
    Ok(stream)
}

const PREFACE: usize = 24;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Resets every stream with this error, or goes away at the first.
async fn http2(mut stream: TcpStream, reset: Option<u32>) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE]).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] != HEADERS {
            continue;
        }
        match reset {
            Some(code) => stream.write_all(&frame(RST_STREAM, 0, id, &code.to_be_bytes())).await?,
            // The last stream it took: 0, none. Then the error: 0, none.
            None => {
                stream.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await?;
                return stream.shutdown().await;
            }
        }
    }
}

/// An address that takes no connection and refuses none: the backlog of its listener is full.
pub(super) struct BlackHole {
    pub(super) port: u16,
    _listener: TcpListener,
    _connections: Vec<TcpStream>,
}

impl BlackHole {
    pub(super) async fn open() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = Vec::new();
        // A connection on loopback takes microseconds: one that takes this long is kept waiting.
        while let Ok(connected) =
            timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            connections.push(connected.unwrap());
            assert!(connections.len() < 100, "the backlog never fills up");
        }
        Self { port: address.port(), _listener: listener, _connections: connections }
    }
}
