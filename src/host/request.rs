//! What tells the answers to a worker's questions apart.

use crate::exchange::RequestId;

/// A question of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamRequest {
    pub(super) stream: u32,
    pub(super) question: RequestId,
}
