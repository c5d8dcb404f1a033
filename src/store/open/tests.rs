//! The file under a daemon that comes again, a second one, and a disk that dies.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use crate::model::vm::Phase;
use crate::plan::record::VmRecord;
use crate::store::fixture::{image, kernel, vm};

use super::*;

#[test]
fn saved_rows_are_there_at_the_next_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (mut store, loaded) = Store::open(&path).unwrap();
    assert_eq!(loaded, Loaded::default());
    let rows = [
        RowChange::PutVm(Box::new(vm())),
        RowChange::PutImage(image()),
        RowChange::PutKernel(kernel()),
    ];
    store.save(&rows).unwrap();
    drop(store);
    let (mut store, loaded) = Store::open(&path).unwrap();
    assert_eq!((loaded.vms, loaded.images), (vec![vm()], vec![image()]));
    store.save(&[RowChange::DropVm(vm().id)]).unwrap();
    drop(store);
    let (_, loaded) = Store::open(&path).unwrap();
    assert!(loaded.vms.is_empty() && loaded.kernels == [kernel()]);
}

#[test]
fn file_is_the_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _store = Store::open(&path).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn second_daemon_is_told_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _first = Store::open(&path).unwrap();
    let failure = Store::open(&path).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Busy);
    assert!(failure.what.contains("another bangerd"));
}

/// Symptom: a command right after the daemon's death was told that another has the store.
/// Window: the dead one's socket is closed, its files are not yet.
#[test]
fn daemon_that_is_just_dying_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (first, _) = Store::open(&path).unwrap();
    let second = path.clone();
    let waiting = std::thread::spawn(move || Store::open(&second).map(drop));
    drop(first);
    waiting.join().unwrap().unwrap();
}

#[test]
fn file_that_is_no_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let failure = Store::open(&path).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Storage);
    assert!(failure.what.ends_with("it is damaged"), "{failure}");
    assert!(failure.hint.unwrap().contains("store.redb.damaged`"));
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 8192]);
}

/// A disk that dies after so many writes: the last one is torn in half.
#[derive(Debug, Clone)]
struct DyingDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    writes_left: Arc<Mutex<u64>>,
}

impl DyingDisk {
    fn holding(bytes: Vec<u8>, writes: u64) -> DyingDisk {
        DyingDisk {
            bytes: Arc::new(Mutex::new(bytes)),
            writes_left: Arc::new(Mutex::new(writes)),
        }
    }

    fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn is_dead(&self) -> bool {
        *self.writes_left.lock().unwrap() == 0
    }

    fn alive(&self) -> std::io::Result<()> {
        match self.is_dead() {
            true => Err(std::io::Error::other("the disk is dead")),
            false => Ok(()),
        }
    }
}

impl StorageBackend for DyingDisk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let offset = offset as usize;
        out.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.alive()?;
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.alive()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.alive()?;
        let mut left = self.writes_left.lock().unwrap();
        *left -= 1;
        let written = if *left == 0 {
            data.len() / 2
        } else {
            data.len()
        };
        let offset = offset as usize;
        let mut bytes = self.bytes.lock().unwrap();
        bytes[offset..offset + written].copy_from_slice(&data[..written]);
        if *left == 0 {
            return Err(std::io::Error::other("the disk died"));
        }
        Ok(())
    }
}

fn opened(disk: &DyingDisk) -> Result<(Store, Loaded), Failure> {
    let database = redb::Builder::new()
        .set_cache_size(CACHE)
        .create_with_backend(disk.clone())
        .map_err(|error| refused("open the store", Path::new("store.redb"), &error))?;
    Store::with_database(database)
}

fn in_phase(phase: Phase) -> VmRecord {
    VmRecord { phase, ..vm() }
}

/// Symptom: a row half written. Window: the process dies inside a commit. Whatever
/// write was the last, the next opening finds the old row or the new one.
#[test]
fn save_that_dies_at_any_write_leaves_the_old_row_or_the_new() {
    let disk = DyingDisk::holding(Vec::new(), u64::MAX);
    let (mut store, _) = opened(&disk).unwrap();
    let old = RowChange::PutVm(Box::new(in_phase(Phase::Starting)));
    store.save(&[old]).unwrap();
    drop(store);
    let before = disk.content();
    let new = [RowChange::PutVm(Box::new(in_phase(Phase::Running)))];
    let mut seen = std::collections::BTreeSet::new();
    for writes in 1.. {
        let disk = DyingDisk::holding(before.clone(), writes);
        let saved = opened(&disk).and_then(|(mut store, _)| store.save(&new));
        let survivor = DyingDisk::holding(disk.content(), u64::MAX);
        // What the look before each opening sees of it.
        let seen_first = crate::store::copy::of_bytes(&disk.content(), Path::new("store.redb"));
        assert_eq!(seen_first.unwrap().vms.len(), 1, "{writes}");
        let (_, loaded) = opened(&survivor).unwrap();
        let [found] = loaded.vms.as_slice() else {
            panic!("after {writes} writes: {loaded:?}");
        };
        seen.insert(found.phase.to_string());
        assert!(saved.is_err() || found.phase == Phase::Running, "{writes}");
        if !disk.is_dead() {
            break;
        }
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}
