//! How many pieces a file lies in.

use std::os::fd::AsFd;

use linux_raw_sys::ioctl::FS_IOC_FIEMAP;
use rustix::io::Result;
use rustix::ioctl::{Updater, ioctl};

/// `struct fiemap` of `linux/fiemap.h` without its list, which is not asked for.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Fiemap>() == 32);

/// The number of a file's extents (Documentation/filesystems/fiemap.rst).
///
/// # Errors
/// `EOPNOTSUPP`: the file system does not tell.
pub fn extents(file: impl AsFd) -> Result<u32> {
    let mut request = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped_extents: 0,
        // None: only their number.
        extent_count: 0,
        reserved: 0,
    };
    // SAFETY: FS_IOC_FIEMAP reads and writes the structure, whose size is asserted above,
    // and as many extents after it as `extent_count` says: none.
    let update = unsafe { Updater::<{ FS_IOC_FIEMAP }, Fiemap>::new(&mut request) };
    // SAFETY: opcode and argument belong together, see above.
    unsafe { ioctl(file, update) }?;
    Ok(request.mapped_extents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pieces_apart_from_each_other_are_counted_where_the_file_system_tells() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(64 << 20).unwrap();
        for piece in [0_u64, 8, 24] {
            file.write_all_at(&[1; 4096], piece << 20).unwrap();
        }
        file.sync_all().unwrap();
        match extents(&file) {
            Ok(count) => assert_eq!(count, 3),
            Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP),
        }
    }
}
