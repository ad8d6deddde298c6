// SPDX-License-Identifier: Apache-2.0
//! A C ABI over the `tokenizers`, `minijinja`, `parquet` and `blake3` crates; the contract is `include/fettle_text.h`.
//!
//! Every entry point runs inside [`guarded`]: an error or a panic of a crate becomes a status and a message, and never
//! unwinds into C++. No memory and no stack end the process in words ([`last_words`]).

mod blake3;
mod chat_template;
mod generation;
mod last_words;
mod parquet_reader;
mod python;
mod tokenizer;

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// The `tokenizers` crate allocates for every character range it looks at: a quarter of the time of preparing data went
/// into the C library's allocator. Memory of this library never passes to another: [`Buffer`]s are freed here.
#[global_allocator]
static ALLOCATOR: last_words::Checked<mimalloc::MiMalloc> = last_words::Checked(mimalloc::MiMalloc);

/// Bytes that this library owns; see `FettleBuffer` in the header.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
    capacity: usize,
}

impl Buffer {
    fn from_vec(bytes: Vec<u8>) -> Self {
        let mut bytes = std::mem::ManuallyDrop::new(bytes);
        Buffer { data: bytes.as_mut_ptr(), size: bytes.len(), capacity: bytes.capacity() }
    }
}

/// # Safety
/// `buffer` is null, zeroed, or was filled by this library and not freed since.
#[no_mangle]
pub unsafe extern "C" fn fettle_buffer_free(buffer: *mut Buffer) {
    if let Some(buffer) = buffer.as_mut() {
        if !buffer.data.is_null() {
            drop(Vec::from_raw_parts(buffer.data, buffer.size, buffer.capacity));
        }
        *buffer = Buffer { data: std::ptr::null_mut(), size: 0, capacity: 0 };
    }
}

/// `FettleStatus` of the header.
pub const OK: i32 = 0;
pub const FAILED: i32 = 1;
pub const RAISED: i32 = 2;

/// Why a call failed: the status to return and the message to hand over.
pub struct Failure {
    status: i32,
    message: String,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Failure { status: FAILED, message: message.into() }
    }

    fn raised(message: impl Into<String>) -> Self {
        Failure { status: RAISED, message: message.into() }
    }
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::new(error.to_string())
    }
}

type Outcome<T> = Result<T, Failure>;

/// Runs `body`; on failure or panic writes the message to `error` (if it is not null).
///
/// # Safety
/// `error` is null or points to a writable `Buffer`, whose old content is not freed.
unsafe fn guarded(error: *mut Buffer, body: impl FnOnce() -> Outcome<()>) -> i32 {
    let failure = match last_words::watching_the_stack(|| catch_unwind(AssertUnwindSafe(body))) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::new(format!("the tokenizer, template or file cannot be used: {}", panic_text(&*panic))),
    };
    if let Some(error) = error.as_mut() {
        *error = Buffer::from_vec(failure.message.into_bytes());
    }
    failure.status
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

/// # Safety
/// `data` points to `size` readable bytes; it may be null when `size` is 0. They stay valid for `'a`.
unsafe fn bytes<'a>(data: *const u8, size: usize) -> &'a [u8] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

/// # Safety
/// As [`bytes`].
unsafe fn text<'a>(data: *const u8, size: usize) -> Outcome<&'a str> {
    std::str::from_utf8(bytes(data, size))
        .map_err(|error| Failure::new(format!("not UTF-8 at byte {}", error.valid_up_to())))
}

/// Switches off the message that Rust prints to stderr for a caught panic. Called by every constructor of a handle.
fn silence_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}
