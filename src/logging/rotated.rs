//! The daemon's own log file, kept small by the daemon: clients, guests and VMMs all
//! make it write.
//!
//! ```text
//!  bangerd.log --full--> bangerd.log.1 (the one before is gone)     bangerd.log, begun anew
//! ```
//!
//! What is written to standard error past the logger (a panic) lands in the same file and
//! counts. What cannot be set aside is cut off: a log without its older part is better
//! than a full disk.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most bytes of each of the two files.
const LIMIT: u64 = 2 << 20;

/// Tells whoever shares the file of a new one: what it was, what it is.
type Redirect = fn(&Metadata, &File) -> io::Result<()>;

/// See the head of this file.
pub struct Rotated {
    path: PathBuf,
    file: File,
    redirect: Redirect,
}

impl Rotated {
    /// Standard error, if it is the file of this path.
    pub fn of_standard_error(path: &Path) -> Option<Rotated> {
        let file = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 0).ok()?;
        let file = File::from(file);
        let (now, named) = (file.metadata().ok()?, fs::symlink_metadata(path).ok()?);
        (now.is_file() && is_same(&now, &named)).then(|| Rotated {
            path: path.to_owned(),
            file,
            redirect: redirect_standard,
        })
    }

    fn make_room(&mut self, more: u64) -> io::Result<()> {
        let now = self.file.metadata()?;
        if now.len() == 0 || now.len().saturating_add(more) <= LIMIT {
            return Ok(());
        }
        match self.begin_anew(&now) {
            Ok(()) => Ok(()),
            Err(_) => self.file.set_len(0),
        }
    }

    fn begin_anew(&mut self, now: &Metadata) -> io::Result<()> {
        let older = older(&self.path);
        match fs::symlink_metadata(&self.path) {
            Ok(named) if is_same(now, &named) => self.set_aside(now, &older)?,
            // Somebody else has set ours aside: a second daemon, or the user.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let begun = append(&self.path).inspect_err(|_| {
            // No disk has no room for this; the next lines are looked for under our name.
            let _ = fs::rename(&older, &self.path);
        })?;
        (self.redirect)(now, &begun)?;
        self.file = begun;
        Ok(())
    }

    fn set_aside(&self, now: &Metadata, older: &Path) -> io::Result<()> {
        // One that grew without us (an older version's): its beginning is worth nothing.
        if now.len() > 2 * LIMIT {
            let mut whole = File::open(&self.path)?;
            whole.seek(SeekFrom::Start(now.len() - LIMIT))?;
            let mut end = Vec::new();
            whole.take(LIMIT).read_to_end(&mut end)?;
            let kept = append(older)?;
            kept.set_len(0)?;
            (&kept).write_all(&end)?;
            return fs::remove_file(&self.path);
        }
        fs::rename(&self.path, older)
    }
}

impl Write for Rotated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whatever the trouble is, the line is worth a try.
        let _ = self.make_room(bytes.len() as u64);
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a full log goes.
fn older(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Standard error, and standard output where it was the same file.
fn redirect_standard(before: &Metadata, now: &File) -> io::Result<()> {
    rustix::stdio::dup2_stderr(now)?;
    let output = rustix::fs::fstat(rustix::stdio::stdout())?;
    if (output.st_dev, output.st_ino) == (before.dev(), before.ino()) {
        rustix::stdio::dup2_stdout(now)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Room(tempfile::TempDir);

    impl Room {
        fn new() -> Room {
            Room(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("bangerd.log")
        }

        fn log(&self) -> Rotated {
            Rotated {
                path: self.path(),
                file: append(&self.path()).unwrap(),
                redirect: |_, _| Ok(()),
            }
        }

        /// Names, each with its size.
        fn files(&self) -> Vec<(String, u64)> {
            let entries = fs::read_dir(self.0.path()).unwrap().flatten();
            let named = entries.map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, entry.metadata().unwrap().len())
            });
            let mut files: Vec<_> = named.collect();
            files.sort();
            files
        }

        fn assert_bounded(&self) {
            let files = self.files();
            let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["bangerd.log", "bangerd.log.1"]);
            assert!(files.iter().all(|(_, size)| *size <= LIMIT), "{files:?}");
        }
    }

    /// Symptom: a guest that called without end filled the disk by way of this log.
    #[test]
    fn endless_lines_keep_two_bounded_files_with_the_newest() {
        let room = Room::new();
        let mut log = room.log();
        for number in 0..10_000 {
            // As the logger does, a whole line at once.
            let line = format!("{number:1000}\n");
            log.write_all(line.as_bytes()).unwrap();
        }
        room.assert_bounded();
        let newest = fs::read_to_string(room.path()).unwrap();
        assert!(newest.ends_with(" 9999\n"));
        let older = fs::read_to_string(older(&room.path())).unwrap();
        let next = newest
            .lines()
            .next()
            .unwrap()
            .trim()
            .parse::<u32>()
            .unwrap();
        assert!(older.ends_with(&format!(" {}\n", next - 1)));
    }

    #[test]
    fn a_log_that_has_grown_beyond_all_bounds_keeps_its_end() {
        let room = Room::new();
        let grown = format!("{}the last line\n", "x".repeat(5 << 20));
        fs::write(room.path(), grown).unwrap();
        writeln!(room.log(), "first").unwrap();
        room.assert_bounded();
        let older = fs::read_to_string(older(&room.path())).unwrap();
        assert!(older.ends_with("the last line\n"));
        assert_eq!(fs::read_to_string(room.path()).unwrap(), "first\n");
    }

    #[test]
    fn a_log_that_somebody_has_moved_goes_on_under_its_name() {
        let room = Room::new();
        let mut log = room.log();
        log.write_all(&vec![b'x'; 1 << 20]).unwrap();
        fs::rename(room.path(), older(&room.path())).unwrap();
        log.write_all(&vec![b'y'; 1 << 20]).unwrap();
        writeln!(log, "z").unwrap();
        assert_eq!(fs::read_to_string(room.path()).unwrap(), "z\n");
        room.assert_bounded();
    }

    #[test]
    fn a_log_that_cannot_be_set_aside_is_cut_off() {
        let room = Room::new();
        let mut log = room.log();
        fs::create_dir_all(older(&room.path()).join("in the way")).unwrap();
        for _ in 0..10 {
            log.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        assert!(fs::metadata(room.path()).unwrap().len() <= LIMIT);
    }

    #[test]
    fn standard_error_that_is_another_file_is_left_alone() {
        let room = Room::new();
        drop(room.log());
        assert!(Rotated::of_standard_error(&room.path()).is_none());
        assert!(Rotated::of_standard_error(Path::new("/none")).is_none());
    }
}
