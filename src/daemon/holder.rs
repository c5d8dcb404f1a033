//! Which process has the store that we may not open: by the kernel's table of locks, for
//! it may have sockets elsewhere than we look.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, FailureKind};
use crate::host::layout::Layout;

/// The daemon that holds a store.
struct Holder {
    pid: u32,
    /// Where it listens, as far as we may see.
    socket: Option<PathBuf>,
}

/// Adds to a refusal of a store that another daemon has which one that is.
pub fn name_holder(failure: Failure, layout: &Layout) -> Failure {
    match holder(&layout.store()) {
        Some(holder) if failure.kind == FailureKind::Busy => holder.explain(failure, layout),
        _ => failure,
    }
}

impl Holder {
    fn explain(&self, failure: Failure, layout: &Layout) -> Failure {
        let pid = self.pid;
        let Some(socket) = &self.socket else {
            return failure.because(format!("it is process {pid}"));
        };
        let failure = failure.because(format!(
            "it is process {pid}, which listens on {}",
            socket.display()
        ));
        let runtime = socket.parent().unwrap_or(socket);
        if runtime == layout.runtime {
            return failure;
        }
        let runtime = runtime.display();
        failure.hint(format!(
            "Use that one with BANGER_RUNTIME_DIR={runtime}, or end it with `BANGER_RUNTIME_DIR={runtime} banger daemon stop`."
        ))
    }
}

fn holder(store: &Path) -> Option<Holder> {
    let wanted = fs::metadata(store).ok()?;
    let table = fs::read_to_string("/proc/locks").ok()?;
    let has_it_open = |pid: &u32| {
        let mut files = open_files(*pid).filter_map(|file| fs::metadata(file).ok());
        // The table's device is not what stat(2) tells of every file system: the file
        // itself is compared.
        files.any(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
    };
    let pids = table.lines().filter_map(|line| lock_of(line, wanted.ino()));
    let pid = pids
        .filter(|pid| *pid != std::process::id())
        .find(has_it_open)?;
    Some(Holder {
        pid,
        socket: listener_of(pid),
    })
}

/// The process of a line of proc_locks(5) about this inode:
/// `1: FLOCK  ADVISORY  WRITE 708 fe:00:5124 0 EOF`.
fn lock_of(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace();
    let pid = words.nth(4)?.parse().ok()?;
    let file = words.next()?.rsplit(':').next()?;
    (file.parse() == Ok(inode)).then_some(pid)
}

fn open_files(pid: u32) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// The named socket of a process that is called as a daemon's is.
fn listener_of(pid: u32) -> Option<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).ok()?;
    let sockets: Vec<PathBuf> = open_files(pid)
        .filter_map(|file| fs::read_link(file).ok())
        .collect();
    let mut named = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let inode = words.nth(6)?;
        let path = PathBuf::from(words.next()?);
        let is_open = sockets.contains(&PathBuf::from(format!("socket:[{inode}]")));
        (is_open && path.file_name()? == "bangerd.sock").then_some(path)
    });
    named.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_found_by_its_inode() {
        let line = "1: FLOCK  ADVISORY  WRITE 708 fe:00:5124 0 EOF";
        assert_eq!(lock_of(line, 5124), Some(708));
        assert_eq!(lock_of(line, 512), None);
        assert_eq!(
            lock_of("1: -> FLOCK ADVISORY WRITE 9 fe:00:5124 0 EOF", 5124),
            None
        );
        assert_eq!(lock_of("", 1), None);
    }
}
