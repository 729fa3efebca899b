//! Envoy's shared data and clock, for the core.

use super::abi;
use crate::store::shared_data::{SharedData, SharedDataError};
use crate::time::{Timestamp, WallTime};

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

/// The machine's monotonic clock.
pub(super) fn now() -> Timestamp {
    /// Nanoseconds in a microsecond.
    const NANOS: u64 = 1_000;
    Timestamp::from_micros(abi::monotonic_nanoseconds() / NANOS)
}

/// The machine's wall clock.
pub(super) fn wall_time() -> WallTime {
    /// Nanoseconds in a millisecond.
    const NANOS: u64 = 1_000_000;
    WallTime::from_millis(abi::current_time_nanoseconds() / NANOS)
}
