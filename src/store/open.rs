//! The file: opened by one daemon at a time, read whole, written row by row.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, WriteTransaction,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;

use crate::failure::{Failure, FailureKind};
use crate::plan::record::{Loaded, RowChange};

use super::migrate::{check_version, migrate};
use super::rows::{self, Rows};

/// Bytes of cache: redb's default of 1 GiB is for databases, not for a few hundred rows.
const CACHE: usize = 8 << 20;

/// The open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens the store, made with mode 0600 if missing, and reads all of it. A new one
    /// has its name only once it is whole: a disk that is full, or a crash, in the middle
    /// of the making would leave a file that no later start could tell from a damaged one.
    ///
    /// # Errors
    /// `Busy` when another daemon has it open; `Storage` for a newer version or damage.
    pub fn open(path: &Path) -> Result<(Store, Loaded), Failure> {
        let opening = format!("open the store {}", path.display());
        if !path.exists() {
            make(path, &opening)?;
        }
        // Made here first: redb would make it with mode 0644.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| storage(&opening, error))?;
        refuse_newer(path)?;
        let created = builder().create(path);
        let database = created.map_err(|error| refused(&opening, path, &error))?;
        Store::with_database(database)
    }

    fn with_database(database: Database) -> Result<(Store, Loaded), Failure> {
        let store = Store { database };
        store.write(migrate)?;
        let loaded = store.load()?;
        Ok((store, loaded))
    }

    /// Makes all of these changes durable in one transaction.
    ///
    /// # Errors
    /// `Storage`: the caller must end, for memory must not run ahead of the disk.
    pub fn save(&mut self, changes: &[RowChange]) -> Result<(), Failure> {
        self.write(|transaction| {
            const ATTEMPT: &str = "write a row of the store";
            for change in changes {
                let (table, key, value) = rows::write(change)?;
                let mut table = transaction
                    .open_table(table)
                    .map_err(|error| storage(ATTEMPT, error))?;
                match value {
                    Some(value) => table.insert(key.as_str(), value.as_slice()),
                    None => table.remove(key.as_str()),
                }
                .map_err(|error| storage(ATTEMPT, error))?;
            }
            Ok(())
        })
    }

    fn write(
        &self,
        body: impl FnOnce(&WriteTransaction) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        const ATTEMPT: &str = "write the store";
        let mut transaction = self
            .database
            .begin_write()
            .map_err(|error| storage(ATTEMPT, error))?;
        // After a crash the next open then takes 0.6 ms instead of a full repair.
        transaction.set_quick_repair(true);
        body(&transaction)?;
        transaction
            .commit()
            .map_err(|error| storage(ATTEMPT, error))
    }

    fn load(&self) -> Result<Loaded, Failure> {
        let vms = self.rows(rows::VMS)?;
        let images = self.rows(rows::IMAGES)?;
        let kernels = self.rows(rows::KERNELS)?;
        rows::read(vms, images, kernels)
    }

    fn rows(&self, table: rows::Table) -> Result<Rows, Failure> {
        const ATTEMPT: &str = "read the store";
        let transaction = self
            .database
            .begin_read()
            .map_err(|error| storage(ATTEMPT, error))?;
        let table = transaction
            .open_table(table)
            .map_err(|error| storage(ATTEMPT, error))?;
        let mut found = Vec::new();
        for entry in table.iter().map_err(|error| storage(ATTEMPT, error))? {
            let (key, value) = entry.map_err(|error| storage(ATTEMPT, error))?;
            found.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(found)
    }
}

/// Looks at the version without writing: to open the file for writing changes it already.
/// A store that cannot be read so (a new one, one that a crash has left, one in use) is
/// left to the opening proper, which says what is wrong with it and looks again.
fn refuse_newer(path: &Path) -> Result<(), Failure> {
    let looked = builder().open_read_only(path);
    match looked.ok().and_then(|database| database.begin_read().ok()) {
        Some(transaction) => check_version(&transaction),
        None => Ok(()),
    }
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// Makes an empty store without a name, then gives it this one. If another daemon was
/// faster, its store is the one that counts.
fn make(path: &Path, opening: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let unnamed = match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(descriptor) => File::from(descriptor),
        // A file system without unnamed files: made under its name when it is opened.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Ok(()),
        Err(error) => return Err(storage(opening, error)),
    };
    let file = unnamed
        .try_clone()
        .map_err(|error| storage(opening, error))?;
    let created = FileBackend::new(unnamed).and_then(|file| builder().create_with_backend(file));
    let database = created.map_err(|error| refused(opening, path, &error))?;
    // Written and closed: whoever opens it by its name takes the lock anew.
    drop(Store::with_database(database)?);
    let ours = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, ours, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(storage(opening, error)),
    }
    // Rows would be durable in a file whose name is not.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| storage(opening, error))
}

/// Makes a failure of any error of the storage.
pub(super) fn storage(attempt: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Storage, attempt)
        .because(error)
        .hint("See with `df` whether the disk of the state directory is full, and with `banger doctor` what else is wrong.")
}

fn refused(opening: &str, path: &Path, error: &DatabaseError) -> Failure {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Failure::new(
            FailureKind::Busy,
            format!("{opening}: another bangerd has it open"),
        )
        .hint("Use that one, or end it with `banger daemon stop`."),
        DatabaseError::Storage(StorageError::Corrupted(_)) => damaged(opening, path, error),
        DatabaseError::Storage(StorageError::Io(cause))
            if cause.kind() == ErrorKind::InvalidData =>
        {
            damaged(opening, path, error)
        }
        error => storage(opening, error),
    }
}

/// Nothing is thrown away by itself: the disks of the VMs lie beside the store.
fn damaged(opening: &str, path: &Path, error: &DatabaseError) -> Failure {
    let path = path.display();
    Failure::new(FailureKind::Storage, format!("{opening}: it is damaged"))
        .because(error)
        .hint(format!(
            "Put a copy of it back, or begin anew with `mv {path} {path}.damaged`: the VMs are then forgotten, the files of their disks stay."
        ))
}

#[cfg(test)]
mod tests;
