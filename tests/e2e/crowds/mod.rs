//! Crowds that end in one moment: no VM stops, every request is answered, every execution is counted.
//!
//! Envoy carries out a callback's requests after it, each answer or resume inside the one before. Some
//! hundreds of them in one callback are deeper than the stack of a VM: it stops, and the requests that it
//! held hang. So each of these crowds is far larger, and all of it is with one worker.

mod detached;
mod leaving;
mod redis;
mod waiting;

use testkit::scene::Scene;
