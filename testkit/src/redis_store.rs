//! A real `redis-server` on a free port, and our own client on a socket to it.

use super::store_contract;
use envoy_idempotency::record::codec::{DEADLINE, HEAD_LEN};
use envoy_idempotency::store::redis::{Client, CommandId, Connection, Event, Settings, Transport};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::time::Timestamp;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Far above the need of a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends with this value.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    pub fn start() -> Self {
        // Another process may take the port in between: then the next is tried.
        for _ in 0..10 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            let port = port.port();
            let binary = std::env::var("REDIS_SERVER_BIN").ok().filter(|path| !path.is_empty());
            let mut child = std::process::Command::new(binary.as_deref().unwrap_or("redis-server"))
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"])
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server runs: `make setup` installs it");
            let deadline = Instant::now() + PATIENCE;
            while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Self { child, port };
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("redis-server does not start");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The store's own client, whose events a blocking socket carries out.
pub struct Store {
    client: RefCell<Client>,
    socket: RefCell<Option<TcpStream>>,
    port: u16,
    prefix: String,
    asked: Cell<u64>,
    pub warnings: RefCell<Vec<String>>,
}

impl Store {
    /// Keys of two prefixes do not meet.
    pub fn new(server: &Server, prefix: &str) -> Self {
        Self::with_timeout(server.port, prefix, Duration::from_secs(10))
    }

    fn with_timeout(port: u16, prefix: &str, timeout: Duration) -> Self {
        let settings = Settings { prefix: prefix.to_owned(), timeout, login: None };
        Self {
            client: RefCell::new(Client::new(&settings, Transport::Pipe, 7)),
            socket: RefCell::new(None),
            port,
            prefix: settings.prefix,
            asked: Cell::new(0),
            warnings: RefCell::default(),
        }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends all of these at once, and returns their replies in the same order.
    pub fn pipelined(&self, commands: Vec<Command>) -> Vec<Result<Reply, StoreError>> {
        let first = self.asked.get();
        let mut replies = vec![None; commands.len()];
        let mut events = VecDeque::new();
        for command in commands {
            let ticket = self.asked.get();
            self.asked.set(ticket + 1);
            events.extend(self.client.borrow_mut().ask(CommandId(ticket), command, now()));
        }
        while replies.iter().any(Option::is_none) {
            while let Some(event) = events.pop_front() {
                match event {
                    Event::Open(Connection::Commands) => {
                        *self.socket.borrow_mut() = Some(self.connect());
                        let more = self.client.borrow_mut().opened(Connection::Commands, now());
                        events.extend(more);
                    }
                    Event::Write(Connection::Commands, bytes) => {
                        self.socket.borrow_mut().as_mut().unwrap().write_all(&bytes).unwrap();
                    }
                    Event::Replied(ticket, _, reply) => {
                        replies[(ticket.0 - first) as usize] = Some(reply);
                    }
                    Event::Warn(text) | Event::WarnOnce(text) => {
                        self.warnings.borrow_mut().push(text)
                    }
                    other => panic!("unexpected: {other:?}"),
                }
            }
            if replies.iter().any(Option::is_none) {
                let mut bytes = [0; 4096];
                let length = self.socket.borrow_mut().as_mut().unwrap().read(&mut bytes).unwrap();
                assert!(length > 0, "Redis has closed the connection");
                let more = self.client.borrow_mut().received(
                    Connection::Commands,
                    &bytes[..length],
                    now(),
                );
                events.extend(more);
            }
        }
        replies.into_iter().flatten().collect()
    }

    /// What is written for this command, which is not sent.
    fn written(&self, command: Command) -> Vec<u8> {
        let events = self.client.borrow_mut().ask(CommandId(u64::MAX), command, now());
        events
            .into_iter()
            .flat_map(|event| match event {
                Event::Write(Connection::Commands, bytes) => bytes,
                other => panic!("unexpected: {other:?}"),
            })
            .collect()
    }

    /// A command of Redis's own, on a connection of its own; the reply as it is on the wire.
    pub fn raw(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut socket = self.connect();
        let mut command = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            command.extend(format!("${}\r\n", part.len()).into_bytes());
            command.extend_from_slice(part);
            command.extend_from_slice(b"\r\n");
        }
        socket.write_all(&command).unwrap();
        socket.write_all(b"*1\r\n$4\r\nQUIT\r\n").unwrap();
        let mut reply = Vec::new();
        socket.read_to_end(&mut reply).unwrap();
        assert!(reply.ends_with(b"+OK\r\n"));
        reply.truncate(reply.len() - b"+OK\r\n".len());
        reply
    }

    /// The value of a bulk string.
    pub fn bulk(&self, parts: &[&[u8]]) -> Vec<u8> {
        let reply = self.raw(parts);
        let head = reply.windows(2).position(|pair| pair == b"\r\n").unwrap();
        assert_eq!(reply[0], b'$', "{:?}", String::from_utf8_lossy(&reply));
        reply[head + 2..reply.len().max(head + 4) - 2].to_vec()
    }

    /// The value of an integer.
    pub fn integer(&self, parts: &[&[u8]]) -> i64 {
        let reply = String::from_utf8(self.raw(parts)).unwrap();
        reply.trim_start_matches(':').trim().parse().unwrap()
    }

    /// The names of this store's records.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let reply = self.raw(&[b"KEYS", format!("{}*", self.prefix).as_bytes()]);
        let reply = String::from_utf8(reply).unwrap();
        let lines = reply.split("\r\n").filter(|line| line.starts_with(&self.prefix));
        lines.map(|line| line.as_bytes().to_vec()).collect()
    }
}

impl store_contract::Store for Store {
    fn grants_late(&self, claim: Command) -> Option<bool> {
        const BELIEVED: Duration = Duration::from_millis(100);
        let sender = Self::with_timeout(self.port, &self.prefix, BELIEVED);
        // The reply to another claim tells the sender what Redis's clock is at.
        let Command::Claim { mut key, token, fingerprint, first_seen, lease, unknown_for, watch } =
            claim.clone()
        else {
            panic!("no claim: {claim:?}")
        };
        key.0[0] = !key.0[0];
        let first =
            Command::Claim { key, token, fingerprint, first_seen, lease, unknown_for, watch };
        assert_eq!(sender.execute(first), Ok(Reply::Claimed { attempt: 1 }));
        let late = sender.written(claim);
        std::thread::sleep(2 * BELIEVED);
        let mut socket = self.connect();
        socket.write_all(&late).unwrap();
        socket.write_all(b"*1\r\n$4\r\nQUIT\r\n").unwrap();
        let mut reply = Vec::new();
        socket.read_to_end(&mut reply).unwrap();
        // Length, four bytes of the token, and what became of it.
        let letter = reply.split(|byte| *byte == b'\n').nth(1).and_then(|rest| rest.get(4));
        match letter {
            Some(b'C') => Some(true),
            Some(b'L') => Some(false),
            other => panic!("{other:?} in {:?}", String::from_utf8_lossy(&reply)),
        }
    }

    fn execute(&self, command: Command) -> Result<Reply, StoreError> {
        self.pipelined(vec![command]).remove(0)
    }

    /// Redis's clock cannot be moved, so everything that depends on it is: deadlines and times to live.
    fn advance(&self, time: Duration) {
        for name in self.names() {
            let head =
                self.bulk(&[b"GETRANGE", &name, b"0", (HEAD_LEN - 1).to_string().as_bytes()]);
            let deadline = u64::from_be_bytes(head[DEADLINE].try_into().unwrap());
            let earlier = deadline - time.as_millis() as u64;
            let at = DEADLINE.start.to_string();
            self.raw(&[b"SETRANGE", &name, at.as_bytes(), &earlier.to_be_bytes()]);
            let left = self.integer(&[b"PTTL", &name]) - time.as_millis() as i64;
            self.raw(&[b"PEXPIRE", &name, left.to_string().as_bytes()]);
        }
    }
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_millis(since.as_millis() as u64)
}
