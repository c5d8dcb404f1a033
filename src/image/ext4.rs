//! Writes a list of entries as an ext4 file system into a file.
//!
//! The bytes follow from the entries, their contents and the [`Shape`] alone: no clock,
//! no randomness, no mount, no privilege. Where the entries come from (a tar, a folder)
//! is the caller's; so is what they mean.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use mkext4::sink::FileSink;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, ROOT, SparseSeg, SpecialKind};
use sha2::{Digest, Sha256};

use super::job::{Job, at};
use crate::failure::{Failure, FailureKind};

/// The only block size of the writer, bytes.
pub const BLOCK: u64 = 4096;

/// One name in the file system, in the order of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, without `.` or `..`; empty for the root itself.
    pub path: String,
    /// What it is.
    pub node: Node,
    /// Owner, permissions and times.
    pub meta: Meta,
    /// Extended attributes in the kernel's form.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file of this many bytes.
    File(u64),
    /// A file with holes; the content is asked for whole, holes included.
    Sparse(Vec<SparseSeg>),
    /// A symbolic link to this text.
    Symlink(String),
    /// Another name of an earlier entry.
    Link(String),
    /// A device, pipe or socket.
    Special(SpecialKind),
}

/// What a file system is for, which decides how much room it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A root: may be written to where each VM has its own copy.
    Root,
    /// Only ever read.
    ReadOnly,
}

/// Everything about a file system that is not in its entries.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Decides the room.
    pub purpose: Purpose,
    /// The volume label, at most 16 bytes.
    pub label: &'static str,
    /// Its UUID is made of this text: the same text, the same UUID.
    pub identity: String,
    /// Time of making, seconds since the epoch.
    pub epoch: u64,
}

/// Gives the bytes of files, in the order of the entries.
pub trait Contents {
    /// Calls `consume` with the content of the entry of this number.
    ///
    /// # Errors
    /// What `consume` says, or the content cannot be read.
    fn give(
        &mut self,
        number: usize,
        consume: &mut dyn FnMut(&mut dyn Read) -> mkext4::Result<()>,
    ) -> mkext4::Result<()>;
}

/// Writes the file system; returns its size in bytes.
///
/// # Errors
/// An entry cannot be represented (it is named), a content is short, the disk is full;
/// cancelled.
pub fn write(
    job: &Job,
    entries: &[Entry],
    contents: &mut dyn Contents,
    shape: &Shape,
    target: &Path,
) -> Result<u64, Failure> {
    let what = format!("build the file system {}", target.display());
    let fault = |error: mkext4::Error| match &error {
        mkext4::Error::Io(error) => job.fault(what.clone(), error),
        _ => Failure::failed(what.clone()).because(&error),
    };
    let mut builder = FsBuilder::new(options(entries, shape)).map_err(fault)?;
    let handles = declare(&mut builder, entries)?;
    let layout = builder.seal().map_err(fault)?;
    let size = layout.image_len();
    let mut sink = FileSink::create(target, size).map_err(at("create", target))?;
    let mut writer = layout.writer(&mut sink).map_err(fault)?;
    let total: u64 = entries.iter().map(Entry::bytes).sum();
    let mut done = 0;
    for (number, entry) in entries.iter().enumerate() {
        if entry.bytes() == 0 {
            continue;
        }
        let handle = handles[number];
        let mut consume = |content: &mut dyn Read| {
            let watched = job.watched(content);
            writer.fill(handle, &mut DataOnly::new(watched, &entry.node))
        };
        contents.give(number, &mut consume).map_err(|error| {
            let failure = fault(error);
            match failure.kind {
                FailureKind::Cancelled => failure,
                _ => failure.because(format!("while copying {}", entry.path)),
            }
        })?;
        if (done >> 24) != ((done + entry.bytes()) >> 24) {
            job.count("write the file system", done + entry.bytes(), total);
        }
        done += entry.bytes();
    }
    writer.finish().map_err(fault)?;
    Ok(size)
}

impl Entry {
    fn bytes(&self) -> u64 {
        match &self.node {
            Node::File(size) => *size,
            Node::Sparse(segments) => segments.iter().map(length).sum(),
            Node::Directory | Node::Symlink(_) | Node::Link(_) | Node::Special(_) => 0,
        }
    }

    /// Blocks of 4 KiB that it takes, roughly; names count for their directory.
    fn blocks(&self) -> u64 {
        let data = match &self.node {
            Node::File(size) => size.div_ceil(BLOCK),
            Node::Sparse(segments) => segments.iter().map(data_blocks).sum(),
            Node::Directory => 1,
            Node::Symlink(target) => u64::from(target.len() > 59),
            Node::Link(_) | Node::Special(_) => 0,
        };
        data + u64::from(!self.xattrs.is_empty())
    }
}

fn length(segment: &SparseSeg) -> u64 {
    match segment {
        SparseSeg::Data(length) | SparseSeg::Hole(length) => *length,
    }
}

fn data_blocks(segment: &SparseSeg) -> u64 {
    match segment {
        SparseSeg::Data(length) => length.div_ceil(BLOCK),
        SparseSeg::Hole(_) => 0,
    }
}

/// Room for the entries and, in a root, for a third more.
fn options(entries: &[Entry], shape: &Shape) -> Options {
    let count = entries.len() as u64;
    let names: u64 = entries.iter().map(|e| e.path.len() as u64 + 16).sum();
    let blocks = entries.iter().map(Entry::blocks).sum::<u64>() + names / 2048;
    let (inodes, journal, size) = match shape.purpose {
        Purpose::Root => {
            let inodes = count * 3 / 2 + 16384;
            let bytes = (blocks * BLOCK) * 13 / 10 + inodes * 256 + (64 << 20);
            (inodes, 4096, bytes.next_multiple_of(16 << 20))
        }
        Purpose::ReadOnly => {
            let inodes = count + 64;
            let bytes = blocks * BLOCK + inodes * 256 + (12 << 20);
            (inodes, 1024, bytes.next_multiple_of(1 << 20))
        }
    };
    let mut options = Options::new(size, uuid(&shape.identity), shape.epoch as i64);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    options.label = Some(shape.label.to_owned());
    options.journal_blocks = Some(journal);
    options.reserved_percent = 0;
    options
}

/// A version 8 UUID (RFC 9562, section 5.8): 122 bits of the text's SHA-256.
fn uuid(text: &str) -> [u8; 16] {
    let digest = Sha256::digest(text);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// Declares every entry; the handle of each is at its number.
fn declare(builder: &mut FsBuilder, entries: &[Entry]) -> Result<Vec<InodeHandle>, Failure> {
    let mut names = Names::default();
    let mut handles = Vec::with_capacity(entries.len());
    for entry in entries {
        let handle = declare_one(builder, &mut names, entry)?;
        for (name, value) in &entry.xattrs {
            let value = super::acl::on_disk(name, value)
                .ok_or_else(|| bad(entry, format!("its access control list {name} is damaged")))?;
            builder
                .set_xattr(handle, name, &value)
                .map_err(|error| bad(entry, error))?;
        }
        handles.push(handle);
    }
    Ok(handles)
}

/// Every path declared so far.
#[derive(Default)]
struct Names {
    all: HashMap<String, (InodeHandle, bool)>,
}

fn bad(entry: &Entry, why: impl std::fmt::Display) -> Failure {
    Failure::failed(format!(
        "put /{} into the file system",
        entry.path.escape_debug()
    ))
    .because(why)
}

fn declare_one(
    builder: &mut FsBuilder,
    names: &mut Names,
    entry: &Entry,
) -> Result<InodeHandle, Failure> {
    let refuse = |error: mkext4::Error| bad(entry, error);
    if entry.path.is_empty() {
        builder.set_meta(ROOT, entry.meta).map_err(refuse)?;
        return Ok(ROOT);
    }
    let (parent, name) = names.parent(builder, entry)?;
    let meta = entry.meta;
    if let Some((handle, is_directory)) = names.all.get(&entry.path) {
        if *is_directory && entry.node == Node::Directory {
            builder.set_meta(*handle, meta).map_err(refuse)?;
            return Ok(*handle);
        }
        return Err(bad(entry, "the name is there twice"));
    }
    let handle = match &entry.node {
        Node::Directory => builder.mkdir(parent, name, meta),
        Node::File(size) => builder.file(parent, name, meta, *size),
        Node::Sparse(segments) => builder.file_sparse(parent, name, meta, segments),
        Node::Symlink(target) => builder.symlink(parent, name, target, meta),
        Node::Special(kind) => builder.mknod(parent, name, meta, *kind),
        Node::Link(target) => match names.all.get(target) {
            Some((handle, false)) => builder.hardlink(parent, name, *handle).map(|()| *handle),
            Some((_, true)) => return Err(bad(entry, format!("{target} is a directory"))),
            None => {
                return Err(bad(
                    entry,
                    format!("it is a link to {target}, which is not there"),
                ));
            }
        },
    };
    let handle = handle.map_err(refuse)?;
    let is_directory = entry.node == Node::Directory;
    names.all.insert(entry.path.clone(), (handle, is_directory));
    Ok(handle)
}

impl Names {
    /// The directory of an entry, made if it is missing, and its name in there.
    fn parent<'e>(
        &mut self,
        builder: &mut FsBuilder,
        entry: &'e Entry,
    ) -> Result<(InodeHandle, &'e str), Failure> {
        let (folders, name) = match entry.path.rsplit_once('/') {
            Some((folders, name)) => (folders, name),
            None => return Ok((ROOT, &entry.path)),
        };
        let mut parent = ROOT;
        let mut end = 0;
        for folder in folders.split('/') {
            end += folder.len();
            let path = &folders[..end];
            end += 1;
            parent = match self.all.get(path) {
                Some((handle, true)) => *handle,
                // A link there could lead anywhere: never followed.
                Some((_, false)) => return Err(bad(entry, format!("/{path} is no directory"))),
                None => {
                    let meta = Meta::new(0o755, 0, 0, entry.meta.mtime);
                    let made = builder.mkdir(parent, folder, meta);
                    let made = made.map_err(|error| bad(entry, error))?;
                    self.all.insert(path.to_owned(), (made, true));
                    made
                }
            };
        }
        Ok((parent, name))
    }
}

/// Leaves out of a content what a sparse file does not store.
struct DataOnly<'a, R> {
    inner: R,
    /// `None`: everything is stored.
    segments: Option<std::slice::Iter<'a, SparseSeg>>,
    left: u64,
}

impl<'a, R: Read> DataOnly<'a, R> {
    fn new(inner: R, node: &'a Node) -> DataOnly<'a, R> {
        DataOnly {
            inner,
            segments: match node {
                Node::Sparse(segments) => Some(segments.iter()),
                _ => None,
            },
            left: 0,
        }
    }
}

impl<R: Read> Read for DataOnly<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(segments) = &mut self.segments else {
            return self.inner.read(buffer);
        };
        while self.left == 0 {
            match segments.next() {
                None => return Ok(0),
                Some(SparseSeg::Data(length)) => self.left = *length,
                Some(SparseSeg::Hole(length)) => {
                    std::io::copy(&mut (&mut self.inner).take(*length), &mut std::io::sink())?;
                }
            }
        }
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}
