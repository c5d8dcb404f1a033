//! Reads a tar archive as the entries of a file system.
//!
//! Nothing is unpacked: headers become [`Entry`]s, contents are read from the archive
//! when the file system is written. Owners, permissions, times to the nanosecond,
//! extended attributes, devices, hard links and holes are kept. What cannot be kept is
//! refused by name, never dropped.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use mkext4::{Meta, SparseSeg, SpecialKind};
use tar::{Archive, EntryType, Header};

use super::ext4::{BLOCK, Contents, Entry, Node};
use super::job::{Job, at};
use crate::failure::Failure;

/// An archive's entries, and the way back to their contents.
pub struct Tarball {
    file: File,
    /// In the order of the archive.
    pub entries: Vec<Entry>,
    /// Where the content of a path is.
    places: HashMap<String, Place>,
}

#[derive(Debug, Clone)]
enum Place {
    /// These bytes of the archive.
    At(u64),
    /// The member whose header is here has a map of holes.
    Member(u64),
    /// Not from the archive at all.
    Text(String),
}

impl Tarball {
    /// Reads all headers.
    ///
    /// # Errors
    /// The archive is damaged, or has something that a file system of ours cannot hold;
    /// cancelled.
    pub fn open(job: &Job, path: &Path) -> Result<Tarball, Failure> {
        let file = File::open(path).map_err(at("open", path))?;
        let what = format!("read {}", path.display());
        let mut archive = Archive::new(file.try_clone().map_err(at("open", path))?);
        let mut tarball = Tarball {
            file,
            entries: Vec::new(),
            places: HashMap::new(),
        };
        let members = archive
            .entries_with_seek()
            .map_err(|error| job.fault(&what, &error))?;
        for member in members {
            job.check(&what)?;
            let mut member = member.map_err(|error| job.fault(&what, &error))?;
            let (entry, place) = entry(&mut member).map_err(|why| {
                let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
                Failure::failed(format!("{what}: {}", name.escape_debug())).because(why)
            })?;
            tarball.places.insert(entry.path.clone(), place);
            tarball.entries.push(entry);
        }
        Ok(tarball)
    }

    /// The contents of entries of this archive, in the order of a list of them.
    pub fn contents<'a>(&'a self, entries: &'a [Entry]) -> Members<'a> {
        Members {
            tarball: self,
            entries,
        }
    }

    /// Gives an entry another path.
    pub fn rename(&mut self, from: &str, to: &str) {
        for entry in self.entries.iter_mut().filter(|entry| entry.path == from) {
            entry.path = to.to_owned();
        }
        if let Some(place) = self.places.remove(from) {
            self.places.insert(to.to_owned(), place);
        }
    }

    /// Gives a path a content that is not in the archive.
    pub fn override_text(&mut self, path: String, text: String) {
        self.places.insert(path, Place::Text(text));
    }
}

type Member<'a> = tar::Entry<'a, File>;

fn entry(member: &mut Member) -> Result<(Entry, Place), String> {
    let pax = Pax::read(member)?;
    let path = clean(utf8(&member.path_bytes(), "name")?)?;
    let header = member.header().clone();
    let (size, start) = (member.size(), member.raw_file_position());
    let mut place = Place::At(start);
    let node = match header.entry_type() {
        EntryType::Directory => Node::Directory,
        EntryType::Regular | EntryType::Continuous => Node::File(size),
        EntryType::GNUSparse => {
            place = Place::Member(member.raw_header_position());
            Node::Sparse(holes(member).map_err(|error| error.to_string())?)
        }
        EntryType::Symlink => Node::Symlink(link_target(member)?),
        EntryType::Link => Node::Link(clean(link_target(member)?)?),
        EntryType::Char => Node::Special(SpecialKind::Char {
            major: device(header.device_major())?,
            minor: device(header.device_minor())?,
        }),
        EntryType::Block => Node::Special(SpecialKind::Block {
            major: device(header.device_major())?,
            minor: device(header.device_minor())?,
        }),
        EntryType::Fifo => Node::Special(SpecialKind::Fifo),
        other => return Err(format!("members of type {other:?} are not known")),
    };
    let entry = Entry {
        path,
        node,
        meta: meta(&header, &pax)?,
        xattrs: pax.xattrs,
    };
    Ok((entry, place))
}

fn meta(header: &Header, pax: &Pax) -> Result<Meta, String> {
    let text = |error: io::Error| error.to_string();
    let number = |id: u64| u32::try_from(id).map_err(|_| format!("owner {id} is too large"));
    let mode = header.mode().map_err(text)? & 0o7777;
    let uid = number(pax.uid.map_or_else(|| header.uid().map_err(text), Ok)?)?;
    let gid = number(pax.gid.map_or_else(|| header.gid().map_err(text), Ok)?)?;
    let mtime = match pax.mtime {
        Some(time) => time,
        None => {
            let seconds = header.mtime().map_err(text)?;
            (
                i64::try_from(seconds).map_err(|_| "its time is out of range")?,
                0,
            )
        }
    };
    Ok(Meta::new(mode as u16, uid, gid, mtime))
}

fn device(number: io::Result<Option<u32>>) -> Result<u32, String> {
    let number = number.map_err(|error| error.to_string())?;
    number.ok_or_else(|| "it has no device number".to_owned())
}

fn utf8<'b>(bytes: &'b [u8], what: &str) -> Result<&'b str, String> {
    std::str::from_utf8(bytes).map_err(|_| format!("its {what} is not UTF-8"))
}

fn link_target(member: &Member) -> Result<String, String> {
    let target = member.link_name_bytes().ok_or("it is a link to nowhere")?;
    utf8(&target, "target").map(str::to_owned)
}

/// Takes `./` and slashes off a path; one that climbs is refused.
fn clean(path: impl AsRef<str>) -> Result<String, String> {
    let parts: Vec<&str> = path
        .as_ref()
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    match parts.contains(&"..") {
        true => Err("its path leads out of the root".to_owned()),
        false => Ok(parts.join("/")),
    }
}

/// What a member's extended header says (POSIX.1-2001 pax, and GNU tar's and star's
/// additions).
#[derive(Default)]
struct Pax {
    mtime: Option<(i64, u32)>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Pax {
    fn read(member: &mut Member) -> Result<Pax, String> {
        let mut pax = Pax::default();
        let text = |error: io::Error| error.to_string();
        let Some(extensions) = member.pax_extensions().map_err(text)? else {
            return Ok(pax);
        };
        for extension in extensions {
            let extension = extension.map_err(text)?;
            let key = utf8(extension.key_bytes(), "extended header")?;
            let value = extension.value_bytes();
            let number = || {
                utf8(value, "owner")?
                    .parse()
                    .map_err(|_| "bad owner".to_owned())
            };
            match key {
                "mtime" => pax.mtime = Some(time(utf8(value, "time")?)?),
                "uid" => pax.uid = Some(number()?),
                "gid" => pax.gid = Some(number()?),
                _ if key.starts_with("GNU.sparse.") => {
                    return Err("sparse members of the pax form are not known".to_owned());
                }
                _ if key.starts_with("SCHILY.acl.") => {
                    return Err("access control lists as text are not known".to_owned());
                }
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        pax.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(pax)
    }
}

/// Seconds with a fraction, such as `1700000000.123456789` or `-1.5`.
fn time(text: &str) -> Result<(i64, u32), String> {
    let bad = || format!("{text:?} is no time");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| bad())?;
    match whole.starts_with('-') && nanoseconds > 0 {
        // ext4 counts nanoseconds forwards from the second before.
        true => Ok((seconds - 1, 1_000_000_000 - nanoseconds)),
        false => Ok((seconds, nanoseconds)),
    }
}

/// The blocks of a content that are not all zero, and those that are.
fn holes(content: &mut dyn Read) -> io::Result<Vec<SparseSeg>> {
    let mut segments: Vec<SparseSeg> = Vec::new();
    let mut block = Vec::with_capacity(BLOCK as usize);
    loop {
        block.clear();
        let length = content.take(BLOCK).read_to_end(&mut block)? as u64;
        if length == 0 {
            return Ok(segments);
        }
        let is_hole = block.iter().all(|byte| *byte == 0);
        match (segments.last_mut(), is_hole) {
            (Some(SparseSeg::Hole(total)), true) | (Some(SparseSeg::Data(total)), false) => {
                *total += length;
            }
            (_, true) => segments.push(SparseSeg::Hole(length)),
            (_, false) => segments.push(SparseSeg::Data(length)),
        }
    }
}

/// The contents of a list of entries that came out of an archive.
pub struct Members<'a> {
    tarball: &'a Tarball,
    entries: &'a [Entry],
}

impl Contents for Members<'_> {
    fn give(
        &mut self,
        number: usize,
        consume: &mut dyn FnMut(&mut dyn Read) -> mkext4::Result<()>,
    ) -> mkext4::Result<()> {
        let entry = &self.entries[number];
        let mut file = &self.tarball.file;
        let missing = || io::Error::other("the archive has no such member");
        match self.tarball.places.get(&entry.path).ok_or_else(missing)? {
            Place::Text(text) => consume(&mut text.as_bytes()),
            Place::At(start) => {
                file.seek(SeekFrom::Start(*start))?;
                consume(&mut file)
            }
            Place::Member(start) => {
                file.seek(SeekFrom::Start(*start))?;
                let mut archive = Archive::new(file);
                let mut member = archive.entries()?.next().ok_or_else(missing)??;
                consume(&mut member)
            }
        }
    }
}
