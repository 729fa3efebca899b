//! What a state makes of an input.

use super::{Flow, Order, State};

/// A step, before it is known whether it happens in the shadow.
pub(super) struct Transition {
    pub(super) state: State,
    pub(super) flow: Flow,
    pub(super) orders: Vec<Order>,
}

impl Transition {
    pub(super) fn new(state: State, flow: Flow) -> Self {
        Self { state, flow, orders: Vec::new() }
    }

    pub(super) fn order(mut self, order: Order) -> Self {
        self.orders.push(order);
        self
    }

    pub(super) fn orders(mut self, orders: impl IntoIterator<Item = Order>) -> Self {
        self.orders.extend(orders);
        self
    }

    /// What comes first when `orders` precede this step.
    pub(super) fn after(mut self, mut orders: Vec<Order>) -> Self {
        orders.append(&mut self.orders);
        self.orders = orders;
        self
    }

    /// Decided, counted and recorded all the same, but neither client nor origin notices.
    pub(super) fn in_shadow(mut self) -> Self {
        self.flow = Flow::Continue;
        self.orders.retain(|order| match order {
            Order::Ask(..)
            | Order::AskHere(..)
            | Order::Report(..)
            | Order::Count(_)
            | Order::Log(..) => true,
            Order::Send(..)
            | Order::Answer(_)
            | Order::SetRequestHeader(..)
            | Order::RemoveRequestHeader(_)
            | Order::SetResponseHeader(..)
            | Order::RemoveResponseHeader(_)
            | Order::Watch(_)
            | Order::Unwatch(_) => false,
        });
        if let State::Passing(passing) = &mut self.state {
            passing.untyped = false;
        }
        self
    }
}
