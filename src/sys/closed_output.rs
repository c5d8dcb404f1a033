//! Whether standard output was closed when this process began (`banger vm list >&-`).
//!
//! Rust's library opens /dev/null in its place before `main`, and then whatever is
//! written vanishes with success. So it is looked at before that: by a function in the
//! `.init_array` of the program, which the C library calls first (System V ABI, gABI
//! chapter 5, "Initialization and Termination Functions").

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether there was no standard output.
pub fn was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Runs before Rust's library is set up: one system call and one store, nothing else.
extern "C" fn look() {
    let seen = rustix::io::fcntl_getfd(rustix::stdio::stdout());
    CLOSED.store(seen == Err(rustix::io::Errno::BADF), Ordering::Relaxed);
}

// SAFETY: the section holds pointers to functions of the C calling convention, which is
// what this is; their arguments (argc, argv, envp) may be left unread.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;
