//! How much one callback may do for streams that are not its own.

/// Streams that one callback of a worker deals with; the rest waits for another callback.
///
/// What a callback asks for is carried out nested, so the stack is deepest after this many answers. In a
/// stock Envoy with this filter and the router alone, some 250 nested answers end V8's stack (`make depth`
/// measures it). Other filters make each level deeper; 32 leaves them eight times the room. It costs
/// little: a callback more for each 32 streams. Twice as many would gain 3 % (`make bench`).
pub const BATCH: u32 = 32;

/// What is left of a callback's share.
///
/// Only a callback that Envoy never nests in another may [renew](Self::renew) it: a tick, a message of the
/// worker's own queue, bytes from Redis. All other callbacks spend what these have left, since nobody can
/// see from inside whether a callback is nested.
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

    /// A callback has begun that is not nested in another.
    pub fn renew(&mut self) {
        self.left = self.share;
    }

    /// Nothing is left.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// One stream is dealt with.
    pub fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_that_may_be_nested_share_what_the_outer_one_has_left() {
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
