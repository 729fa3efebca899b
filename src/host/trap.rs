//! A VM that stops on request, to measure the effect. It is in no released module: it is compiled only with
//! the feature `deliberate-trap`, which only `scripts/build-wasm trap` switches on.

use super::abi::{self, Direction};

/// A request or an origin's response with this header ends the VM. A test checks that the released module
/// does not contain this name.
const HEADER: &[u8] = b"x-deliberate-trap";

/// Stops here, as a bug would: a trap that no code of the filter survives.
pub(super) fn spring(direction: Direction) {
    let headers = abi::headers(direction).unwrap_or_default();
    if headers.iter().any(|(name, _)| name == HEADER) {
        std::process::abort();
    }
}

/// Streams per callback, if the environment sets it: to measure the depth of a VM's stack, and to see the
/// tests of crowds fail.
pub(super) fn batch() -> Option<u32> {
    std::env::var("DELIBERATE_BATCH").ok()?.parse().ok()
}
