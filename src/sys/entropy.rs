//! Gives the kernel random bytes that it may count as entropy.

use std::ffi::c_void;
use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, opcode};

/// Most bytes that are given at once.
pub const MAX_SEED: usize = 256;

/// `struct rand_pool_info` of `include/uapi/linux/random.h` with room for a seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; MAX_SEED],
}

const _: () = assert!(size_of::<PoolInfo>() == 8 + MAX_SEED);

/// `RNDADDENTROPY`: `_IOW('R', 0x03, int [2])`.
const ADD_ENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);

/// `RNDRESEEDCRNG`: `_IO('R', 0x07)`, Linux 4.14.
const RESEED: Opcode = opcode::none(b'R', 0x07);

struct AddEntropy(PoolInfo);

// SAFETY: the pointer is to a live `rand_pool_info` whose `size` bytes follow it in
// the same struct; the kernel only reads them.
unsafe impl Ioctl for AddEntropy {
    type Output = ();

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        ADD_ENTROPY
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(&mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<()> {
        Ok(())
    }
}

/// Mixes the seed (at most [`MAX_SEED`] bytes, the rest is ignored) into the kernel's
/// pool, credits it in full, and has whatever is drawn from now on depend on it: without
/// that, a pool that is full already takes it into account a minute later, and two machines
/// begun from one template draw the same numbers until then. `device` is /dev/random.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `ENODATA` if the seed is too short for a pool that has
/// not been filled before.
pub fn add(device: impl AsFd, seed: &[u8]) -> Result<()> {
    let length = seed.len().min(MAX_SEED);
    let mut bytes = [0; MAX_SEED];
    bytes[..length].copy_from_slice(&seed[..length]);
    let request = AddEntropy(PoolInfo {
        entropy_bits: (length * 8) as i32,
        size: length as i32,
        bytes,
    });
    // SAFETY: the opcode belongs to the random device and takes a `rand_pool_info`;
    // any other device refuses it with ENOTTY.
    unsafe { rustix::ioctl::ioctl(&device, request) }?;
    // SAFETY: the opcode belongs to the random device as well and takes nothing.
    unsafe { rustix::ioctl::ioctl(&device, NoArg::<RESEED>::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opcode_is_the_kernels() {
        assert_eq!(ADD_ENTROPY, 0x4008_5203);
        assert_eq!(RESEED, 0x5207);
    }

    #[test]
    fn another_file_than_the_random_device_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(add(&null, b"seed"), Err(rustix::io::Errno::NOTTY));
    }
}
