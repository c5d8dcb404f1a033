//! The log of a disk's writes, as device-mapper's target log-writes keeps it, and the
//! disk as it was at any point of it (the kernel's
//! Documentation/admin-guide/device-mapper/log-writes.rst; layouts from
//! drivers/md/dm-log-writes.c).
//!
//! ```text
//!  sector 0   magic, version, entries, size of a sector          (little-endian)
//!  then each  a sector with: sector, sectors, flags, bytes of a mark, the mark
//!             the data, none of a discard
//! ```
//!
//! A write that is not FUA is logged when a later flush is done, so what stands before a
//! flush is what was on the disk when that flush was reported, and no more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// These bytes at this place of the disk; without any it is a flush alone.
    Write {
        at: u64,
        bytes: Vec<u8>,
        is_barrier: bool,
    },
    /// Bytes of this stretch need not be kept.
    Discard { at: u64, length: u64 },
    /// What the test said at this point.
    Mark(String),
}

/// Reads a whole log.
pub fn read(log: &Path) -> Vec<Entry> {
    let log = File::open(log).unwrap();
    let mut head = [0; 32];
    log.read_exact_at(&mut head, 0).unwrap();
    let [magic, version, entries, rest] = words(&head);
    assert_eq!((magic, version), (MAGIC, 1));
    let sector = rest & 0xffff_ffff;
    let mut at = sector;
    let mut all = Vec::new();
    for _ in 0..entries {
        let (entry, next) = read_entry(&log, at, sector);
        all.push(entry);
        at = next;
    }
    all
}

fn words(bytes: &[u8]) -> [u64; 4] {
    [0, 8, 16, 24].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()))
}

/// The entry at this place, and the place of the next.
fn read_entry(log: &File, at: u64, sector: u64) -> (Entry, u64) {
    let mut head = vec![0; usize::try_from(sector).unwrap()];
    log.read_exact_at(&mut head, at).unwrap();
    let [first, count, flags, mark] = words(&head);
    let (data, length) = (at + sector, count * sector);
    if flags & MARK != 0 {
        let text = &head[32..32 + usize::try_from(mark).unwrap()];
        let text = String::from_utf8_lossy(text)
            .trim_end_matches('\0')
            .to_owned();
        return (Entry::Mark(text), data);
    }
    let at = first * sector;
    if flags & DISCARD != 0 {
        return (Entry::Discard { at, length }, data);
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    log.read_exact_at(&mut bytes, data).unwrap();
    let is_barrier = flags & (FLUSH | FUA) != 0;
    let entry = Entry::Write {
        at,
        bytes,
        is_barrier,
    };
    (entry, data + length)
}

/// Does to a copy of the disk what this entry says.
pub fn apply(entry: &Entry, disk: &File) {
    match entry {
        Entry::Write { at, bytes, .. } => disk.write_all_at(bytes, *at).unwrap(),
        // A disk may give back anything then; zeros are what ours gives.
        Entry::Discard { at, length } => {
            let zeros = vec![0; usize::try_from(*length).unwrap()];
            disk.write_all_at(&zeros, *at).unwrap();
        }
        Entry::Mark(_) => {}
    }
}

#[test]
fn a_log_reads_back_as_the_kernel_lays_it_out() {
    let sector = |words: [u64; 4], text: &[u8]| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(text);
        bytes.resize(512, 0);
        bytes
    };
    let log = [
        sector([MAGIC, 1, 4, 512], b""),
        sector([8, 1, FUA, 0], b""),
        vec![7; 512],
        sector([0, 0, MARK, 5], b"saved"),
        sector([16, 2, DISCARD, 0], b""),
        sector([0, 0, FLUSH, 0], b""),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), log.concat()).unwrap();
    let write = |at, bytes: Vec<u8>| Entry::Write {
        at,
        bytes,
        is_barrier: true,
    };
    let expected = [
        write(4096, vec![7; 512]),
        Entry::Mark("saved".to_owned()),
        Entry::Discard {
            at: 8192,
            length: 1024,
        },
        write(0, Vec::new()),
    ];
    assert_eq!(read(file.path()), expected);
}
