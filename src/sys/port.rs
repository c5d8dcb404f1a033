//! Writes to an input and output port of the processor (x86's `out`).

use std::ffi::{c_int, c_ulong};
use std::io;

unsafe extern "C" {
    /// ioperm(2); both C libraries of Linux on x86 have it.
    fn ioperm(from: c_ulong, count: c_ulong, on: c_int) -> c_int;
}

/// Writes one byte to a port; what that does is the machine's business. The right to it is
/// given back: children and what they execute would have it too.
///
/// # Errors
/// `EPERM` without CAP_SYS_RAWIO; `ENOSYS` for a kernel without ports.
pub fn write(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: it changes which ports this thread may use, and no memory.
    if unsafe { ioperm(port.into(), 1, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the instruction touches neither memory nor the stack, and the kernel has
    // allowed this port to this thread.
    unsafe {
        core::arch::asm!(
            "out dx, al",
            in("dx") port,
            in("al") value,
            options(nomem, nostack, preserves_flags),
        );
    }
    // SAFETY: as above.
    match unsafe { ioperm(port.into(), 1, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
