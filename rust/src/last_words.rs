// SPDX-License-Identifier: Apache-2.0
//! Two failures that Rust cannot return: no memory and no stack. Each ends the process with one line and its exit code
//! (`src/base/error.h`), where Rust would abort with a backtrace or the kernel would kill.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::mem::{zeroed, MaybeUninit};
use std::ptr::{addr_of_mut, null_mut};
use std::sync::Once;

const DATA: i32 = 65;
const OUT_OF_MEMORY: i32 = 71;

/// Async-signal-safe.
fn end(line: &str, code: i32) -> ! {
    // SAFETY: the bytes live; both calls are allowed anywhere.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(code)
    }
}

/// An allocator, but for what happens when it has nothing left.
pub struct Checked<A>(pub A);

fn checked(pointer: *mut u8) -> *mut u8 {
    if pointer.is_null() {
        end("error: out of memory for texts; give the process more memory, or shorter records\n", OUT_OF_MEMORY);
    }
    pointer
}

// SAFETY: as the allocator's inside; the functions return only what it returned.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Checked<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        checked(self.0.alloc(layout))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        checked(self.0.alloc_zeroed(layout))
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        checked(self.0.realloc(pointer, layout, size))
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.0.dealloc(pointer, layout);
    }
}

/// Room for the handler and the registers that the kernel saves, AVX-512 and AMX included.
const HANDLER_STACK: usize = 64 << 10;
/// The deepest that a stack can be below the call that is watched.
const DEEPEST: usize = 4 << 30;

thread_local! {
    /// Where the stack of the watched call begins; 0 outside of one. No destructor: a signal handler may read it.
    static WATCHED: Cell<usize> = const { Cell::new(0) };
}

extern "C" fn on_fault(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo_t.
    let address = unsafe { (*info).si_addr() } as usize;
    let begin = WATCHED.get();
    if address < begin && begin - address < DEEPEST {
        end(
            "error: the chat template or the tokenizer nests deeper than the stack; write it with fewer operators in a \
             row and less nested values\n",
            DATA,
        );
    }
    // SAFETY: a crash of anybody else's: as without this handler, when the instruction is tried again.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
}

/// Runs `body`, which must not unwind; if the stack ends in it, so does the process. Neither minijinja's parser nor the
/// dropping and writing of its values bounds the depth, and a stack that is large enough for all that the fuel allows
/// would have gigabytes.
pub fn watching_the_stack<R>(body: impl FnOnce() -> R) -> R {
    static INSTALL: Once = Once::new();
    let mut room = MaybeUninit::<[u8; HANDLER_STACK]>::uninit();
    // SAFETY: plain data for the C calls; `room` outlives its use as the handler's stack, which ends below. A handler or a
    // stack for handlers that is there already (a sanitizer's) stays.
    unsafe {
        INSTALL.call_once(|| {
            let mut before: libc::sigaction = zeroed();
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, null_mut(), &mut before);
            if before.sa_sigaction == libc::SIG_DFL {
                libc::sigaction(libc::SIGSEGV, &action, null_mut());
            }
        });
        let mut before: libc::stack_t = zeroed();
        let stack = libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: HANDLER_STACK };
        libc::sigaltstack(null_mut(), &mut before);
        let ours = before.ss_flags & libc::SS_DISABLE != 0 && libc::sigaltstack(&stack, null_mut()) == 0;
        let outer = WATCHED.replace(addr_of_mut!(room) as usize);
        let result = body();
        WATCHED.set(outer);
        if ours {
            libc::sigaltstack(&before, null_mut());
        }
        result
    }
}
