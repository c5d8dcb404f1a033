//! Versions of the whole store.
//!
//! The table names carry the version of their rows (`vms.v1`), the table `meta` that of
//! the whole. A store of a newer version is refused untouched: an older program does
//! not know what it would leave behind. A new store begins at the current version.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::failure::{Failure, FailureKind};

use super::open::storage;
use super::rows;

/// The version that this program writes.
pub const SCHEMA: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const KEY: &str = "schema";

/// Brings a store to the current version, tables included, in the caller's transaction.
///
/// # Errors
/// A newer version, or the storage itself.
pub fn migrate(transaction: &WriteTransaction) -> Result<(), Failure> {
    const ATTEMPT: &str = "read the version of the store";
    let mut meta = transaction
        .open_table(META)
        .map_err(|error| storage(ATTEMPT, error))?;
    let found = meta
        .get(KEY)
        .map_err(|error| storage(ATTEMPT, error))?
        .map(|version| version.value());
    match found {
        Some(version) if version > SCHEMA => return Err(newer(version)),
        Some(_) => {}
        None => {
            meta.insert(KEY, SCHEMA)
                .map_err(|error| storage(ATTEMPT, error))?;
        }
    }
    for table in [rows::VMS, rows::IMAGES, rows::KERNELS] {
        transaction
            .open_table(table)
            .map_err(|error| storage(ATTEMPT, error))?;
    }
    Ok(())
}

/// Refuses a newer version, and changes nothing. A store without a version is new.
///
/// # Errors
/// A newer version.
pub fn check_version(transaction: &ReadTransaction) -> Result<(), Failure> {
    let Ok(meta) = transaction.open_table(META) else {
        return Ok(());
    };
    match meta.get(KEY) {
        Ok(Some(version)) if version.value() > SCHEMA => Err(newer(version.value())),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn newer(version: u64) -> Failure {
    Failure::new(
        FailureKind::Storage,
        format!("open the store: it has version {version}, this program knows {SCHEMA}"),
    )
    .hint("Run the newer banger that wrote it, or set BANGER_STATE_DIR to another directory.")
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn database() -> redb::Database {
        let backend = InMemoryBackend::new();
        redb::Builder::new().create_with_backend(backend).unwrap()
    }

    #[test]
    fn new_store_gets_the_current_version_and_opens_again() {
        let database = database();
        for _ in 0..2 {
            let transaction = database.begin_write().unwrap();
            migrate(&transaction).unwrap();
            transaction.commit().unwrap();
        }
    }

    #[test]
    fn store_of_a_newer_version_is_refused_with_what_to_do() {
        let database = database();
        let transaction = database.begin_write().unwrap();
        {
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert(KEY, SCHEMA + 1).unwrap();
        }
        let failure = migrate(&transaction).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Storage);
        assert!(failure.hint.unwrap().contains("newer banger"));
    }
}
