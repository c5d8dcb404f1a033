//! What a folder of the store says of itself, and whether that is still true.
//!
//! `manifest.json` lists every file with its size and digest. The content id is made of
//! them, so a manifest that was changed does not fit its folder's name.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::job::{Job, at};
use crate::failure::{Failure, FailureKind};
use crate::model::ids::ContentId;
use crate::model::units::Bytes;

/// The manifest's place in its folder.
pub const FILE: &str = "manifest.json";
/// The form that is written here.
const VERSION: u32 = 1;
/// Digests are made of pieces of this many bytes.
const CHUNK: usize = 1 << 20;

/// What `manifest.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of this file.
    v: u32,
    /// The catalogue entry it was first made for.
    pub name: String,
    /// Package and version, or recipe and suite, for people.
    pub source: String,
    /// What `uname -r` prints (kernels only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Seconds since the epoch.
    pub created_at: u64,
    /// Everything in the folder but this file, sorted by path.
    pub files: Vec<FileFacts>,
}

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Relative to the folder.
    pub path: String,
    /// Bytes, holes included.
    pub size: u64,
    /// Of all bytes, in hexadecimal digits.
    pub sha256: String,
}

/// How much a check reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Sizes and the first block of each file: microseconds, before every start.
    Quick,
    /// Every byte.
    Full,
}

impl Manifest {
    /// Reads the digest of every file under a folder.
    ///
    /// # Errors
    /// A file cannot be read; cancelled.
    pub fn of(job: &Job, folder: &Path, name: &str, source: String) -> Result<Manifest, Failure> {
        let mut files = Vec::new();
        job.stage("compute the digest", "");
        digest_tree(job, folder, "", &mut files)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Manifest {
            v: VERSION,
            name: name.to_owned(),
            source,
            release: None,
            created_at: now.map_or(0, |age| age.as_secs()),
            files,
        })
    }

    /// The identity of these files: of a single one, its own digest; of several, the
    /// digest of the lines that `sha256sum` would print for them.
    pub fn content(&self) -> ContentId {
        let digest = match self.files.as_slice() {
            [only] => only.sha256.clone(),
            many => {
                let lines = many.iter().map(|f| format!("{}  {}\n", f.sha256, f.path));
                hex(&Sha256::digest(lines.collect::<String>()))
            }
        };
        digest[..16].parse().expect("sixteen hexadecimal digits")
    }

    /// Writes the manifest into its folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).expect("plain fields") + "\n";
        fs::write(&path, text).map_err(at("write", &path))
    }

    /// Reads a folder's manifest; it must fit the folder's name.
    ///
    /// # Errors
    /// It is missing, unreadable, or of other content.
    pub fn read(folder: &Path, content: &ContentId) -> Result<Manifest, Failure> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(at("read", &path))?;
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|error| Failure::failed(format!("read {}", path.display())).because(error))?;
        // First: the content is made of these digits.
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(is_digit);
        let sound = manifest.files.iter().all(|file| is_digest(&file.sha256))
            && manifest.v == VERSION
            && manifest.content() == *content;
        match sound {
            true => Ok(manifest),
            false => Err(Failure::failed(format!("read {}", path.display()))
                .because(format!("it does not describe content {content}"))),
        }
    }

    /// Compares the files of a folder with this manifest.
    ///
    /// # Errors
    /// A file is missing, of another size or of other content; cancelled.
    pub fn verify(&self, job: &Job, folder: &Path, depth: Depth) -> Result<(), Failure> {
        for file in &self.files {
            let path = folder.join(&file.path);
            let opened = file.look_at(&path)?;
            if depth == Depth::Full && digest(job, &opened, &path)? != file.sha256 {
                return Err(damaged(&path, "its digest is another one"));
            }
        }
        Ok(())
    }

    /// Bytes that the folder takes on the disk.
    pub fn allocated(&self, folder: &Path) -> Bytes {
        let blocks = self.files.iter().map(|file| {
            let facts = fs::metadata(folder.join(&file.path));
            // st_blocks counts units of 512 bytes (stat(2)).
            facts.map_or(0, |facts| facts.blocks() * 512)
        });
        Bytes(blocks.sum())
    }

    /// The size of one of its files, bytes.
    pub fn size_of(&self, path: &str) -> Bytes {
        let file = self.files.iter().find(|file| file.path == path);
        Bytes(file.map_or(0, |file| file.size))
    }
}

/// The quick check of a folder: no file is read but its first block. Before every start.
///
/// # Errors
/// The folder, its manifest or a file in it is missing or damaged.
pub fn check(folder: &Path, content: &ContentId) -> Result<(), Failure> {
    let manifest = Manifest::read(folder, content)?;
    for file in &manifest.files {
        file.look_at(&folder.join(&file.path))?;
    }
    Ok(())
}

impl FileFacts {
    /// Opens the file if its size and its beginning are right.
    fn look_at(&self, path: &Path) -> Result<File, Failure> {
        let file = File::open(path).map_err(at("open", path))?;
        let size = file.metadata().map_err(at("read", path))?.len();
        if size != self.size {
            let damage = format!("it has {size} bytes instead of {}", self.size);
            return Err(damaged(path, damage));
        }
        match first_block(&file, &self.path, size) {
            Some(damage) => Err(damaged(path, damage)),
            None => Ok(file),
        }
    }
}

fn damaged(path: &Path, damage: impl std::fmt::Display) -> Failure {
    let what = format!("check {}", path.display());
    Failure::new(FailureKind::Storage, what).because(damage)
}

/// What is wrong with the beginning of a file that claims to be an ext4 or ELF one.
fn first_block(file: &File, name: &str, size: u64) -> Option<String> {
    let mut block = [0; 2048];
    let length = usize::try_from(size).unwrap_or(usize::MAX).min(block.len());
    if let Err(error) = file.read_exact_at(&mut block[..length], 0) {
        return Some(format!("its beginning cannot be read: {error}"));
    }
    let is_elf = name == "vmlinux" || name.ends_with(".ko");
    if is_elf && !block.starts_with(b"\x7fELF") {
        return Some("it is no ELF file".to_owned());
    }
    if name.ends_with(".ext4") {
        // Super block at 1024: s_blocks_count_lo at 4, s_magic at 56 (linux/fs/ext4/ext4.h).
        let blocks = u32::from_le_bytes(block[1028..1032].try_into().expect("four bytes"));
        if block[1080..1082] != [0x53, 0xef] || u64::from(blocks) * super::ext4::BLOCK != size {
            return Some("its super block is damaged".to_owned());
        }
    }
    None
}

fn digest_tree(
    job: &Job,
    folder: &Path,
    prefix: &str,
    files: &mut Vec<FileFacts>,
) -> Result<(), Failure> {
    let here = folder.join(prefix);
    let mut names = Vec::new();
    for entry in fs::read_dir(&here).map_err(at("read", &here))? {
        names.push(entry.map_err(at("read", &here))?.file_name());
    }
    names.sort();
    for name in names {
        let name = name.to_string_lossy();
        if name.starts_with('.') || name == FILE {
            continue;
        }
        let relative = match prefix.is_empty() {
            true => name.into_owned(),
            false => format!("{prefix}/{name}"),
        };
        let path = folder.join(&relative);
        let facts = fs::symlink_metadata(&path).map_err(at("read", &path))?;
        if facts.is_dir() {
            digest_tree(job, folder, &relative, files)?;
            continue;
        }
        let file = File::open(&path).map_err(at("open", &path))?;
        files.push(FileFacts {
            sha256: digest(job, &file, &path)?,
            path: relative,
            size: facts.len(),
        });
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal digits.
fn digest(job: &Job, file: &File, path: &Path) -> Result<String, Failure> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut reader = job.watched(file);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex(&sha.finalize())),
            Ok(count) => sha.update(&buffer[..count]),
            Err(error) => return Err(job.fault(format!("read {}", path.display()), &error)),
        }
    }
}

/// Bytes as lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::with_job;
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("initrd-modules")).unwrap();
        fs::write(folder.path().join("vmlinux"), b"\x7fELF and more").unwrap();
        fs::write(folder.path().join("initrd-modules/order"), "a.ko\n").unwrap();
        folder
    }

    #[test]
    fn a_manifest_is_read_back_and_fits_its_content() {
        let folder = folder();
        with_job(|job| {
            let manifest = Manifest::of(job, folder.path(), "k", "deb".to_owned()).unwrap();
            manifest.write(folder.path()).unwrap();
            let read = Manifest::read(folder.path(), &manifest.content()).unwrap();
            assert_eq!(read, manifest);
            let other = "0000000000000000".parse().unwrap();
            assert!(Manifest::read(folder.path(), &other).is_err());
        });
    }

    #[test]
    fn a_digest_that_is_none_is_damage_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "abc").unwrap();
        with_job(|job| {
            let mut manifest = Manifest::of(job, folder.path(), "i", String::new()).unwrap();
            let content = manifest.content();
            for damaged in ["ä".repeat(32), "Z".repeat(64), "short".to_owned()] {
                manifest.files[0].sha256 = damaged;
                manifest.write(folder.path()).unwrap();
                assert!(Manifest::read(folder.path(), &content).is_err());
            }
        });
    }

    #[test]
    fn the_content_of_a_single_file_is_its_own_digest() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "abc").unwrap();
        with_job(|job| {
            let manifest = Manifest::of(job, folder.path(), "i", String::new()).unwrap();
            // SHA-256 of "abc", FIPS 180-2 appendix B.1.
            assert_eq!(manifest.content().as_str(), "ba7816bf8f01cfea");
        });
    }

    #[test]
    fn truncation_is_seen_quickly_and_a_changed_byte_by_the_full_check() {
        let folder = folder();
        let vmlinux = folder.path().join("vmlinux");
        with_job(|job| {
            let manifest = Manifest::of(job, folder.path(), "k", String::new()).unwrap();
            let check = |depth| manifest.verify(job, folder.path(), depth);
            check(Depth::Full).unwrap();
            fs::write(&vmlinux, b"\x7fELF and mare").unwrap();
            check(Depth::Quick).unwrap();
            let failure = check(Depth::Full).unwrap_err();
            assert!(failure.to_string().contains("digest"), "{failure}");
            fs::write(&vmlinux, b"\x7fELF").unwrap();
            let failure = check(Depth::Quick).unwrap_err();
            assert!(failure.to_string().contains("4 bytes instead of"));
            fs::write(&vmlinux, b"garbage at once").unwrap();
            assert!(check(Depth::Quick).is_err());
            manifest.write(folder.path()).unwrap();
            assert!(super::check(folder.path(), &manifest.content()).is_err());
            fs::write(folder.path().join(FILE), "garbage").unwrap();
            let failure = super::check(folder.path(), &manifest.content()).unwrap_err();
            assert!(failure.what.contains(FILE), "{failure}");
        });
    }
}
