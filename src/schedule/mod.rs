//! Who is dealt with next in a worker, and how many in one callback. No clock, no IO.
//!
//! Envoy keeps what a callback asks for (local replies, streams that go on, callouts that fail) until the
//! callback returns. Then it carries the list out *nested*: the first entry's own callbacks run inside it,
//! and when the last of them returns, the next entry is carried out from there. So the stack grows with
//! the number of streams that one callback answers, and a crowd ends the VM. A worker therefore deals with
//! at most [`BATCH`] facts a callback, and with the rest in further callbacks of its own.

mod budget;
mod timers;
mod waiters;

pub use budget::{BATCH, Budget};
pub use timers::Timers;
pub use waiters::Waiters;
