//! What Envoy calls (proxy-wasm ABI 0.2.1), and the context that each call is for.
//!
//! The public SDK is not used. Its body callbacks can return two of the four statuses that Envoy
//! understands ([`BodyStatus`]), and it panics on a context or token that it does not know: in a VM that
//! all streams of a worker share.

#![allow(unsafe_code, reason = "an export keeps its name, and the ABI hands over raw memory")]

use super::abi::Direction;
use super::{Root, Stream};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What becomes of headers or trailers (`FilterHeadersStatus`, `FilterTrailersStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum HeadStatus {
    Continue = 0,
    /// They are kept until the direction is resumed.
    Stop = 1,
}

/// What becomes of a piece of a body (`FilterDataStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum BodyStatus {
    Continue = 0,
    /// It is kept. When more comes than Envoy may buffer, Envoy ends the stream by itself. Each callback shows
    /// everything that is kept.
    StopAndBuffer = 1,
    /// It is kept. When more comes than Envoy may buffer, Envoy stops reading. Each callback shows the new
    /// bytes alone.
    StopAndWatermark = 2,
    /// It is thrown away.
    StopNoBuffer = 3,
}

/// Whom a callback is for.
#[derive(Clone)]
enum Context {
    Root(Rc<Root>),
    Stream(Rc<Stream>),
}

thread_local! {
    /// A VM has one thread.
    static CONTEXTS: RefCell<BTreeMap<u32, Context>> = const { RefCell::new(BTreeMap::new()) };
}

/// The context is looked up before the call and not borrowed during it: some host calls call back.
fn context(id: u32) -> Option<Context> {
    CONTEXTS.with_borrow(|contexts| contexts.get(&id).cloned())
}

fn root(id: u32) -> Option<Rc<Root>> {
    match context(id)? {
        Context::Root(root) => Some(root),
        Context::Stream(_) => None,
    }
}

fn stream(id: u32) -> Option<Rc<Stream>> {
    match context(id)? {
        Context::Stream(stream) => Some(stream),
        Context::Root(_) => None,
    }
}

unsafe extern "C" {
    fn __wasm_call_ctors();
}

/// Envoy calls this once a VM, before anything else.
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: the linker makes it, and nothing has run before.
    unsafe { __wasm_call_ctors() };
    super::logger::start();
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Memory for what Envoy hands over; `abi::received` takes it back as a vector of that capacity.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    Box::into_raw(vec![0_u8; size].into_boxed_slice()).cast()
}

/// A root context has no root of its own.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(id: u32, root_id: u32) {
    let context = if root_id == 0 {
        Context::Root(Rc::new(Root::new(id)))
    } else {
        let Some(root) = root(root_id) else { return };
        Context::Stream(Rc::new(root.stream(id)))
    };
    CONTEXTS.with_borrow_mut(|contexts| contexts.insert(id, context));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(_: u32, _: usize) -> u32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(id: u32, size: usize) -> u32 {
    root(id).is_some_and(|root| root.configure(size)).into()
}

/// Zero: not yet, `abi::done` says when.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_done(id: u32) -> u32 {
    root(id).is_none_or(|root| root.done()).into()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(id: u32) {
    if let Some(stream) = stream(id) {
        stream.ended();
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(id: u32) {
    // Dropped after the borrow is over.
    let _gone = CONTEXTS.with_borrow_mut(|contexts| contexts.remove(&id));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(id: u32) {
    if let Some(root) = root(id) {
        root.tick();
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_queue_ready(id: u32, queue: u32) {
    if let Some(root) = root(id) {
        root.queue_ready(queue);
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(
    id: u32,
    token: u32,
    headers: usize,
    size: usize,
    _: usize,
) {
    if let Some(root) = root(id) {
        root.call_answered(token, headers, size);
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive(id: u32, token: u32, size: usize) {
    if let Some(root) = root(id) {
        root.grpc_message(token, size);
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_close(id: u32, token: u32, _: u32) {
    if let Some(root) = root(id) {
        root.grpc_closed(token);
    }
}

/// A request without a context is one that nobody checked: it stays where it is.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(id: u32, _: usize, end_of_stream: u32) -> u32 {
    let head = |stream: Rc<Stream>| stream.headers(Direction::Request, end_of_stream != 0);
    stream(id).map_or(HeadStatus::Stop, head) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_body(id: u32, size: usize, end_of_stream: u32) -> u32 {
    let body = |stream: Rc<Stream>| stream.body(Direction::Request, size, end_of_stream != 0);
    stream(id).map_or(BodyStatus::StopAndBuffer, body) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_trailers(id: u32, _: usize) -> u32 {
    stream(id).map_or(HeadStatus::Stop, |stream| stream.trailers(Direction::Request)) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(id: u32, _: usize, end_of_stream: u32) -> u32 {
    let head = |stream: Rc<Stream>| stream.headers(Direction::Response, end_of_stream != 0);
    stream(id).map_or(HeadStatus::Continue, head) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_body(id: u32, size: usize, end_of_stream: u32) -> u32 {
    let body = |stream: Rc<Stream>| stream.body(Direction::Response, size, end_of_stream != 0);
    stream(id).map_or(BodyStatus::Continue, body) as u32
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_trailers(id: u32, _: usize) -> u32 {
    stream(id).map_or(HeadStatus::Continue, |stream| stream.trailers(Direction::Response)) as u32
}
