//! Output on its way to a descriptor that may be slow.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::failure::Failure;

/// Bytes that a pipe takes without blocking once poll says that it takes some
/// (PIPE_BUF of pipe(7)). Terminals and sockets may take less; they are written to
/// in the same portions.
const PORTION: usize = 4096;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Some or all of it is written.
    Some,
    /// Nobody reads any more.
    ReaderGone,
}

/// Bytes that wait for one descriptor.
#[derive(Debug)]
pub struct Pending {
    bytes: VecDeque<u8>,
    most: usize,
}

impl Pending {
    /// For this descriptor.
    pub fn new(descriptor: BorrowedFd<'_>) -> Pending {
        // A regular file never makes us wait for a reader: no reason to cut.
        let file = rustix::fs::fstat(descriptor).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
        });
        Pending {
            bytes: VecDeque::new(),
            most: if file { usize::MAX } else { PORTION },
        }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes a portion to a descriptor that poll has found ready.
    ///
    /// # Errors
    /// It cannot be written to: a full disk.
    pub fn write(&mut self, descriptor: BorrowedFd<'_>) -> Result<Written, Failure> {
        let (front, _) = self.bytes.as_slices();
        let portion = &front[..front.len().min(self.most)];
        match rustix::io::write(descriptor, portion) {
            Ok(count) => {
                self.bytes.drain(..count);
                Ok(Written::Some)
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(Written::Some),
            Err(Errno::PIPE) => Ok(Written::ReaderGone),
            Err(error) => Err(Failure::failed("write the command's output").because(error)),
        }
    }
}
