//! Envoy's shared data and clock, as the core wants them.

use super::abi;
use crate::store::shared_data::{SharedData, SharedDataError};
use crate::time::Timestamp;

/// Shared data of this process, within one `vm_id`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EnvoySharedData;

impl SharedData for EnvoySharedData {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        abi::shared_data(key)
    }

    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        abi::set_shared_data(key, value, cas).map_err(|failure| {
            if failure.is_cas_mismatch() {
                SharedDataError::CasMismatch
            } else {
                SharedDataError::Failed
            }
        })
    }
}

/// The host's clock.
pub(super) fn now() -> Timestamp {
    /// Nanoseconds in a millisecond.
    const NANOS: u64 = 1_000_000;
    Timestamp::from_millis(abi::current_time_nanoseconds() / NANOS)
}

/// The same clock, for lengths of time below a millisecond.
pub(super) fn micros() -> u64 {
    abi::current_time_nanoseconds() / 1_000
}
