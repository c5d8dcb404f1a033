//! Lets the file system of a writable disk fill that disk.
//!
//! The image's file system is as large as its content needs; the disk that a VM has it on
//! is as large as was asked for. Any disk may have been made larger since (`vm set`). The kernel grows a mounted ext4 within milliseconds,
//! also without the reserved blocks of resize2fs (it goes over to meta block groups).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount_remount};

use super::during;
use crate::failure::Failure;
use crate::sys::ext4;

/// Where the superblock begins, whatever the block size
/// (Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;

/// What a superblock says about the file system's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    blocks: u64,
    block_size: u64,
}

/// Grows the file system at `target` to the whole of its disk, if it is smaller.
///
/// # Errors
/// The disk cannot be read, or the kernel refuses: the file system stays as it is.
pub fn to_whole_disk(disk: &Path, target: &Path) -> Result<(), Failure> {
    let attempt = || format!("grow the file system to the size of {}", disk.display());
    let file = File::open(disk).map_err(during(attempt()))?;
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, SUPERBLOCK)
        .map_err(during(attempt()))?;
    let size = ext4::disk_size(&file).map_err(during(attempt()))?;
    let Some(has) = extent(&superblock) else {
        return Err(Failure::failed(attempt()).because("it holds no ext4"));
    };
    let whole = size / has.block_size;
    if whole <= has.blocks {
        return Ok(());
    }
    grow(target, whole).map_err(during(attempt()))
}

/// With `init_itable` the new inode tables are marked as not yet cleared instead of being
/// cleared at once, a 64th of the new space; without it afterwards no thread of the kernel
/// clears them either. Nothing reads a table before it is written.
fn grow(target: &Path, blocks: u64) -> rustix::io::Result<()> {
    let folder = rustix::fs::open(
        target,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let flags = flags_of(target)?;
    mount_remount(target, flags, c"init_itable")?;
    let grown = ext4::resize(&folder, blocks);
    mount_remount(target, flags, c"noinit_itable")?;
    grown
}

/// How it is mounted: a remount that does not name a flag takes it away. The numbers of
/// statvfs(3) and of mount(2) are the same for these; how access times are kept stays when
/// none is named.
fn flags_of(target: &Path) -> rustix::io::Result<MountFlags> {
    let seen = rustix::fs::statvfs(target)?.f_flag;
    let flags = u32::try_from(seen.bits()).unwrap_or_default();
    let kept = MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC
        | MountFlags::SYNCHRONOUS;
    Ok(MountFlags::from_bits_truncate(flags) & kept)
}

/// Offsets 0x38 the magic, 0x18 the block size, 0x4 and 0x150 the count (its upper half
/// where the file system has 64-bit numbers, 0x60 bit 7).
fn extent(superblock: &[u8; 1024]) -> Option<Extent> {
    let word = |at: usize| {
        let bytes = superblock[at..at + 4].try_into().expect("four bytes");
        u64::from(u32::from_le_bytes(bytes))
    };
    let shift = u32::try_from(word(0x18)).ok().filter(|shift| *shift <= 6)?;
    if word(0x38) & 0xffff != 0xef53 {
        return None;
    }
    let high = match word(0x60) & 0x80 {
        0 => 0,
        _ => word(0x150),
    };
    Some(Extent {
        blocks: word(0x4) | high << 32,
        block_size: 1024 << shift,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(words: &[(usize, u32)]) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        for (at, word) in words {
            bytes[*at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_size_is_read_with_its_upper_half_only_where_it_counts() {
        let small = [(0x38, 0xef53), (0x18, 2), (0x4, 49152), (0x150, 7)];
        let expected = |blocks| {
            Some(Extent {
                blocks,
                block_size: 4096,
            })
        };
        assert_eq!(extent(&superblock(&small)), expected(49152));
        let large = [&small[..], &[(0x60, 0x80)]].concat();
        assert_eq!(extent(&superblock(&large)), expected(7 << 32 | 49152));
    }

    #[test]
    fn what_is_no_ext4_has_no_size() {
        assert_eq!(extent(&[0; 1024]), None);
        assert_eq!(extent(&superblock(&[(0x38, 0xef53), (0x18, 99)])), None);
    }
}
