//! Sends a directory or a file of the guest as a tar stream.
//!
//! A directory's entries are named relative to it, without one for itself; a file is
//! one entry with its name. Links are sent as links, hard links as such. A socket has
//! no place in an archive and is passed over, as tar does.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::stream::{FrameStream, StreamError};
use crate::proto::agent::{AgentFailure, AgentFailureKind};
use crate::proto::frame::{Kind, MAX_DATA};

/// Packs the path and ends with `OutputEnd`; the stream is left open.
///
/// # Errors
/// The path does not exist or cannot be read, or the peer is gone.
pub fn send(stream: &mut FrameStream, path: &Path) -> Result<(), AgentFailure> {
    pack(stream, path).map_err(|error| AgentFailure {
        kind: match error.kind() {
            io::ErrorKind::NotFound => AgentFailureKind::NotFound,
            _ => AgentFailureKind::Other,
        },
        what: format!("pack {}: {error}", path.display()),
    })
}

fn pack(stream: &mut FrameStream, path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    let mut packer = Packer {
        archive: Builder::new(Output {
            stream,
            part: Vec::with_capacity(MAX_DATA),
        }),
        links: HashMap::new(),
    };
    match (found.is_dir(), path.file_name()) {
        (false, Some(name)) => packer.entry(path, Path::new(name))?,
        _ => packer.children(path, Path::new(""))?,
    }
    packer.archive.into_inner()?.finish()
}

struct Packer<'s> {
    archive: Builder<Output<'s>>,
    /// The name under which a file with several was sent, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Packer<'_> {
    /// In the order of their names, so that equal trees give equal archives.
    fn children(&mut self, folder: &Path, name: &Path) -> io::Result<()> {
        let children: io::Result<Vec<_>> = fs::read_dir(folder)?
            .map(|child| Ok(child?.file_name()))
            .collect();
        let mut children = children?;
        children.sort();
        children
            .iter()
            .try_for_each(|child| self.entry(&folder.join(child), &name.join(child)))
    }

    fn entry(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        let kind = found.file_type();
        let mut header = header_of(&found);
        if kind.is_socket() {
            return Ok(());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return self
                .archive
                .append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.archive.append_data(&mut header, name, io::empty())?;
            return self.children(path, name);
        }
        if let Some(first) = self.first_name(&found, name) {
            header.set_entry_type(EntryType::Link);
            return self.archive.append_link(&mut header, name, first);
        }
        match kind.is_file() {
            true => self.regular(path, name, header),
            false => self.node(&found, name, header),
        }
    }

    /// A file that grows or shrinks meanwhile is sent with the size it had.
    fn regular(&mut self, path: &Path, name: &Path, mut header: Header) -> io::Result<()> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        header.set_size(size);
        let content = file.chain(io::repeat(0)).take(size);
        self.archive.append_data(&mut header, name, content)
    }

    fn node(&mut self, found: &Metadata, name: &Path, mut header: Header) -> io::Result<()> {
        let kind = found.file_type();
        header.set_entry_type(match () {
            () if kind.is_char_device() => EntryType::Char,
            () if kind.is_block_device() => EntryType::Block,
            () => EntryType::Fifo,
        });
        header.set_device_major(rustix::fs::major(found.rdev()))?;
        header.set_device_minor(rustix::fs::minor(found.rdev()))?;
        self.archive.append_data(&mut header, name, io::empty())
    }

    fn first_name(&mut self, found: &Metadata, name: &Path) -> Option<PathBuf> {
        if found.nlink() < 2 {
            return None;
        }
        let identity = (found.dev(), found.ino());
        let first = self.links.get(&identity).cloned();
        if first.is_none() {
            self.links.insert(identity, name.to_owned());
        }
        first
    }
}

fn header_of(found: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// Cuts what is written into `Output` frames; the peer's reading is the only brake.
struct Output<'s> {
    stream: &'s mut FrameStream,
    part: Vec<u8>,
}

impl Output<'_> {
    fn send(&mut self) -> io::Result<()> {
        self.stream.queue(Kind::Output, &self.part);
        self.part.clear();
        self.flush_stream()
    }

    fn flush_stream(&mut self) -> io::Result<()> {
        self.stream.flush(None).map_err(|error| match error {
            StreamError::Io(error) => error,
            other => io::Error::other(other),
        })
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.part.is_empty() {
            self.send()?;
        }
        self.stream.queue(Kind::OutputEnd, &[]);
        self.flush_stream()
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MAX_DATA - self.part.len());
        self.part.extend_from_slice(&bytes[..count]);
        if self.part.len() == MAX_DATA {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
