//! A file's content in another file, in the time its data takes and not its size.
//!
//! By `FICLONE` where the file system shares extents (XFS, btrfs), else extent by
//! extent (`SEEK_DATA`, lseek(2)), leaving blocks of zeros as holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// One read, and the smallest piece that becomes a hole is one block of it.
const PIECE: usize = 256 << 10;
const BLOCK: usize = 4096;

/// Copies the whole of `from` into the empty file `to`.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copy_extents(from, to)
        }
        Err(error) => Err(error.into()),
    }
}

/// Copies extent by extent, and blocks of zeros as holes, whatever the file system can.
pub fn copy_extents(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = vec![0; PIECE];
    let mut position = 0;
    while let Some((start, end)) = next_extent(from, position, length)? {
        position = start;
        while position < end {
            let wanted = usize::try_from((end - position).min(PIECE as u64)).unwrap_or(PIECE);
            let piece = &mut buffer[..wanted];
            from.read_exact_at(piece, position)?;
            write_non_zero(to, piece, position)?;
            position += wanted as u64;
        }
    }
    Ok(())
}

/// The next stretch of data at or after a position.
fn next_extent(file: &File, position: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if position >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(position)) {
        Ok(start) => start,
        // Nothing but a hole from here to the end.
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(length))))
}

/// Writes the runs of blocks that hold something.
fn write_non_zero(to: &File, piece: &[u8], position: u64) -> io::Result<()> {
    let mut run = 0..0;
    for (index, block) in piece.chunks(BLOCK).enumerate() {
        let start = index * BLOCK;
        let end = start + block.len();
        if block.iter().any(|byte| *byte != 0) {
            if run.end != start {
                to.write_all_at(&piece[run.clone()], position + run.start as u64)?;
                run = start..start;
            }
            run.end = end;
        }
    }
    to.write_all_at(&piece[run.clone()], position + run.start as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn data_survives_and_zeros_become_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(&vec![0; 1 << 20], 8 << 20).unwrap();
        from.write_all_at(&vec![7; 300_000], 20 << 20).unwrap();
        from.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy_extents(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let (mut expected, mut found) = (vec![1; 1 << 20], vec![2; 1 << 20]);
        for position in (0..64).map(|mib| mib << 20) {
            from.read_exact_at(&mut expected, position).unwrap();
            to.read_exact_at(&mut found, position).unwrap();
            assert!(expected == found, "differs at {position}");
        }
    }

    #[test]
    fn an_empty_file_and_a_pure_hole_keep_their_length() {
        for length in [0, 3 << 20] {
            let from = tempfile::tempfile().unwrap();
            from.set_len(length).unwrap();
            let to = tempfile::tempfile().unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(to.metadata().unwrap().len(), length);
        }
    }
}
