//! What ext4 offers beyond the common calls.

use std::os::fd::AsFd;

use linux_raw_sys::ioctl::BLKGETSIZE64;
use rustix::io::Result;
use rustix::ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode};

/// `EXT4_IOC_ALLOC_DA_BLOCKS` (`fs/ext4/ext4.h`).
const ALLOCATE_DELAYED: Opcode = opcode::none(b'f', 12);

/// The length of a block device, bytes.
///
/// # Errors
/// `ENOTTY`: it is none.
pub fn disk_size(disk: impl AsFd) -> Result<u64> {
    // SAFETY: BLKGETSIZE64 (linux/fs.h) writes one 64-bit number.
    let request = unsafe { Getter::<{ BLKGETSIZE64 }, u64>::new() };
    // SAFETY: opcode and answer belong together.
    unsafe { ioctl(disk, request) }
}

/// `EXT4_IOC_RESIZE_FS` (`fs/ext4/ext4.h`).
const RESIZE: Opcode = opcode::write::<u64>(b'f', 16);

/// Lets a mounted file system have so many blocks; its device must be that long.
///
/// # Errors
/// `EINVAL`: fewer than it has. `ENOTTY` on another file system.
pub fn resize(folder: impl AsFd, blocks: u64) -> Result<()> {
    // SAFETY: the opcode reads one 64-bit number.
    let request = unsafe { Setter::<RESIZE, u64>::new(blocks) };
    // SAFETY: opcode and argument belong together, and other file systems refuse it.
    unsafe { ioctl(folder, request) }
}

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
        assert_eq!(RESIZE, 0x4008_6610);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(allocate_delayed(&null), Err(rustix::io::Errno::NOTTY));
        assert_eq!(resize(&null, 1), Err(rustix::io::Errno::NOTTY));
    }
}
