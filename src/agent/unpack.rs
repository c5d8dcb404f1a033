//! Takes a tar stream in and writes it below a directory.
//!
//! The archive is not trusted: every path is resolved inside the directory by the
//! kernel ([`Place`]), the last component is never followed, and what exists there is
//! replaced rather than written through. Everything belongs to root.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, linkat, mkdirat, openat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::place::Place;
use super::stream::{FrameStream, StreamError};
use crate::proto::agent::{AgentFailure, AgentFailureKind, INITIAL_CREDIT, Unpacked};
use crate::proto::frame::Kind;

/// Credit is given back in parts of this size.
const CREDIT_PART: u32 = INITIAL_CREDIT / 4;

/// Unpacks what the stream brings up to its `InputEnd`.
///
/// # Errors
/// Names the first entry that could not be written; what came before it stays.
pub fn receive(stream: &mut FrameStream, path: &Path) -> Result<Unpacked, AgentFailure> {
    if !path.is_absolute() {
        let what = format!("unpack to {}: the path is not absolute", path.display());
        return Err(AgentFailure {
            kind: AgentFailureKind::Malformed,
            what,
        });
    }
    let attempt = |error| failure(&format!("unpack to {}", path.display()), &error);
    fs::create_dir_all(path).map_err(attempt)?;
    let place = Place::at(path).map_err(attempt)?;
    let mut input = Input::new(stream);
    let unpacked = unpack(&mut input, &place)?;
    // The padding after the archive's end, up to the end of input.
    io::copy(&mut input, &mut io::sink()).map_err(attempt)?;
    Ok(unpacked)
}

fn unpack(input: &mut impl Read, place: &Place) -> Result<Unpacked, AgentFailure> {
    let mut archive = Archive::new(input);
    let mut done = Unpacked {
        entries: 0,
        bytes: 0,
    };
    let mut directories = Vec::new();
    let reading = |error| failure("read the archive", &error);
    for entry in archive.entries().map_err(reading)? {
        let mut entry = entry.map_err(reading)?;
        let path = entry.path().map_err(reading)?.into_owned();
        let attempt = |error| failure(&format!("unpack {}", path.display()), &error);
        let name = relative(&path).map_err(attempt)?;
        done.bytes += write(place, &name, &mut entry).map_err(attempt)?;
        done.entries += 1;
        if entry.header().entry_type() == EntryType::Directory {
            directories.push((name, entry.header().mtime().unwrap_or(0)));
        }
    }
    // Last, deepest first: writing into a directory changes its time.
    for (name, modified) in directories.iter().rev() {
        let attempt = |error| failure(&format!("unpack {}", name.display()), &error);
        let directory = place.directory(name).map_err(attempt)?;
        set_time(&directory, OsStr::new("."), *modified).map_err(attempt)?;
    }
    Ok(done)
}

/// Writes one entry; gives the bytes of its content.
fn write<R: Read>(place: &Place, name: &Path, entry: &mut Entry<'_, R>) -> io::Result<u64> {
    let kind = entry.header().entry_type();
    let mode = Mode::from_raw_mode(entry.header().mode()? & 0o7777);
    let modified = entry.header().mtime()?;
    if kind == EntryType::Directory {
        return directory(place, name, mode).map(|()| 0);
    }
    let (parent, last) = place.parent(name)?;
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let written = regular(&parent, last, mode, entry)?;
            set_time(&parent, last, modified)?;
            Ok(written)
        }
        EntryType::Symlink => {
            let target = link_target(entry)?;
            make_way(&parent, last)?;
            symlinkat(&*target, &parent, last)?;
            set_time(&parent, last, modified)?;
            Ok(0)
        }
        EntryType::Link => {
            let target = relative(&link_target(entry)?)?;
            hard_link(place, &target, &parent, last).map(|()| 0)
        }
        other => {
            let why = format!("an entry of type {other:?} is not taken");
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

fn directory(place: &Place, name: &Path, mode: Mode) -> io::Result<()> {
    if name.as_os_str().is_empty() {
        return Ok(());
    }
    let (parent, last) = place.parent(name)?;
    match mkdirat(&parent, last, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let made = place.open(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    Ok(fchmod(&made, mode)?)
}

fn regular<R: Read>(
    parent: &OwnedFd,
    name: &OsStr,
    mode: Mode,
    content: &mut Entry<'_, R>,
) -> io::Result<u64> {
    make_way(parent, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
    let written = io::copy(content, &mut file)?;
    fchmod(&file, mode)?;
    Ok(written)
}

fn hard_link(place: &Place, target: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let (target_parent, target_name) = place.parent(target)?;
    make_way(parent, name)?;
    Ok(linkat(
        &target_parent,
        target_name,
        parent,
        name,
        AtFlags::empty(),
    )?)
}

/// Takes away what is there, so that nothing is written through a link.
fn make_way(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "a directory is in its place",
        )),
        Err(error) => Err(error.into()),
    }
}

fn set_time(parent: impl AsFd, name: &OsStr, modified: u64) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: modified as i64,
            tv_nsec: 0,
        },
    };
    Ok(utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> io::Result<PathBuf> {
    let target = entry.link_name_bytes();
    let target = target
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a link without a target"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&target)))
}

/// The path without what makes it absolute; `..` is refused.
fn relative(path: &Path) -> io::Result<PathBuf> {
    path.components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a path with .. in it leads outside",
            )),
        })
        .collect()
}

fn failure(attempt: &str, error: &io::Error) -> AgentFailure {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AgentFailureKind::Full,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => AgentFailureKind::Malformed,
        _ => AgentFailureKind::Other,
    };
    AgentFailure {
        kind,
        what: format!("{attempt}: {error}"),
    }
}

/// The `Input` frames of a stream as one sequence of bytes.
struct Input<'s> {
    stream: &'s mut FrameStream,
    part: Vec<u8>,
    at: usize,
    ended: bool,
    allowance: u32,
    taken: u32,
}

impl Input<'_> {
    fn new(stream: &mut FrameStream) -> Input<'_> {
        Input {
            stream,
            part: Vec::new(),
            at: 0,
            ended: false,
            allowance: INITIAL_CREDIT,
            taken: 0,
        }
    }

    fn refill(&mut self) -> Result<(), StreamError> {
        if self.taken >= CREDIT_PART {
            self.stream.queue(Kind::Credit, &self.taken.to_be_bytes());
            self.stream.flush(None)?;
            self.allowance += self.taken;
            self.taken = 0;
        }
        let frame = self.stream.next_frame(None)?;
        match frame.kind {
            Kind::InputEnd => self.ended = true,
            Kind::Input => {
                let length = frame.payload.len() as u32;
                let left = self.allowance.checked_sub(length);
                self.allowance = left.ok_or(StreamError::OutOfTurn(Kind::Input))?;
                self.taken += length;
                self.part = frame.payload;
                self.at = 0;
            }
            other => return Err(StreamError::OutOfTurn(other)),
        }
        Ok(())
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() && !self.ended {
            self.refill().map_err(|error| match error {
                StreamError::Io(error) => error,
                other => io::Error::other(other),
            })?;
        }
        let count = (&self.part[self.at..]).read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use tar::{Builder, Header};

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header
    }

    fn link(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, target: &str) {
        let mut header = header(kind, 0o777, 0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    fn file(builder: &mut Builder<Vec<u8>>, name: &str, text: &str) {
        let mut header = header(EntryType::Regular, 0o755, text.len() as u64);
        builder
            .append_data(&mut header, name, text.as_bytes())
            .unwrap();
    }

    fn unpack_to(dir: &Path, archive: &[u8]) -> Result<Unpacked, AgentFailure> {
        unpack(&mut &archive[..], &Place::at(dir).unwrap())
    }

    /// A name as a hostile archive has it: the builder refuses to write such.
    fn with_raw_name(name: &[u8]) -> Vec<u8> {
        let mut header = header(EntryType::Regular, 0o644, 1);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.resize(512 * 2, b'x');
        archive.resize(512 * 4, 0);
        archive
    }

    #[test]
    fn files_links_modes_and_times_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = Builder::new(Vec::new());
        builder
            .append_data(
                &mut header(EntryType::Directory, 0o750, 0),
                "sub/",
                io::empty(),
            )
            .unwrap();
        file(&mut builder, "./sub/tool", "text");
        link(&mut builder, EntryType::Symlink, "sub/soft", "/etc/passwd");
        link(&mut builder, EntryType::Link, "hard", "sub/tool");
        let done = unpack_to(dir.path(), &builder.into_inner().unwrap()).unwrap();
        assert_eq!((done.entries, done.bytes), (4, 4));
        let found = fs::metadata(dir.path().join("sub/tool")).unwrap();
        assert_eq!(
            (found.mode() & 0o7777, found.mtime(), found.nlink()),
            (0o755, 1_700_000_000, 2)
        );
        let folder = fs::metadata(dir.path().join("sub")).unwrap();
        assert_eq!(
            (folder.mode() & 0o7777, folder.mtime()),
            (0o750, 1_700_000_000)
        );
        assert_eq!(
            fs::read_link(dir.path().join("sub/soft")).unwrap(),
            Path::new("/etc/passwd")
        );
    }

    #[test]
    fn names_that_lead_outside_are_refused() {
        for name in [&b"../escape"[..], b"a/../../escape"] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("root");
            fs::create_dir(&root).unwrap();
            let failure = unpack_to(&root, &with_raw_name(name)).unwrap_err();
            assert_eq!(failure.kind, AgentFailureKind::Malformed);
            assert!(!dir.path().join("escape").exists());
        }
    }

    #[test]
    fn an_absolute_name_and_a_planted_link_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink(outside.join("victim"), root.join("file")).unwrap();
        unpack_to(&root, &with_raw_name(b"/absolute")).unwrap();
        assert!(root.join("absolute").exists());
        // The link's target does not exist inside, so nothing can be made through it.
        assert!(unpack_to(&root, &with_raw_name(b"link/planted")).is_err());
        unpack_to(&root, &with_raw_name(b"file")).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(fs::symlink_metadata(root.join("file")).unwrap().is_file());
    }

    #[test]
    fn a_device_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = Builder::new(Vec::new());
        builder
            .append_data(&mut header(EntryType::Char, 0o600, 0), "null", io::empty())
            .unwrap();
        let failure = unpack_to(dir.path(), &builder.into_inner().unwrap()).unwrap_err();
        assert!(failure.what.contains("unpack null"), "{}", failure.what);
    }
}
