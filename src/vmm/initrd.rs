//! The initial RAM disk of a guest: our own program as `/init`, and the kernel modules
//! that it must load before it can see its disks.
//!
//! ```text
//!  /init             our program, as it runs here
//!  /modules/order    file names, one a line, in load order
//!  /modules/*.ko
//!  /dev/console      for the kernel to give to /init
//!  /dev/null         for /init itself where the console cannot be opened: a Rust
//!                    program does not start without its three standard descriptors
//! ```
//!
//! One per program and kernel, made once, cached and shared. Uncompressed: a guest
//! under a translator unpacks slower than the host reads.
//!
//! That of a machine which becomes a template ([`super::template`]) has a few modules more,
//! and first a table for the kernel. It is written for one boot.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::host::aside::Aside;
use crate::host::fault::fault;
use crate::model::ids::ContentId;
use crate::plan::step::{Fault, FaultKind};

use super::newc::Archive;

/// Where a kernel's folder lists the modules of its initial RAM disk.
const MODULES: &str = "initrd-modules";
/// The list there, and the one for a machine that is to become a template.
const ORDER: &str = "order";
const TEMPLATE_ORDER: &str = "template-order";
/// Changes with the layout of the archive, so that an old one is not taken for a new.
const LAYOUT: &str = "2";

/// Our own program, as a file that guests run.
#[derive(Debug)]
pub struct OwnProgram {
    path: PathBuf,
    digest: OnceLock<String>,
}

impl OwnProgram {
    /// The program at this path; its content must not change while this lives.
    pub fn at(path: impl Into<PathBuf>) -> OwnProgram {
        OwnProgram {
            path: path.into(),
            digest: OnceLock::new(),
        }
    }

    /// The running program. The link leads to its inode, so it is the same content
    /// even if the file has been replaced or removed meanwhile.
    pub fn running() -> OwnProgram {
        OwnProgram::at("/proc/self/exe")
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of its content, hexadecimal; read once.
    pub(super) fn digest(&self) -> io::Result<&str> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest);
        }
        let digest = hexadecimal(&Sha256::digest(fs::read(&self.path)?));
        Ok(self.digest.get_or_init(|| digest))
    }
}

/// The initial RAM disk for a kernel, made if it is missing in the folder of initial RAM
/// disks.
///
/// # Errors
/// The kernel's folder is incomplete, or no space is left.
pub fn ensure(
    folder: &Path,
    program: &OwnProgram,
    kernel: &ContentId,
    kernel_folder: &Path,
) -> Result<PathBuf, Fault> {
    let failed = |error| {
        fault(
            format!("make the initial RAM disk of kernel {kernel}"),
            error,
        )
    };
    let key = format!("{LAYOUT} {} {kernel}", program.digest().map_err(failed)?);
    let name = hexadecimal(&Sha256::digest(key))[..32].to_owned() + ".cpio";
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let modules = Modules::read(&kernel_folder.join(MODULES), ORDER)?;
    fs::create_dir_all(folder).map_err(failed)?;
    let aside = Aside::begin(&path).map_err(failed)?;
    let archive = Archive::new(BufWriter::new(aside.file()));
    write(archive, program, &modules).map_err(failed)?;
    aside.finish().map_err(failed)?;
    Ok(path)
}

/// Whether machines with this kernel can become templates: what finds their devices, and the
/// bus for the one that is plugged in, must be modules, so that a kernel without them finds
/// no device.
///
/// # Errors
/// The kernel's folder is incomplete.
pub(super) fn can_be_template(kernel_folder: &Path) -> Result<bool, Fault> {
    let folder = kernel_folder.join(MODULES);
    if !folder.join(TEMPLATE_ORDER).is_file() {
        // A kernel of an earlier version's.
        return Ok(false);
    }
    let modules = Modules::read(&folder, TEMPLATE_ORDER)?;
    let has = |wanted: &str| modules.names.iter().any(|name| name == wanted);
    Ok(has("virtio_mmio.ko") && has("virtio_pci.ko"))
}

/// Writes the initial RAM disk of a machine that is to become a template. `table` is a file
/// for the kernel: its path and content.
///
/// # Errors
/// The kernel's folder is incomplete, or no memory is left.
pub(super) fn write_for_template(
    to: &File,
    program: &OwnProgram,
    kernel_folder: &Path,
    table: &(&str, Vec<u8>),
) -> Result<(), Fault> {
    let modules = Modules::read(&kernel_folder.join(MODULES), TEMPLATE_ORDER)?;
    let written = || {
        let mut archive = Archive::new(BufWriter::new(to));
        let (path, content) = table;
        archive.file(path, 0o644, content)?;
        write(archive, program, &modules)
    };
    written().map_err(|error| fault("make the initial RAM disk of a template", error))
}

fn write(
    mut archive: Archive<impl Write>,
    program: &OwnProgram,
    modules: &Modules,
) -> io::Result<()> {
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.directory(folder)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.character_device("dev/null", 1, 3)?;
    archive.file("init", 0o755, &fs::read(program.path())?)?;
    archive.file("modules/order", 0o644, modules.order().as_bytes())?;
    for name in &modules.names {
        let content = fs::read(modules.folder.join(name))?;
        archive.file(&format!("modules/{name}"), 0o644, &content)?;
    }
    archive.finish().map(drop)
}

struct Modules {
    folder: PathBuf,
    names: Vec<String>,
}

impl Modules {
    fn read(folder: &Path, list: &str) -> Result<Modules, Fault> {
        let list = folder.join(list);
        let attempt = format!("read {}", list.display());
        let text = fs::read_to_string(&list).map_err(|error| fault(&attempt, error))?;
        let names: Vec<String> = text
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        match names.iter().find(|name| name.contains('/')) {
            Some(name) => Err(Fault::new(
                FaultKind::Other,
                format!("{attempt}: {name:?} is no plain file name"),
            )),
            None => Ok(Modules {
                folder: folder.to_owned(),
                names,
            }),
        }
    }

    fn order(&self) -> String {
        self.names.iter().map(|name| format!("{name}\n")).collect()
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(root: &Path) -> (ContentId, PathBuf) {
        let folder = root.join("kernel");
        let modules = folder.join(MODULES);
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("order"), "b.ko\na.ko\n").unwrap();
        fs::write(modules.join("a.ko"), "module a").unwrap();
        fs::write(modules.join("b.ko"), "module b").unwrap();
        ("00000000000000bb".parse().unwrap(), folder)
    }

    fn position(archive: &[u8], text: &str) -> usize {
        archive
            .windows(text.len())
            .position(|window| window == text.as_bytes())
            .unwrap_or_else(|| panic!("{text} is in the archive"))
    }

    #[test]
    fn program_and_modules_are_in_it_and_it_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        let (id, folder) = kernel(root.path());
        fs::write(root.path().join("program"), "our program").unwrap();
        let program = OwnProgram::at(root.path().join("program"));
        let initrds = root.path().join("initrd");

        let path = ensure(&initrds, &program, &id, &folder).unwrap();
        let archive = fs::read(&path).unwrap();
        assert!(position(&archive, "our program") < position(&archive, "module b"));
        assert!(position(&archive, "module b") < position(&archive, "module a"));
        assert!(position(&archive, "b.ko\na.ko\n") > 0);

        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(ensure(&initrds, &program, &id, &folder).unwrap(), path);
        assert_eq!(fs::read_dir(&initrds).unwrap().count(), 1);
    }

    #[test]
    fn another_program_gives_another_disk() {
        let root = tempfile::tempdir().unwrap();
        let (id, folder) = kernel(root.path());
        let made = ["one", "two"].map(|content| {
            let path = root.path().join(content);
            fs::write(&path, content).unwrap();
            ensure(root.path(), &OwnProgram::at(path), &id, &folder).unwrap()
        });
        assert_ne!(made[0], made[1]);
    }

    #[test]
    fn a_kernel_without_its_list_is_refused_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let (id, folder) = kernel(root.path());
        fs::remove_file(folder.join(MODULES).join("a.ko")).unwrap();
        let initrds = root.path().join("initrd");
        let program = OwnProgram::running();
        assert!(ensure(&initrds, &program, &id, &folder).is_err());
        assert_eq!(fs::read_dir(&initrds).unwrap().count(), 0);

        fs::remove_dir_all(&folder).unwrap();
        let fault = ensure(&initrds, &program, &id, &folder).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Missing);
    }
}
