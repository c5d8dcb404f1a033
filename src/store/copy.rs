//! A copy of the store in memory, for people who look: the file itself is never opened
//! for writing, so what a crash or a disk has made of it stays as it is.
//!
//! What redb repairs after a crash it repairs in the copy. Rows that this version does
//! not understand are there as bytes.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;

use redb::backends::InMemoryBackend;
use redb::{DatabaseError, ReadableDatabase, StorageBackend, TableError};

use crate::failure::{Failure, FailureKind};

use super::migrate::check_version;
use super::open::{builder, damaged, refused, rows_of, storage};
use super::rows::{self, Rows};

/// Largest file that is copied: a store of ten thousand VMs has some 50 MiB.
const LIMIT: u64 = 1 << 30;

/// All rows as they lie in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreRows {
    /// VMs by id.
    pub vms: Rows,
    /// Images by name.
    pub images: Rows,
    /// Kernels by name.
    pub kernels: Rows,
}

/// Reads the store of which no daemon is in charge; `None` when one is, which then has
/// to be asked.
///
/// # Errors
/// There is no store (`NotFound`), it cannot be read, or it is damaged (`Storage`).
pub fn read(path: &Path) -> Result<Option<StoreRows>, Failure> {
    let opening = format!("read the store {}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::not_found(opening).because("there is none yet").hint(
                "The first command that needs it makes it, such as `banger vm list`; BANGER_STATE_DIR says where.",
            ));
        }
        Err(error) => return Err(storage(&opening, error)),
    };
    // redb's own lock, shared: a daemon holds it exclusively, and cannot start meanwhile.
    match file.try_lock_shared() {
        Ok(()) => of(&mut file, path).map(Some),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(storage(&opening, error)),
    }
}

/// The rows of a store's file; `path` is for people.
///
/// # Errors
/// They cannot be read, or are damaged (`Storage`).
pub fn of(file: &mut File, path: &Path) -> Result<StoreRows, Failure> {
    let opening = format!("read the store {}", path.display());
    let mut bytes = Vec::new();
    let read = file.take(LIMIT).read_to_end(&mut bytes);
    read.map_err(|error| storage(&opening, error))?;
    of_bytes(&bytes, path)
}

/// The rows in a store's bytes; `path` is for people.
pub(super) fn of_bytes(bytes: &[u8], path: &Path) -> Result<StoreRows, Failure> {
    let opening = format!("read the store {}", path.display());
    if bytes.is_empty() {
        return Err(Failure::new(FailureKind::Storage, opening)
            .because("the file is empty")
            .hint(super::open::way_out(path)));
    }
    let memory = InMemoryBackend::new();
    let filled = memory
        .set_len(bytes.len() as u64)
        .and_then(|()| memory.write(0, bytes));
    filled.map_err(|error| storage(&opening, error))?;
    let mut builder = builder();
    // Without it a damaged page is a panic of redb's, not an error.
    builder.set_check_integrity_on_open(true);
    let created = builder.create_with_backend(memory);
    let database = created.map_err(|error| match error {
        // Memory does not fail: what looks like an error of a disk is what it holds.
        DatabaseError::Storage(_) => damaged(&opening, path, &error),
        other => refused(&opening, path, &other),
    })?;
    let transaction = database
        .begin_read()
        .map_err(|error| storage(&opening, error))?;
    check_version(&transaction)?;
    let rows = |table| match transaction.open_table(table) {
        Ok(table) => rows_of(&table),
        Err(TableError::TableDoesNotExist(_)) => Ok(Rows::new()),
        Err(error) => Err(storage(&opening, error)),
    };
    Ok(StoreRows {
        vms: rows(rows::VMS)?,
        images: rows(rows::IMAGES)?,
        kernels: rows(rows::KERNELS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::record::RowChange;
    use crate::store::Store;
    use crate::store::fixture::{image, kernel, vm};

    /// A store with a VM, an image and a kernel, at rest.
    fn filled(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("store.redb");
        let (mut store, _) = Store::open(&path).unwrap();
        let changes = [
            RowChange::PutVm(Box::new(vm())),
            RowChange::PutImage(image()),
            RowChange::PutKernel(kernel()),
        ];
        store.save(&changes).unwrap();
        path
    }

    #[test]
    fn store_at_rest_is_read_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let before = std::fs::read(&path).unwrap();
        let rows = read(&path).unwrap().unwrap();
        assert_eq!(rows.vms[0].0, "0badcafe");
        assert_eq!((rows.images.len(), rows.kernels.len()), (1, 1));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn store_of_a_running_daemon_is_not_read_behind_its_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let (store, _) = Store::open(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        // What it hands out instead is as complete, though it was not closed.
        let mut copy = File::open(&path).unwrap();
        assert_eq!(of(&mut copy, &path).unwrap().vms.len(), 1);
        drop(store);
    }

    /// Symptom: a store cut short by a full or dying disk. Whatever is left of it, it is
    /// refused with what to do or read whole, never half, and it stays as it is.
    #[test]
    fn store_cut_short_anywhere_is_refused_in_words_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let whole = std::fs::read(&path).unwrap();
        let parts = (0..64).map(|part| whole.len() * part / 64);
        for length in parts.chain([1, 100, 320, 4095, 4096, 5000, 8191, whole.len() - 1]) {
            let bytes = &whole[..length];
            std::fs::write(&path, bytes).unwrap();
            for looked in [read(&path).map(drop), Store::open(&path).map(drop)] {
                let failure = looked.expect_err(&format!("{length} bytes of it"));
                assert_eq!(failure.kind, FailureKind::Storage, "{failure}");
                let hint = failure.hint.unwrap();
                assert!(hint.contains("store.redb.damaged`"), "{length}: {hint}");
            }
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "{length}");
        }
    }

    #[test]
    fn store_with_garbage_in_any_page_is_refused_or_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let whole = std::fs::read(&path).unwrap();
        let expected = read(&path).unwrap().unwrap();
        for page in 0..whole.len() / 4096 {
            let mut bytes = whole.clone();
            bytes[page * 4096..][..4096].fill(0x5a);
            std::fs::write(&path, &bytes).unwrap();
            match read(&path) {
                Ok(rows) => assert_eq!(rows.unwrap(), expected, "page {page}"),
                Err(failure) => assert_eq!(failure.kind, FailureKind::Storage),
            }
            match Store::open(&path) {
                Ok((_, loaded)) => assert_eq!(loaded.vms, [vm()], "page {page}"),
                Err(failure) => assert_eq!(failure.kind, FailureKind::Storage),
            }
        }
    }
}
