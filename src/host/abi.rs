//! The host functions this module calls, by their ABI (proxy-wasm ABI 0.2.1).
//!
//! The public SDK's wrappers panic on every status they do not expect and on header names that are not
//! UTF-8: a stranger's bytes would stop a worker. These say what happened and leave it to the caller.

#![allow(unsafe_code)]

use crate::exchange::Headers;
use std::ptr::{null, null_mut};
use std::time::Duration;

/// A status other than OK (`proxy_status_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure(u32);

impl Failure {
    /// The key's value has changed since it was read.
    pub(super) fn is_cas_mismatch(self) -> bool {
        self.0 == CAS_MISMATCH
    }
}

const OK: u32 = 0;
const CAS_MISMATCH: u32 = 8;

/// `proxy_stream_type_t`, `proxy_map_type_t` and `proxy_buffer_type_t` in the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Response,
}

impl Direction {
    const fn stream(self) -> u32 {
        match self {
            Self::Request => 0,
            Self::Response => 1,
        }
    }

    const fn header_map(self) -> u32 {
        match self {
            Self::Request => 0,
            Self::Response => 2,
        }
    }

    const fn body(self) -> u32 {
        match self {
            Self::Request => 0,
            Self::Response => 1,
        }
    }
}

/// `proxy_buffer_type_t`, beyond the two bodies.
const CALL_RESPONSE_BODY: u32 = 4;
const GRPC_MESSAGE: u32 = 5;
const PLUGIN_CONFIGURATION: u32 = 7;

/// `proxy_map_type_t`, beyond the two directions' headers.
const CALL_RESPONSE_HEADERS: u32 = 6;

/// `proxy_metric_type_t`.
#[derive(Clone, Copy, Debug)]
pub(super) enum MetricType {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

/// `proxy_log_level_t`.
#[derive(Clone, Copy, Debug)]
pub(super) enum LogLevel {
    Trace = 0,
    Debug = 1,
    Info = 2,
    Warn = 3,
    Error = 4,
    Critical = 5,
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, text: *const u8, size: usize) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout: u32,
        token: *mut u32,
    ) -> u32;
    fn proxy_grpc_stream(
        cluster: *const u8,
        cluster_size: usize,
        service: *const u8,
        service_size: usize,
        method: *const u8,
        method_size: usize,
        metadata: *const u8,
        metadata_size: usize,
        token: *mut u32,
    ) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        kind: u32,
        start: usize,
        max_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(
        kind: u32,
        start: usize,
        size: usize,
        data: *const u8,
        data_size: usize,
    ) -> u32;
    fn proxy_grpc_send(
        token: u32,
        message: *const u8,
        message_size: usize,
        end_of_stream: i32,
    ) -> u32;
    fn proxy_grpc_cancel(token: u32) -> u32;
    fn proxy_done() -> u32;
    fn proxy_get_header_map_pairs(kind: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_replace_header_map_value(
        kind: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(kind: u32, name: *const u8, name_size: usize) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_property(
        path: *const u8,
        path_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_register_shared_queue(name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_enqueue_shared_queue(id: u32, value: *const u8, value_size: usize) -> u32;
    fn proxy_dequeue_shared_queue(id: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_continue_stream(kind: u32) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_set_effective_context(id: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
}

fn checked(status: u32) -> Result<(), Failure> {
    if status == OK { Ok(()) } else { Err(Failure(status)) }
}

/// Calls a function that hands over bytes, and takes them.
fn received(
    call: impl FnOnce(*mut *mut u8, *mut usize) -> u32,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut data: *mut u8 = null_mut();
    let mut size: usize = 0;
    checked(call(&mut data, &mut size))?;
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: the host allocated `size` bytes at `data` through this module's own allocator
    // (`proxy_on_memory_allocate`, with capacity equal to size) and filled them; nobody else holds
    // the pointer.
    Ok(Some(unsafe { Vec::from_raw_parts(data, size, size) }))
}

/// Writes a line to Envoy's log.
pub(super) fn log(level: LogLevel, text: &str) {
    // SAFETY: the host reads a string that outlives the call. A line that it does not take is lost.
    let _ = unsafe { proxy_log(level as u32, text.as_ptr(), text.len()) };
}

/// Sends an HTTP request of the root context's own; its answer comes under this number.
pub(super) fn http_call(
    cluster: &str,
    headers: &Headers,
    body: &[u8],
    timeout: Duration,
) -> Result<u32, Failure> {
    let headers = write_pairs(headers);
    let body_data = if body.is_empty() { null() } else { body.as_ptr() };
    // Zero is no timeout at all.
    let timeout = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
    let mut token = 0;
    // SAFETY: the host reads bytes that outlive the call and writes to a place of ours. No trailers.
    checked(unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body_data,
            body.len(),
            null(),
            0,
            timeout,
            &mut token,
        )
    })?;
    Ok(token)
}

/// Opens a gRPC stream of the root context's own, which its messages name by this number.
pub(super) fn grpc_stream(cluster: &str, service: &str, method: &str) -> Result<u32, Failure> {
    let metadata = write_pairs(&[]);
    let mut token = 0;
    // SAFETY: the host reads strings that outlive the call and writes to a place of ours.
    checked(unsafe {
        proxy_grpc_stream(
            cluster.as_ptr(),
            cluster.len(),
            service.as_ptr(),
            service.len(),
            method.as_ptr(),
            method.len(),
            metadata.as_ptr(),
            metadata.len(),
            &mut token,
        )
    })?;
    Ok(token)
}

/// Nanoseconds since the Unix epoch; zero if the host has no clock.
pub(super) fn current_time_nanoseconds() -> u64 {
    let mut time = 0;
    // SAFETY: the host writes a `u64` to a place that is ours.
    let status = unsafe { proxy_get_current_time_nanoseconds(&mut time) };
    if status == OK { time } else { 0 }
}

/// Nanoseconds of the clock that never goes back; the wall clock's if the host has no other (WASI
/// snapshot preview 1, `clock_time_get`).
pub(super) fn monotonic_nanoseconds() -> u64 {
    const MONOTONIC: u32 = 1;
    let mut time = 0;
    // SAFETY: the host writes a `u64` to a place that is ours.
    let error = unsafe { clock_time_get(MONOTONIC, 1, &mut time) };
    if error == 0 { time } else { current_time_nanoseconds() }
}

/// How often the root context ticks; zero stops it.
pub(super) fn set_tick_period(period: Duration) {
    let millis = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: takes a number. The status is OK in every host that has timers.
    let _ = unsafe { proxy_set_tick_period_milliseconds(millis) };
}

/// `size` bytes of a body from `start`. Only in that direction's body callback.
pub(super) fn body(direction: Direction, start: usize, size: usize) -> Vec<u8> {
    buffer(direction.body(), start, size)
}

/// Puts these bytes in the place of `size` bytes of a body from `start`. Only in that direction's body
/// callback.
pub(super) fn replace_body(
    direction: Direction,
    start: usize,
    size: usize,
    bytes: &[u8],
) -> Result<(), Failure> {
    // SAFETY: the host reads bytes that outlive the call.
    checked(unsafe {
        proxy_set_buffer_bytes(direction.body(), start, size, bytes.as_ptr(), bytes.len())
    })
}

/// The message of a gRPC stream that has just come. Only in its callback.
pub(super) fn grpc_message(size: usize) -> Vec<u8> {
    buffer(GRPC_MESSAGE, 0, size)
}

/// The body of an HTTP call's response. Only in its callback.
pub(super) fn call_response_body(size: usize) -> Vec<u8> {
    buffer(CALL_RESPONSE_BODY, 0, size)
}

/// The headers of an HTTP call's response; `None` if the host's answer cannot be read. Only in its callback.
pub(super) fn call_response_headers() -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    header_map(CALL_RESPONSE_HEADERS)
}

/// Sends a message on a gRPC stream of the effective context.
pub(super) fn grpc_send(token: u32, message: &[u8]) -> Result<(), Failure> {
    // SAFETY: the host reads bytes that outlive the call. 0: more may follow.
    checked(unsafe { proxy_grpc_send(token, message.as_ptr(), message.len(), 0) })
}

/// Ends a gRPC stream of the effective context at once, without a message.
pub(super) fn grpc_cancel(token: u32) -> Result<(), Failure> {
    // SAFETY: takes a number.
    checked(unsafe { proxy_grpc_cancel(token) })
}

/// The effective context, whose end was delayed, has finished its work.
pub(super) fn done() -> Result<(), Failure> {
    // SAFETY: takes nothing.
    checked(unsafe { proxy_done() })
}

/// The plugin's configuration.
pub(super) fn plugin_configuration(size: usize) -> Vec<u8> {
    buffer(PLUGIN_CONFIGURATION, 0, size)
}

fn buffer(kind: u32, start: usize, size: usize) -> Vec<u8> {
    // SAFETY: `received` passes two places of ours.
    let bytes =
        received(|data, length| unsafe { proxy_get_buffer_bytes(kind, start, size, data, length) });
    bytes.ok().flatten().unwrap_or_default()
}

/// All headers, in order. `None` if the host's answer cannot be read: the request must not be taken
/// for one without headers, which no rule protects.
pub(super) fn headers(direction: Direction) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    header_map(direction.header_map())
}

fn header_map(kind: u32) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    // SAFETY: `received` passes two places of ours.
    let bytes = received(|data, size| unsafe { proxy_get_header_map_pairs(kind, data, size) });
    parse_pairs(&bytes.ok()?.unwrap_or_default())
}

/// Pairs as the ABI writes them: a count, then the two lengths of each pair, then each name and value
/// with a zero byte after it; numbers are 32 bits, little endian.
fn parse_pairs(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let (count, rest) = length(bytes)?;
    let (mut lengths, mut text) = rest.split_at_checked(count.checked_mul(8)?)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name_length, after) = length(lengths)?;
        let (value_length, after) = length(after)?;
        lengths = after;
        let (name, after) = terminated(text, name_length)?;
        let (value, after) = terminated(after, value_length)?;
        text = after;
        pairs.push((name.to_vec(), value.to_vec()));
    }
    Some(pairs)
}

fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number) as usize, rest))
}

fn terminated(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(length)?;
    Some((text, rest.get(1..)?))
}

fn write_pairs(pairs: &Headers) -> Vec<u8> {
    let mut bytes = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
    }
    for (name, value) in pairs {
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}

/// Sets a header, and replaces any other value.
pub(super) fn set_header(direction: Direction, name: &str, value: &str) -> Result<(), Failure> {
    // SAFETY: the host reads two strings that outlive the call.
    checked(unsafe {
        proxy_replace_header_map_value(
            direction.header_map(),
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

/// Removes every header of that name.
pub(super) fn remove_header(direction: Direction, name: &str) -> Result<(), Failure> {
    // SAFETY: the host reads a string that outlives the call.
    checked(unsafe {
        proxy_remove_header_map_value(direction.header_map(), name.as_ptr(), name.len())
    })
}

/// An attribute of the effective context (Envoy docs, "Attributes"); `None` if there is none.
pub(super) fn property(path: &[&str]) -> Option<Vec<u8>> {
    let path = path.join("\0");
    // SAFETY: the host reads a string that outlives the call; `received` passes two places of ours.
    let value =
        received(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) });
    value.ok().map(Option::unwrap_or_default)
}

/// Sets filter state of the effective context.
pub(super) fn set_property(path: &str, value: &str) -> Result<(), Failure> {
    // SAFETY: the host reads two strings that outlive the call.
    checked(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
}

/// A value of shared data and its version; an empty value is `None` with a version, an absent one
/// `None` without.
pub(super) fn shared_data(key: &str) -> (Option<Vec<u8>>, Option<u32>) {
    let mut cas = 0;
    // SAFETY: the host reads a string that outlives the call and writes to places of ours.
    let value = received(|data, size| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &mut cas)
    });
    (value.ok().flatten(), (cas != 0).then_some(cas))
}

/// Writes a value if its version still is `cas`.
pub(super) fn set_shared_data(key: &str, value: &[u8], cas: u32) -> Result<(), Failure> {
    // SAFETY: the host reads two strings that outlive the call.
    checked(unsafe {
        proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas)
    })
}

/// A queue by its name, created if it is new; this root context receives its messages.
pub(super) fn register_queue(name: &str) -> Result<u32, Failure> {
    let mut id = 0;
    // SAFETY: the host reads a string that outlives the call and writes to a place of ours.
    checked(unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

/// Puts a message at the tail of a queue.
pub(super) fn enqueue(queue: u32, message: &[u8]) -> Result<(), Failure> {
    // SAFETY: the host reads bytes that outlive the call.
    checked(unsafe { proxy_enqueue_shared_queue(queue, message.as_ptr(), message.len()) })
}

/// Takes the message at the head of a queue; `None` if there is none.
pub(super) fn dequeue(queue: u32) -> Option<Vec<u8>> {
    // SAFETY: `received` passes two places of ours.
    received(|data, size| unsafe { proxy_dequeue_shared_queue(queue, data, size) }).ok().flatten()
}

/// Lets the held direction of the effective context go on. Call it exactly once: a second call redelivers the
/// body.
pub(super) fn resume(direction: Direction) -> Result<(), Failure> {
    // SAFETY: takes a number.
    checked(unsafe { proxy_continue_stream(direction.stream()) })
}

/// Answers the effective context's request; `details` is `%RESPONSE_CODE_DETAILS%`.
pub(super) fn send_local_response(
    status: u16,
    details: &str,
    headers: &Headers,
    body: &[u8],
) -> Result<(), Failure> {
    let headers = write_pairs(headers);
    let body_data = if body.is_empty() { null() } else { body.as_ptr() };
    // SAFETY: the host reads strings that outlive the call. -1: no gRPC status.
    checked(unsafe {
        proxy_send_local_response(
            u32::from(status),
            details.as_ptr(),
            details.len(),
            body_data,
            body.len(),
            headers.as_ptr(),
            headers.len(),
            -1,
        )
    })
}

/// Makes this context the effective one for the following calls.
pub(super) fn set_effective_context(id: u32) -> Result<(), Failure> {
    // SAFETY: takes a number.
    checked(unsafe { proxy_set_effective_context(id) })
}

/// A metric by its name, made if it is new.
pub(super) fn define_metric(kind: MetricType, name: &str) -> Result<u32, Failure> {
    let mut id = 0;
    // SAFETY: the host reads a string that outlives the call and writes to a place of ours.
    checked(unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

/// Adds to a counter or gauge.
pub(super) fn increment_metric(id: u32, offset: i64) -> Result<(), Failure> {
    // SAFETY: takes numbers.
    checked(unsafe { proxy_increment_metric(id, offset) })
}

/// Puts a value into a histogram. Whole numbers are all that the ABI has.
pub(super) fn record_metric(id: u32, value: u64) -> Result<(), Failure> {
    // SAFETY: takes numbers.
    checked(unsafe { proxy_record_metric(id, value) })
}
