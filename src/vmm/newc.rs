//! The cpio archive format that the Linux kernel unpacks as its initial RAM disk:
//! "newc", uncompressed (kernel, Documentation/driver-api/early-userspace/
//! buffer-format.rst).
//!
//! The same entries give the same bytes: times are 0, inode numbers count up from 1,
//! owners are root.

use std::io::{self, Write};

/// Writes an archive's entries in the order given; a folder before what is in it.
#[derive(Debug)]
pub struct Archive<W: Write> {
    output: W,
    written: u64,
    entries: u32,
}

/// File types of `st_mode` (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Archive<W> {
        Archive {
            output,
            written: 0,
            entries: 0,
        }
    }

    /// Adds a folder, mode 0755.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), b"")
    }

    /// Adds a file with these permission bits.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | permissions, (0, 0), content)
    }

    /// Adds a character device, mode 0600.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), b"")
    }

    /// Ends the archive and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.header("TRAILER!!!", [0; 3], (0, 0), 0)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other("a file of an archive is shorter than 4 GiB"))?;
        self.entries += 1;
        let links = if mode & DIRECTORY != 0 && mode & REGULAR == 0 {
            2
        } else {
            1
        };
        self.header(name, [self.entries, mode, links], device, size)?;
        self.put(content)?;
        self.pad()
    }

    /// The header, the name closed by NUL, and padding to a multiple of four.
    fn header(
        &mut self,
        name: &str,
        [inode, mode, links]: [u32; 3],
        (major, minor): (u32, u32),
        size: u32,
    ) -> io::Result<()> {
        let name_size = u32::try_from(name.len() + 1).expect("a name is shorter than 4 GiB");
        let (user, group, time, on_major, on_minor, checksum) = (0, 0, 0, 0, 0, 0);
        let fields: [u32; 13] = [
            inode, mode, user, group, links, time, size, on_major, on_minor, major, minor,
            name_size, checksum,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08X}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(b"\0")?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.output.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        let zeroes = [0; 4];
        self.put(&zeroes[..usize::try_from(missing).expect("less than four")])
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn an_entry_is_header_name_and_content_each_padded_to_four() {
        let mut archive = Archive::new(Vec::new());
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let expected = b"070701\
            00000001000081ED00000000000000000000000100000000\
            00000005000000000000000000000000000000000000000500000000\
            init\0\0hello\0\0\0";
        let expected: Vec<u8> = expected
            .iter()
            .copied()
            .filter(|byte| *byte != b' ')
            .collect();
        assert_eq!(bytes[..expected.len()], expected);
        assert!(bytes[expected.len()..].starts_with(b"070701"));
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn cpio_reads_what_was_written() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-tv", "--quiet", "--numeric-uid-gid"])
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("drwxr-xr-x"), "{text}");
        assert!(lines[1].starts_with("crw-------"), "{text}");
        assert!(lines[1].contains("5,   1"), "{text}");
        assert!(
            lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with("init"),
            "{text}"
        );
    }
}
