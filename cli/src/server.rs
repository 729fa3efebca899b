//! The operator's connection to Redis.

use super::Failure;
use clap::Args;
use envoy_idempotency::time::Timestamp;
use redis::{Connection, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates};
use std::path::PathBuf;
use std::time::Duration;

/// The timeout of a connection and of each command: a person waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// As many digits of a key as in a log line; two keys with the same digits are extremely unlikely.
const FEWEST_DIGITS: usize = 12;
const ALL_DIGITS: usize = 64;

/// Holds the password, so that it is not in the list of processes.
const PASSWORD: &str = "REDIS_PASSWORD";

/// The key and its Redis.
#[derive(Args)]
pub(super) struct Target {
    /// The key: its name in Redis, its 64 hexadecimal digits, or the first 12 or more of them, as in a log
    /// line. With fewer than 64, all names of one server are scanned (SCAN).
    key: String,
    /// `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]`, or `rediss://` with TLS. The password may be in the
    /// variable REDIS_PASSWORD instead.
    #[arg(long, value_name = "URL")]
    redis: String,
    /// The prefix of all keys' names: store.redis.prefix.
    #[arg(long, default_value = "idem:")]
    prefix: String,
    /// The certificate authority of Redis's certificate, as PEM; by default the system's own.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A connection.
pub(super) struct Server {
    connection: Connection,
    /// Host and port, for messages.
    address: String,
}

impl Target {
    pub(super) fn connect(&self) -> Result<Server, Failure> {
        let info = self.redis.as_str().into_connection_info();
        // The error's own text may hold the URL, and with it the password.
        let info = info.map_err(|_| {
            let wanted = "wanted redis://[USER[:PASSWORD]@]HOST[:PORT][/DB], or rediss://";
            Failure::Untried(format!("--redis: not a valid URL, {wanted}"))
        })?;
        let address = info.addr().to_string();
        let failed = |error: RedisError| unreachable(&address, &error);
        let mut connection =
            self.client(info)?.get_connection_with_timeout(PATIENCE).map_err(failed)?;
        connection.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        connection.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        // A proxy in front may accept the connection and fail only then.
        let _: (u64, u64) = redis::cmd("TIME").query(&mut connection).map_err(failed)?;
        Ok(Server { connection, address })
    }

    fn client(&self, info: ConnectionInfo) -> Result<redis::Client, Failure> {
        // A user with only the filter's rights may not run CLIENT SETINFO.
        let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
        let password = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty());
        if let (None, Some(password)) = (settings.password(), password) {
            settings = settings.set_password(password);
        }
        let tls = matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. });
        let info = info.set_redis_settings(settings);
        let client = if tls {
            // Only the first provider of a process counts, and this is the only one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let root_cert = self.ca.as_ref().map(|path| {
                std::fs::read(path)
                    .map_err(|error| Failure::Untried(format!("--ca {}: {error}", path.display())))
            });
            let root_cert = root_cert.transpose()?;
            redis::Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
        } else {
            redis::Client::open(info)
        };
        client.map_err(|error| Failure::Untried(format!("--redis: {error}")))
    }

    /// The name of the record in Redis.
    pub(super) fn name(&self, server: &mut Server) -> Result<String, Failure> {
        let key = self.key.as_str();
        let start = key.len().saturating_sub(ALL_DIGITS);
        if let Some((prefix, digits)) = key.split_at_checked(start)
            && digits.len() == ALL_DIGITS
            && is_hex(digits)
        {
            let prefix = if prefix.is_empty() { &self.prefix } else { prefix };
            return Ok(format!("{prefix}{}", digits.to_ascii_lowercase()));
        }
        let digits = key.strip_prefix(self.prefix.as_str()).unwrap_or(key);
        if digits.len() < FEWEST_DIGITS || digits.len() > ALL_DIGITS || !is_hex(digits) {
            return Err(Failure::Untried(format!(
                "{key:?} is not a key, wanted its name in Redis, its {ALL_DIGITS} hexadecimal digits, or at \
                 least {FEWEST_DIGITS} of the first of them"
            )));
        }
        let mut found = server.names(&self.prefix, &digits.to_ascii_lowercase())?;
        match (found.pop(), found.is_empty()) {
            (Some(name), true) => Ok(name),
            (Some(_), false) => Err(Failure::Refused(format!(
                "{} keys begin with {digits}: give more digits",
                found.len().saturating_add(1)
            ))),
            (None, _) => Err(Failure::Refused(format!("no record: no key begins with {digits}"))),
        }
    }
}

fn is_hex(digits: &str) -> bool {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The message for a Redis that cannot be reached or refuses. Redis's own text names missing rights.
fn unreachable(address: &str, error: &RedisError) -> Failure {
    let why = if error.is_timeout() {
        format!("no answer within {} s", PATIENCE.as_secs())
    } else {
        error.to_string()
    };
    Failure::Untried(format!("Redis at {address}: {why}"))
}

impl Server {
    /// Redis's time, on which leases and deadlines are based.
    pub(super) fn now(&mut self) -> Result<Timestamp, Failure> {
        let (seconds, micros): (u64, u64) = self.ask(&redis::cmd("TIME"))?;
        Ok(Timestamp::from_millis(seconds.saturating_mul(1000).saturating_add(micros / 1000)))
    }

    /// The record under a name, as it is.
    pub(super) fn record(&mut self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.ask(redis::cmd("GET").arg(name))
    }

    /// Deletes the value under a name if it still begins with these bytes, and wakes the requests that wait
    /// for its end.
    pub(super) fn delete(&mut self, name: &str, start: &[u8]) -> Result<bool, Failure> {
        const SCRIPT: &str = "if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end \
                              redis.call('DEL', KEYS[1]) \
                              redis.pcall('PUBLISH', KEYS[1], '') \
                              return 1";
        self.ask(redis::cmd("EVAL").arg(SCRIPT).arg(1).arg(name).arg(start))
    }

    /// All names that begin like this.
    fn names(&mut self, prefix: &str, digits: &str) -> Result<Vec<String>, Failure> {
        // Other characters than letters in a prefix are not a pattern.
        let literal: String = prefix
            .chars()
            .flat_map(|letter| {
                let escape = r"*?[]\^".contains(letter).then_some('\\');
                escape.into_iter().chain([letter])
            })
            .collect();
        let pattern = format!("{literal}{digits}*");
        let mut found = Vec::new();
        let mut cursor: u64 = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
            let (next, names): (u64, Vec<String>) = self.ask(&scan)?;
            found.extend(names);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // SCAN may return a name twice.
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn ask<T: redis::FromRedisValue>(&mut self, command: &redis::Cmd) -> Result<T, Failure> {
        command.query(&mut self.connection).map_err(|error| unreachable(&self.address, &error))
    }
}
