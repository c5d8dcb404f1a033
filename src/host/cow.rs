//! The exception store of a snapshot: a sparse file that is long enough for all of the
//! root to change.
//!
//! Sparse, so its length costs nothing, and long enough, so a guest cannot overflow it
//! by writing, however much: what can still run out is the host's own disk. Longer than
//! needed is fine, shorter (after the root has been made larger) is grown, also while
//! the VM runs; it is never cut. What is in it is the kernel's format
//! (`drivers/md/dm-snap-persistent.c`) and is never looked into.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Presence};

use super::disk;
use super::durable::sync_way;
use super::fault::fault;

/// How much is copied when a part of the root is first written: 16 KiB, by the
/// measurement in docs/disks.md.
pub const CHUNK: Bytes = Bytes::kib(16);

/// Bytes of one entry of the store's index (`struct disk_exception`: two numbers).
const ENTRY: u64 = 16;

/// How long a store must be for a root of this size to change wholly: a header, the
/// chunks, and areas of index, one chunk for as many chunks as it has entries. Two areas
/// more, since the kernel clears the next one before it is needed.
pub fn length_for(root: Bytes) -> Bytes {
    let chunks = root.0.div_ceil(CHUNK.0);
    let areas = chunks.div_ceil(CHUNK.0 / ENTRY) + 2;
    Bytes((1 + chunks + areas) * CHUNK.0)
}

/// Makes the store if there is none, and longer if it is too short; on the disk when it
/// returns.
pub fn ensure(path: &Path, root: Bytes) -> Result<(), Fault> {
    let length = length_for(root);
    let attempt = || format!("make snapshot store {} for {root}", path.display());
    match probe(path, root)? {
        Presence::Present => return Ok(()),
        Presence::Absent => disk::check_space(path, Bytes(0), &attempt())?,
        Presence::Different if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) => {}
        Presence::Different => {
            let what = format!("{}: there is something that is no file", attempt());
            return Err(Fault::new(FaultKind::Other, what));
        }
    }
    let failed = |error: io::Error| fault(attempt(), error);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    let made = file.set_len(length.0).and_then(|()| file.sync_all());
    made.and_then(|()| sync_way(path)).map_err(failed)?;
    match probe(path, root)? {
        Presence::Present => Ok(()),
        Presence::Absent | Presence::Different => Err(Fault::new(
            FaultKind::Other,
            format!("{}: it did not become so long", attempt()),
        )),
    }
}

/// Present means a regular file that is long enough.
pub fn probe(path: &Path, root: Bytes) -> Result<Presence, Fault> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() >= length_for(root).0 => Ok(Presence::Present),
        Ok(_) => Ok(Presence::Different),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Presence::Absent),
        Err(error) => {
            let attempt = format!("examine snapshot store {}", path.display());
            Err(fault(attempt, error))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_store_holds_every_chunk_its_index_and_little_more() {
        for root in [Bytes::mib(64), Bytes::gib(8), Bytes::gib(50)] {
            let length = length_for(root).0;
            assert_eq!(length % CHUNK.0, 0);
            let chunks = root.0 / CHUNK.0;
            let index = chunks * ENTRY;
            assert!(length > root.0 + index, "{root}");
            assert!(length < root.0 + index + 5 * CHUNK.0, "{root}");
        }
    }

    #[test]
    fn a_store_is_made_sparse_grown_and_never_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.cow");
        assert_eq!(probe(&path, Bytes::mib(64)), Ok(Presence::Absent));
        ensure(&path, Bytes::mib(64)).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"SnAp", 0).unwrap();
        ensure(&path, Bytes::gib(50)).unwrap();
        ensure(&path, Bytes::mib(64)).unwrap();
        assert_eq!(probe(&path, Bytes::gib(50)), Ok(Presence::Present));
        assert_eq!(probe(&path, Bytes::gib(51)), Ok(Presence::Different));
        let mut head = [0; 4];
        fs::File::open(&path)
            .unwrap()
            .read_exact_at(&mut head, 0)
            .unwrap();
        assert_eq!(&head, b"SnAp");
        assert!(path.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn what_is_no_file_is_refused_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.cow");
        fs::create_dir(&path).unwrap();
        let fault = ensure(&path, Bytes::mib(64)).unwrap_err();
        assert!(fault.what.contains("no file"), "{fault}");
        assert!(path.is_dir());
    }
}
