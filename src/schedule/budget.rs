//! How many streams other than its own one callback may handle.

/// Streams that one callback of a worker handles; the rest wait for another callback.
///
/// Envoy carries out a callback's requests nested, so the stack is deepest after this many answers. In a
/// stock Envoy with only this filter and the router, some 250 nested answers overflow V8's stack (`make
/// depth` measures it). Other filters make each level deeper; with 32 there is eight times the room. The cost
/// is small: one more callback per 32 streams. Twice as many would gain 3 % (`make bench`).
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
