//! The file: opened by one daemon at a time, read whole, written row by row.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, WriteTransaction,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;

use crate::failure::{Failure, FailureKind};
use crate::plan::record::{Loaded, RowChange};

use super::copy;
use super::migrate::migrate;
use super::rows::{self, Rows};

/// Bytes of cache: redb's default of 1 GiB is for databases, not for a few hundred rows.
const CACHE: usize = 8 << 20;

/// How long a killed daemon may take to be gone.
const DYING: Duration = Duration::from_secs(3);

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
        // Looked at in a copy first: to open the file for writing changes it already, redb
        // takes an empty one for new, and a damaged page is a panic of its. What the look
        // cannot see, because another daemon has the file, the opening proper says.
        copy::read(path)?;
        let created = match builder().create(path) {
            Err(DatabaseError::DatabaseAlreadyOpen) if is_let_go(path) => builder().create(path),
            created => created,
        };
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
        // One wait for the disk, not two: redb then knows by its checksums which commit was
        // the last whole one, and walks the file after a crash, as the look at a copy of it
        // does before each opening anyway.
        let transaction = self
            .database
            .begin_write()
            .map_err(|error| storage(ATTEMPT, error))?;
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
        rows_of(&table)
    }
}

/// All rows of a table, as they lie there.
pub(super) fn rows_of(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Rows, Failure> {
    const ATTEMPT: &str = "read the store";
    let mut found = Vec::new();
    for entry in table.iter().map_err(|error| storage(ATTEMPT, error))? {
        let (key, value) = entry.map_err(|error| storage(ATTEMPT, error))?;
        found.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(found)
}

/// Waits for a daemon that was killed: its socket is closed before its files are, so the
/// next one may meet its lock. Whether it has let go.
fn is_let_go(path: &Path) -> bool {
    let (sender, receiver) = std::sync::mpsc::channel();
    let file = File::open(path);
    // In a thread of its own, for a lock cannot be polled; it ends with the lock or with us.
    std::thread::spawn(move || {
        let locked = file.and_then(|file| file.lock_shared());
        // Nobody listens any more when it comes too late.
        drop(sender.send(locked));
    });
    matches!(receiver.recv_timeout(DYING), Ok(Ok(())))
}

/// How every store is opened.
pub(super) fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// Makes an empty store without a name, then gives it this one. If another daemon was
/// faster, its store is the one that counts.
fn make(path: &Path, opening: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let aside = path.with_extension("redb.new");
    let (unnamed, named) = match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(descriptor) => (File::from(descriptor), None),
        // A file system without unnamed files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            (make_file(&aside, opening)?, Some(&aside))
        }
        Err(error) => return Err(storage(opening, error)),
    };
    let file = unnamed
        .try_clone()
        .map_err(|error| storage(opening, error))?;
    let created = FileBackend::new(unnamed).and_then(|file| builder().create_with_backend(file));
    let database = created.map_err(|error| refused(opening, path, &error))?;
    // Written and closed: whoever opens it by its name takes the lock anew.
    drop(Store::with_database(database)?);
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let ours = named.unwrap_or(&descriptor);
    match linkat(CWD, ours, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(storage(opening, error)),
    }
    if let Some(named) = named {
        std::fs::remove_file(named).map_err(|error| storage(opening, error))?;
    }
    // Rows would be durable in a file whose name is not.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| storage(opening, error))
}

/// A file of that name, which replaces what a crash has left of it.
fn make_file(aside: &Path, opening: &str) -> Result<File, Failure> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(aside);
    file.map_err(|error| storage(opening, error))
}

/// Makes a failure of any error of the storage.
pub(super) fn storage(attempt: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Storage, attempt)
        .because(error)
        .hint("See with `df` whether the disk of the state directory is full, with `mount` whether it is read-only, and with `banger doctor` what else is wrong.")
}

/// What redb says to an opening, in our words.
pub(super) fn refused(opening: &str, path: &Path, error: &DatabaseError) -> Failure {
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
pub(super) fn damaged(opening: &str, path: &Path, error: &DatabaseError) -> Failure {
    Failure::new(FailureKind::Storage, format!("{opening}: it is damaged"))
        .because(error)
        .hint(way_out(path))
}

/// What can be done about a store that is damaged.
pub(super) fn way_out(path: &Path) -> String {
    let path = path.display();
    format!(
        "Put a copy of it back, or begin anew with `mv {path} {path}.damaged`: the VMs are then forgotten, the files of their disks stay."
    )
}

#[cfg(test)]
mod tests;
