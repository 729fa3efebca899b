//! Processes that a test starts: ended by their id, their log printed if the test fails.

use super::PATIENCE;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Instant;

/// A folder of our own, removed in the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("envoy-idempotency-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A free port.
///
/// Below the ports that the kernel gives to outgoing connections: a server that was stopped finds its
/// port free when it starts again, and a client that tries to reach it meanwhile does not connect to itself.
/// Another process may still take it first, so the start of a server tries again with another port.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run side by side begin at different places.
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap().wrapping_mul(101);
    loop {
        let next = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + next % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A running process. Ends with this value; its log is printed if the test fails.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it, and appends its output to the file `log` of this folder.
    pub fn start(name: &'static str, command: &mut Command, scratch: &Scratch) -> Self {
        let log = scratch.file("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            // A server's files in its working directory are removed with the folder.
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
        Self { name, child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// It has ended by itself, or was ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Freezes it, its connections open, as on a swapping machine or a paused VM.
    pub async fn freeze(&self) {
        self.signal("STOP");
        // The signal is delivered at once, but carried out when the kernel gets to it.
        self.until(|states| states.chars().all(|state| state == 'T')).await;
    }

    /// Lets it go on.
    pub async fn thaw(&self) {
        self.signal("CONT");
        self.until(|states| !states.contains('T')).await;
    }

    fn signal(&self, name: &str) {
        // The shell's own: the command of that name is not on every machine.
        let script = format!("kill -{name} {}", self.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }

    /// Waits until its threads have these states.
    async fn until(&self, is_so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.states()) {
            assert!(Instant::now() < deadline, "{} is in states {}", self.name, self.states());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// A letter for each of its threads, as `ps` shows it.
    fn states(&self) -> String {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok())
            // The name in front, in parentheses, may hold anything.
            .filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next())
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- {}'s log ----\n{}---- end ----", self.name, self.log());
        }
    }
}
