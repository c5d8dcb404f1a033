//! Names that outlast a power cut.
//!
//! A file's content on the disk is worth nothing without its name there, and the name is
//! the folder's: fsync(2) of a file says nothing about it. The store's own writes do not
//! take the names of others to the disk with them either (fdatasync(2) of a file that does
//! not change its length writes no journal), so a row would say that disks exist, or are
//! gone, some seconds before that is true. Read next: [`super::aside`], [`super::directory`].

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// Returns when the names in a folder, those made and those removed, are on the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A file system that has nothing to write for a folder (fsync(2)).
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
        synced => synced,
    }
}

/// The same for the one folder that a path is a name in, if there is one.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        // A bare name is one in the working directory.
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => return Ok(()),
    };
    match sync_folder(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        synced => synced,
    }
}

/// The same for a file and the folder that it is in: a VM's folder gets to the disk with
/// each of its files, so that making it costs no write of its own.
pub fn sync_way(path: &Path) -> io::Result<()> {
    sync_name(path)?;
    path.parent().map_or(Ok(()), sync_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_folder_can_be_made_durable_and_missing_ones_are_none() {
        let root = tempfile::tempdir().unwrap();
        sync_name(&root.path().join("gone")).unwrap();
        sync_name(&root.path().join("no/such/folder")).unwrap();
        sync_name(Path::new("/")).unwrap();
        sync_name(Path::new("name")).unwrap();
        sync_folder(Path::new("/proc/self")).unwrap();
        let error = sync_folder(&root.path().join("gone")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
