//! The filter in a real Envoy, with two workers, in front of an origin that counts.

mod harness;
