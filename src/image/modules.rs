//! Which modules of a kernel must be loaded, and in which order.
//!
//! Reads what depmod(8) writes: `modules.dep` says what each module needs,
//! `modules.softdep` what it should find loaded, `modules.builtin` what the kernel has
//! in itself. Pure but for [`Module::read`], which also undoes the compression some
//! distributions ship modules in.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::job::at;
use crate::failure::Failure;

/// The index files of a kernel's module folder, as text.
#[derive(Debug, Clone, Copy)]
pub struct Index<'a> {
    /// `modules.dep`.
    pub dependencies: &'a str,
    /// `modules.softdep`.
    pub soft: &'a str,
    /// `modules.builtin`.
    pub builtin: &'a str,
}

/// A module file to load.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Module {
    /// Relative to the kernel's module folder.
    pub path: String,
}

/// The modules to load for the wanted ones, each after all that it needs.
///
/// Names may be written with `-` or `_`. What is built in needs no loading.
///
/// # Errors
/// A name that is neither a module nor built in.
pub fn closure<'n>(
    index: Index,
    wanted: impl IntoIterator<Item = &'n str>,
) -> Result<Vec<Module>, Failure> {
    let known = Known::parse(index);
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    for name in wanted {
        let key = canonical(name);
        if known.builtin.contains(&key) {
            continue;
        }
        let path = known.by_name.get(&key).ok_or_else(|| {
            Failure::failed(format!("find kernel module {name}"))
                .because("it is in neither modules.dep nor modules.builtin")
        })?;
        known.visit(path, &mut seen, &mut order);
    }
    Ok(order)
}

struct Known<'a> {
    by_name: HashMap<String, &'a str>,
    needs: HashMap<&'a str, Vec<&'a str>>,
    prefers: HashMap<String, Vec<String>>,
    builtin: HashSet<String>,
}

impl<'a> Known<'a> {
    fn parse(index: Index<'a>) -> Known<'a> {
        let needs: HashMap<&str, Vec<&str>> = index
            .dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| (path, needs.split_whitespace().collect()))
            .collect();
        Known {
            by_name: needs.keys().map(|path| (name_of(path), *path)).collect(),
            needs,
            prefers: index.soft.lines().filter_map(soft).collect(),
            builtin: index.builtin.lines().map(name_of).collect(),
        }
    }

    /// Depth first: modules.dep lists all that a module needs, but loading in the order
    /// of each one's own needs does not rely on the order within a line.
    fn visit(&self, path: &'a str, seen: &mut HashSet<&'a str>, order: &mut Vec<Module>) {
        if !seen.insert(path) {
            return;
        }
        let before = self.prefers.get(&name_of(path)).into_iter().flatten();
        let before = before.filter_map(|name| self.by_name.get(name).copied());
        let needed = self.needs.get(path).into_iter().flatten().copied();
        for other in before.chain(needed) {
            self.visit(other, seen, order);
        }
        order.push(Module {
            path: path.to_owned(),
        });
    }
}

/// `softdep overlay pre: a b post: c` says that `a` and `b` go first.
fn soft(line: &str) -> Option<(String, Vec<String>)> {
    let mut words = line.strip_prefix("softdep ")?.split_whitespace();
    let name = canonical(words.next()?);
    let before = words
        .skip_while(|word| *word != "pre:")
        .skip(1)
        .take_while(|word| !word.ends_with(':'))
        .map(canonical)
        .collect();
    Some((name, before))
}

/// The name a module file is loaded by: `kernel/drivers/virtio-rng.ko.xz` is `virtio_rng`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

impl Module {
    /// The name of its file once uncompressed: `virtio-rng.ko`.
    pub fn file_name(&self) -> String {
        let file = self.path.rsplit('/').next().unwrap_or(&self.path);
        let stem = file.split(".ko").next().unwrap_or(file);
        format!("{stem}.ko")
    }

    /// Its content, uncompressed, from a kernel's module folder.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn read(&self, folder: &Path) -> Result<Vec<u8>, Failure> {
        let path = folder.join(&self.path);
        let file = File::open(&path).map_err(at("open", &path))?;
        let extension = path.extension().and_then(|e| e.to_str());
        let mut bytes = Vec::new();
        let read = match extension {
            Some("xz") => lzma_rust2::XzReader::new(file, true).read_to_end(&mut bytes),
            Some("gz") => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes),
            Some("zst") => ruzstd::decoding::StreamingDecoder::new(file)
                .map_err(std::io::Error::other)
                .and_then(|mut decoder| decoder.read_to_end(&mut bytes)),
            _ => (&file).read_to_end(&mut bytes),
        };
        read.map_err(at("read", &path))?;
        match bytes.starts_with(b"\x7fELF") {
            true => Ok(bytes),
            false => {
                let what = format!("read kernel module {}", path.display());
                Err(Failure::failed(what).because("it is no ELF file"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const INDEX: Index = Index {
        dependencies: "\
kernel/net/vsock.ko:
kernel/net/virtio_transport.ko: kernel/net/common.ko kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko kernel/net/vsock.ko
kernel/net/common.ko: kernel/net/vsock.ko
kernel/virtio/virtio_ring.ko:
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/hw/virtio-rng.ko.xz: kernel/virtio/virtio.ko
kernel/fs/overlay.ko:
kernel/lib/libcrc.ko:
kernel/crypto/crc32c.ko:
",
        soft: "# comment\nsoftdep libcrc pre: crc32c missing post: overlay\n",
        builtin: "kernel/fs/ext4/ext4.ko\n",
    };

    fn order(wanted: &[&str]) -> Vec<String> {
        let modules = closure(INDEX, wanted.iter().copied()).unwrap();
        modules.iter().map(Module::file_name).collect()
    }

    #[test]
    fn each_module_comes_once_and_after_all_it_needs() {
        assert_eq!(
            order(&["virtio_transport", "virtio_rng", "vsock"]),
            [
                "vsock.ko",
                "common.ko",
                "virtio_ring.ko",
                "virtio.ko",
                "virtio_transport.ko",
                "virtio-rng.ko"
            ]
        );
    }

    #[test]
    fn soft_dependencies_that_exist_go_first() {
        assert_eq!(order(&["libcrc"]), ["crc32c.ko", "libcrc.ko"]);
    }

    #[test]
    fn what_is_built_in_is_skipped_and_the_unknown_is_named() {
        assert!(order(&["ext4"]).is_empty());
        let failure = closure(INDEX, ["nonesuch"]).unwrap_err();
        assert!(failure.what.contains("nonesuch"));
    }

    #[test]
    fn compressed_modules_are_read_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("m.ko");
        let content = [b"\x7fELF".as_slice(), &[7; 5000]].concat();
        std::fs::write(&plain, &content).unwrap();
        for (program, extension) in [("xz", "xz"), ("zstd", "zst"), ("gzip", "gz")] {
            let packed = Command::new(program)
                .arg("-c")
                .stdin(Stdio::from(File::open(&plain).unwrap()))
                .output()
                .unwrap();
            let path = format!("m.ko.{extension}");
            std::fs::write(folder.path().join(&path), packed.stdout).unwrap();
            let module = Module { path };
            assert_eq!(module.file_name(), "m.ko");
            assert!(module.read(folder.path()).unwrap() == content, "{program}");
        }
    }

    #[test]
    fn a_module_that_is_no_elf_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.ko"), "text").unwrap();
        let module = Module {
            path: "m.ko".to_owned(),
        };
        assert!(module.read(folder.path()).is_err());
    }
}
