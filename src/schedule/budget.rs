//! How many streams other than its own one callback may handle.

/// Streams that one callback of a worker handles; the rest wait for another callback.
///
/// Envoy carries out a callback's requests nested, so the stack is deepest after this many answers. In a
/// stock Envoy 1.39, V8's stack overflows after 306 local replies, after 265 requests that go on to a cluster
/// without hosts, and after 907 ends of responses (`make depth`). Requests that go on to an origin are not
/// nested. Five filters more (Lua, RBAC, buffer, Wasm) changed nothing: they return before the next answer is
/// carried out. With 32 there is eight times the room, for other builds of Envoy and other hosts.
///
/// The price is time. A tick has the resolution of the kernel's coarse clock, 4 ms at 250 Hz; the worker takes
/// two callbacks of 32 in each, so 10,000 waiters take 0.6 s. Measured (bench, `-- crowd`, on a machine with
/// other load) with 16, 32, 64 and 128 streams a tick: 2.5, 1.3, 0.6 and 0.4 to 0.5 s. Meanwhile the p50 of
/// other requests is 2, 2, 3 and 9 ms, and their p99, in the better of two runs, 5, 10, 9 and 23 ms.
pub const BATCH: u32 = 32;

/// The remaining budget of a callback.
///
/// Only a callback that Envoy never nests in another may [renew](Self::renew) it: a tick, a message of the
/// worker's own queue, bytes from Redis. All other callbacks use the remaining budget, because a callback
/// cannot detect whether it is nested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    share: u32,
    left: u32,
}

impl Budget {
    /// A budget of `share` streams a callback.
    pub const fn new(share: u32) -> Self {
        Self { share, left: share }
    }

    /// A callback begins that is not nested in another.
    pub fn renew(&mut self) {
        self.left = self.share;
    }

    /// The budget is used up.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// One stream is handled.
    pub fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_callbacks_share_the_rest_of_the_outer_budget() {
        let mut budget = Budget::new(2);
        budget.spend();
        assert!(!budget.is_spent());
        budget.spend();
        budget.spend();
        assert!(budget.is_spent());
        budget.renew();
        assert!(!budget.is_spent());
    }
}
