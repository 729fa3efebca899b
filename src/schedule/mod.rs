//! Which stream a worker handles next, and how many in one callback. No clock, no IO.
//!
//! Envoy keeps a callback's requests (local replies, resumed streams, failed callouts) until the callback
//! returns. Then it carries them out *nested*: the callbacks of the first entry run inside it, and when the
//! last of them returns, the next entry is carried out from there. So the stack grows with the number of
//! streams that one callback answers, and a crowd ends the VM. Therefore a worker handles at most [`BATCH`]
//! facts per callback, and the rest in later callbacks of its own.

mod budget;
mod timers;
mod waiters;

pub use budget::{BATCH, Budget};
pub use timers::Timers;
pub use waiters::Waiters;
