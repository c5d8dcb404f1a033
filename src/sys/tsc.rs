//! The processor's time-stamp counter.

/// The counter's value; `None` on processors that have none.
pub fn read() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: RDTSC is part of every x86-64 processor, and Linux leaves it enabled
        // for user space (CR4.TSD clear) unless a process asked otherwise by prctl.
        Some(unsafe { core::arch::x86_64::_rdtsc() })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}
