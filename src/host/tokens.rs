//! Random tokens, fetched by the dozen.

use super::logging;
use crate::record::Token;
use crate::telemetry::Incident;

/// Random bytes fetched from the host at once: 64 tokens, so that a request rarely pays for a call.
const POOL_BYTES: usize = 1024;

/// Fresh tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    pool: Vec<u8>,
    issued: u64,
}

impl Tokens {
    /// 16 bytes that nobody can guess and that are unique.
    pub(super) fn next(&mut self) -> Token {
        self.issued = self.issued.wrapping_add(1);
        if self.pool.len() < size_of::<Token>() {
            self.pool = vec![0; POOL_BYTES];
            if let Err(error) = getrandom::fill(&mut self.pool) {
                // Claims must still differ; only code in this process could forge one.
                let said = format_args!("no random bytes: {error}");
                logging::log_incident(Incident::Host, &said);
                self.pool.clear();
                let mut token = [0; 16];
                let time = super::abi::current_time_nanoseconds();
                let (high, low) = token.split_at_mut(8);
                high.copy_from_slice(&time.to_be_bytes());
                low.copy_from_slice(&self.issued.to_be_bytes());
                return Token(token);
            }
        }
        let mut token = [0; 16];
        let rest = self.pool.len().saturating_sub(token.len());
        for (byte, random) in token.iter_mut().zip(self.pool.drain(rest..)) {
            *byte = random;
        }
        Token(token)
    }
}
