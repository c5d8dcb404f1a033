//! A template as a file of the cache.
//!
//! ```text
//!  what QEMU wrote of processors and board     read by QEMU, from the first byte on
//!  the guest's memory                          read by us: neither pages of zeros nor
//!                                              further copies of a page before
//!  index, JSON                                 which bytes of memory these are
//!  its length (8 bytes), CRC-32 (4), MAGIC     the sum over all that is before it
//! ```
//!
//! Nothing is synced: the sum is compared when a daemon uses a template for the first time, so
//! what a power cut left of one is none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::Crc;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::stock::Sum;
use crate::host::aside::{self, Aside, path_while_open};

const MAGIC: &[u8; 8] = b"bgrtmpl2";
/// What is behind the index, bytes.
const END: u64 = 20;
/// Longest index that is written and believed, bytes.
const INDEX_LIMIT: u64 = 16 << 20;
const PAGE: usize = 4096;
/// Pages are read and written so many bytes at a time.
const PORTION: usize = 1 << 20;
/// So many copies of a page are written at a time.
const REPEATED: usize = 16;
const ENDING: &str = "machine";
/// Templates that have not been used for longest are removed beyond these: bytes, number.
const MOST_BYTES: u64 = 1 << 30;
const MOST: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    /// Frequency of the time-stamp counter that the guest was told, kHz.
    tsc_khz: u64,
    /// Size of the guest's memory, bytes.
    memory: u64,
    /// Length of what QEMU wrote, bytes.
    state: u64,
    /// The parts of memory that are not zero, in their order.
    runs: Vec<Run>,
}

/// A part of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Where it begins, bytes.
    start: u64,
    /// Its length, bytes.
    length: u64,
    /// Whether it is one page, again and again, of which the file has one: that is what a
    /// kernel's description of its free memory looks like.
    repeats: bool,
}

impl Run {
    /// How much of the file it is.
    fn stored(&self) -> u64 {
        if self.repeats {
            PAGE as u64
        } else {
            self.length
        }
    }
}

/// A template that has been found.
#[derive(Debug)]
pub struct Template {
    path: PathBuf,
    file: File,
    index: Index,
    /// The index as it is written.
    text: Vec<u8>,
    /// CRC-32 of everything before, and of the index.
    sum: u32,
}

/// The folder that they are kept in.
#[derive(Debug)]
pub struct Shelf(PathBuf);

/// A guest's memory, as a file that has no name.
#[derive(Debug)]
pub struct Memory(File);

/// A template that is being written.
#[derive(Debug)]
pub struct Writing(Aside);

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A file in memory, of zeros.
pub fn in_memory(name: &str, size: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

impl Memory {
    /// So many bytes, all zero.
    pub fn new(size: u64) -> io::Result<Memory> {
        in_memory("banger-guest", size).map(Memory)
    }

    /// The path by which the VMM's launcher opens it, as long as this lives.
    pub fn path(&self) -> PathBuf {
        path_while_open(&self.0)
    }
}

impl Shelf {
    /// The folder at this path, which is made when something is put there.
    pub fn at(path: PathBuf) -> Shelf {
        Shelf(path)
    }

    /// Where the template of a key lies.
    pub fn name(&self, key: &str) -> PathBuf {
        self.0.join(format!("{key}.{ENDING}"))
    }

    /// The template of this key; `None` if there is none, or none that is whole.
    pub fn find(&self, key: &str, memory: u64) -> Option<Template> {
        let path = self.name(key);
        let file = File::options().read(true).write(true).open(&path).ok()?;
        match index_of(&file) {
            Ok((index, text, sum)) if index.memory == memory => {
                // How long it has not been used; without the time it goes earlier.
                let _ = file.set_modified(SystemTime::now());
                Some(Template {
                    path,
                    file,
                    index,
                    text,
                    sum,
                })
            }
            Ok(_) | Err(_) => {
                log::warn!("{} is no template; it is removed", path.display());
                remove(&path, &file);
                None
            }
        }
    }

    /// Begins one.
    pub fn begin(&self, key: &str) -> io::Result<Writing> {
        fs::create_dir_all(&self.0)?;
        Aside::begin(&self.name(key)).map(Writing)
    }

    /// Removes those that have not been used for longest, as far as there are too many.
    pub fn tidy(&self) -> io::Result<()> {
        self.keep(MOST_BYTES, MOST)
    }

    fn keep(&self, most_bytes: u64, most: usize) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if aside::is_abandoned(&path) {
                remove_if_there(&path)?;
                continue;
            }
            if path.extension().is_some_and(|ending| ending == ENDING)
                && let Ok(about) = fs::metadata(&path)
            {
                found.push((about.modified()?, about.blocks() * 512, path));
            }
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        let mut sum = 0;
        for (at, (_, size, path)) in found.iter().enumerate() {
            sum += size;
            if (sum > most_bytes && at > 0) || at >= most {
                remove_if_there(path)?;
            }
        }
        Ok(())
    }
}

impl Writing {
    /// Takes what QEMU writes, from its first byte on.
    pub fn file(&self) -> &File {
        self.0.file()
    }

    /// Adds the memory behind that and gives the whole its name.
    pub fn finish(self, memory: &Memory, tsc_khz: u64) -> io::Result<()> {
        let file = self.0.file();
        let state = file.metadata()?.len();
        let mut written = vec![0; usize::try_from(state).map_err(io::Error::other)?];
        file.read_exact_at(&mut written, 0)?;
        let mut crc = Crc::new();
        crc.update(&written);
        let mut kept = Kept {
            file,
            at: state,
            crc,
            runs: Vec::new(),
            last: [0; PAGE],
        };
        written_parts(&memory.0, |start, bytes| {
            let pages = bytes.chunks_exact(PAGE).zip(0..);
            pages.into_iter().try_for_each(|(page, number)| {
                let page = page.try_into().expect("a page long");
                kept.add(start + number * PAGE as u64, page)
            })
        })?;
        let Kept { at, crc, runs, .. } = kept;
        let index = Index {
            tsc_khz,
            memory: memory.0.metadata()?.len(),
            state,
            runs,
        };
        let end = end_of_file(&index, crc)?;
        file.write_all_at(&end, at)?;
        self.0.finish_checked()
    }
}

/// The index and what is behind it; the sum goes on over the index.
fn end_of_file(index: &Index, mut crc: Crc) -> io::Result<Vec<u8>> {
    let mut end = serde_json::to_vec(index)?;
    let length = end.len() as u64;
    if length > INDEX_LIMIT {
        return Err(invalid("its memory is in too many parts"));
    }
    crc.update(&end);
    end.extend(length.to_le_bytes());
    end.extend(crc.sum().to_le_bytes());
    end.extend(MAGIC);
    Ok(end)
}

/// The memory of a template as it is written.
struct Kept<'a> {
    file: &'a File,
    /// Where the next page goes.
    at: u64,
    crc: Crc,
    runs: Vec<Run>,
    /// The last page that was not zero.
    last: [u8; PAGE],
}

impl Kept<'_> {
    fn add(&mut self, start: u64, page: &[u8; PAGE]) -> io::Result<()> {
        const LENGTH: u64 = PAGE as u64;
        if *page == [0; PAGE] {
            return Ok(());
        }
        let same = *page == self.last;
        let last = self.runs.last_mut();
        let adjoining = last.filter(|run| run.start + run.length == start);
        match adjoining {
            Some(run) if same && (run.repeats || run.length == LENGTH) => {
                run.repeats = true;
                run.length += LENGTH;
                return Ok(());
            }
            // The run of copies begins with the page that it is a copy of.
            Some(run) if same => {
                run.length -= LENGTH;
                self.runs.push(Run {
                    start: start - LENGTH,
                    length: 2 * LENGTH,
                    repeats: true,
                });
                return Ok(());
            }
            Some(run) if !run.repeats => run.length += LENGTH,
            _ => self.runs.push(Run {
                start,
                length: LENGTH,
                repeats: false,
            }),
        }
        self.crc.update(page);
        self.file.write_all_at(page, self.at)?;
        self.at += LENGTH;
        self.last = *page;
        Ok(())
    }
}

/// Calls for each part of a file that is no hole, in portions.
fn written_parts(
    file: &File,
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; PORTION];
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let length = usize::try_from(end - at).map_or(PORTION, |left| left.min(PORTION));
            file.read_exact_at(&mut buffer[..length], at)?;
            take(at, &buffer[..length])?;
            at += length as u64;
        }
    }
}

/// The index, its text, and the sum.
fn index_of(file: &File) -> io::Result<(Index, Vec<u8>, u32)> {
    let size = file.metadata()?.len();
    let place = size.checked_sub(END).ok_or_else(|| invalid("too short"))?;
    let mut end = [0; END as usize];
    file.read_exact_at(&mut end, place)?;
    let (length, rest) = end.split_first_chunk().expect("it is longer");
    let (sum, magic) = rest.split_first_chunk().expect("it is longer");
    let (length, sum) = (u64::from_le_bytes(*length), u32::from_le_bytes(*sum));
    if magic != MAGIC || length > INDEX_LIMIT {
        return Err(invalid("it does not end as one"));
    }
    let start = place
        .checked_sub(length)
        .ok_or_else(|| invalid("too short"))?;
    let mut text = vec![0; (place - start) as usize];
    file.read_exact_at(&mut text, start)?;
    let index: Index = serde_json::from_slice(&text)?;
    let fits = |run: &Run| {
        let end = run.start.checked_add(run.length);
        end.is_some_and(|end| end <= index.memory) && run.length.is_multiple_of(PAGE as u64)
    };
    let stored = index.runs.iter().map(Run::stored);
    let parts = { stored }.try_fold(index.state, u64::checked_add);
    if !index.runs.iter().all(fits) || parts != Some(start) {
        return Err(invalid("its parts are not where its index says"));
    }
    Ok((index, text, sum))
}

impl Template {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The frequency that its guest was told, kHz.
    pub fn tsc_khz(&self) -> u64 {
        self.index.tsc_khz
    }

    /// The path by which the VMM's launcher opens it, as long as this lives.
    pub fn state(&self) -> PathBuf {
        path_while_open(&self.file)
    }

    /// Writes the memory to where it was. To compare the sum takes two thirds of that time
    /// again.
    ///
    /// # Errors
    /// The file is not as it was written (kind `InvalidData`, or `UnexpectedEof`), or no
    /// memory is left.
    pub fn fill(&self, memory: &Memory, sum: Sum) -> io::Result<()> {
        let compared = sum == Sum::Compared;
        let mut reading = Reading {
            file: &self.file,
            // From the memory on, unless the sum is asked for.
            at: if compared { 0 } else { self.index.state },
            crc: compared.then(Crc::new),
            buffer: vec![0; PORTION],
        };
        if compared {
            reading.portions(self.index.state, |_, _| Ok(()))?;
        }
        for run in &self.index.runs {
            match run.repeats {
                false => reading.portions(run.length, |done, bytes| {
                    memory.0.write_all_at(bytes, run.start + done)
                })?,
                true => reading.repeat(run, memory)?,
            }
        }
        let Some(mut crc) = reading.crc else {
            return Ok(());
        };
        crc.update(&self.text);
        match crc.sum() == self.sum {
            true => Ok(()),
            false => Err(invalid("its content is not what was written")),
        }
    }

    /// Removes it: it is of no use. Another one that has its name by now stays.
    pub fn discard(&self) {
        remove(&self.path, &self.file);
    }
}

/// Another daemon may tidy up as well.
fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove(path: &Path, file: &File) {
    let (Ok(named), Ok(ours)) = (fs::metadata(path), file.metadata()) else {
        return;
    };
    if (named.dev(), named.ino()) == (ours.dev(), ours.ino())
        && let Err(error) = fs::remove_file(path)
    {
        log::warn!("remove {}: {error}", path.display());
    }
}

/// A template as it is read.
struct Reading<'a> {
    file: &'a File,
    /// What comes next.
    at: u64,
    /// Over what has been read, if anybody asks.
    crc: Option<Crc>,
    buffer: Vec<u8>,
}

impl Reading<'_> {
    /// Calls for each portion of the next bytes, with how many came before.
    fn portions(
        &mut self,
        length: u64,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let portion = (length - done).min(self.buffer.len() as u64);
            let bytes = &mut self.buffer[..portion as usize];
            self.file.read_exact_at(bytes, self.at)?;
            if let Some(crc) = &mut self.crc {
                crc.update(bytes);
            }
            take(done, bytes)?;
            self.at += portion;
            done += portion;
        }
        Ok(())
    }

    /// Writes the next page again and again, many at a time and out of the cache.
    fn repeat(&mut self, run: &Run, memory: &Memory) -> io::Result<()> {
        let mut copies = Vec::new();
        self.portions(PAGE as u64, |_, page| {
            let count = (run.length as usize / PAGE).min(REPEATED);
            copies = page.repeat(count);
            Ok(())
        })?;
        let mut done = 0;
        while done < run.length {
            let length = (run.length - done).min(copies.len() as u64);
            memory
                .0
                .write_all_at(&copies[..length as usize], run.start + done)?;
            done += length;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
