//! Rust's log, and what a panic says, as lines of Envoy's log.

use super::abi::{self, LogLevel};
use log::{Level, LevelFilter, Log, Metadata, Record};

struct EnvoyLog;

/// To be called before anything is logged.
pub(super) fn start() {
    // Fails only where a logger is set already.
    let _ = log::set_logger(&EnvoyLog);
    log::set_max_level(LevelFilter::Info);
    std::panic::set_hook(Box::new(|panic| abi::log(LogLevel::Critical, &panic.to_string())));
}

impl Log for EnvoyLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Trace => LogLevel::Trace,
                Level::Debug => LogLevel::Debug,
                Level::Info => LogLevel::Info,
                Level::Warn => LogLevel::Warn,
                Level::Error => LogLevel::Error,
            };
            abi::log(level, &record.args().to_string());
        }
    }

    fn flush(&self) {}
}
