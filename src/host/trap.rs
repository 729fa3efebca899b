//! A VM that stops when it is told to, to see what that costs. In no module that anybody runs: compiled only
//! with the feature `deliberate-trap`, which `scripts/build-wasm trap` alone switches on.

use super::abi::{self, Direction};

/// Who carries it, a request or an origin's response, ends the VM. A test looks for this name in the
/// module that is shipped, and must not find it.
const HEADER: &[u8] = b"x-deliberate-trap";

/// Stops here, as a bug would: a trap that no code of the filter survives.
pub(super) fn spring(direction: Direction) {
    let headers = abi::headers(direction).unwrap_or_default();
    if headers.iter().any(|(name, _)| name == HEADER) {
        std::process::abort();
    }
}

/// Streams that one callback deals with, if the environment says how many: to measure how deep the stack of a
/// VM is, and to see the tests of crowds fail.
pub(super) fn batch() -> Option<u32> {
    std::env::var("DELIBERATE_BATCH").ok()?.parse().ok()
}
