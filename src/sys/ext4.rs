//! What ext4 offers beyond the common calls.

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

/// `EXT4_IOC_ALLOC_DA_BLOCKS` (`fs/ext4/ext4.h`).
const ALLOCATE_DELAYED: Opcode = opcode::none(b'f', 12);

/// Starts the writing of what is waiting for its blocks, without waiting for the end.
/// In ext4's default ordered mode, no change to the file system that is made after
/// this survives a power cut unless the file's content does.
///
/// # Errors
/// `ENOTTY` on another file system.
pub fn allocate_delayed(file: impl AsFd) -> Result<()> {
    // SAFETY: the opcode takes no argument.
    let request = unsafe { NoArg::<ALLOCATE_DELAYED>::new() };
    // SAFETY: it touches no memory of ours, and other file systems refuse it.
    unsafe { ioctl(file, request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opcode_is_the_kernels_and_others_refuse_it() {
        assert_eq!(ALLOCATE_DELAYED, 0x660c);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(allocate_delayed(&null), Err(rustix::io::Errno::NOTTY));
    }
}
