//! Kernels: from Debian's package to what a VMM and an initrd need.
//!
//! ```text
//!  <state>/kernels/<content id>/
//!      vmlinux               the uncompressed ELF kernel
//!      modules.ext4          a directory named like the release, with all modules
//!      initrd-modules/order  one file name per line, in load order
//!      initrd-modules/template-order  the same for a machine that becomes a template
//!      initrd-modules/*.ko   those modules, uncompressed
//!      manifest.json
//! ```
//!
//! The package's scripts never run and nothing is installed on the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::apt::{Apt, Package};
use super::catalog::{KernelEntry, catalog};
use super::ext4::{self, Purpose, Shape};
use super::job::{Job, at};
use super::lock::Pull;
use super::manifest::{Depth, Manifest};
use super::modules::{Index, Module, closure};
use super::store::{self, Aside};
use super::tree::Tree;
use super::{program, vmlinux};
use crate::fail_point;
use crate::failure::Failure;
use crate::model::ids::{ContentId, KernelName};
use crate::model::image::Kernel;

/// Room that a pull needs: package, unpacked tree and disk together, bytes.
const ROOM: u64 = 500 << 20;
/// The folder of the unpacked package while a kernel is made.
const UNPACKED: &str = ".unpacked";

/// Makes the newest kernel of a catalogue entry, or joins a pull that is under way.
///
/// # Errors
/// The name is unknown, the archive or a tool is missing, the disk is full; cancelled.
/// Nothing is left of a failed pull.
pub fn pull_kernel(job: &Job, name: &KernelName) -> Result<Kernel, Failure> {
    let catalog = catalog();
    let entry = catalog.kernel(name)?;
    let parent = job.layout.kernels();
    let mut pull = Pull::begin(job, &parent, name.as_str())?;
    if let Some(content) = pull.shared()
        && verify_kernel(job, &content, Depth::Quick).is_ok()
    {
        return load(job, name, &content);
    }
    pull.start()?;
    store::require_space(&parent, ROOM, &format!("pull kernel {name}"))?;
    let (package, deb) = {
        let apt = Apt::open(job, &entry.suite)?;
        let package = apt.behind(&entry.package, "linux-image-")?;
        let deb = apt.download(&entry.package, &package)?;
        fail_point::hit("pull.downloaded").map_err(at("download", &deb))?;
        (package, deb)
    };
    let aside = Aside::make(&parent)?;
    let content = make(job, entry, &package, &deb, aside)?;
    pull.done(&content)?;
    load(job, name, &content)
}

/// Whether a kernel's files are as they were made.
///
/// # Errors
/// Something is missing or damaged; cancelled.
pub fn verify_kernel(job: &Job, content: &ContentId, depth: Depth) -> Result<(), Failure> {
    let folder = job.layout.kernel(content);
    Manifest::read(&folder, content).and_then(|manifest| manifest.verify(job, &folder, depth))
}

/// A kernel that is in the store.
///
/// # Errors
/// It is not there, or its manifest is damaged.
pub fn load(job: &Job, name: &KernelName, content: &ContentId) -> Result<Kernel, Failure> {
    let folder = job.layout.kernel(content);
    let manifest = Manifest::read(&folder, content)?;
    Ok(Kernel {
        name: name.clone(),
        content: content.clone(),
        release: manifest.release.clone().unwrap_or_default(),
        source: manifest.source.clone(),
        allocated: manifest.allocated(&folder),
        created_at: manifest.created_at,
    })
}

fn make(
    job: &Job,
    entry: &KernelEntry,
    package: &Package,
    deb: &Path,
    aside: Aside,
) -> Result<ContentId, Failure> {
    let folder = aside.path();
    let unpacked = folder.join(UNPACKED);
    let tree = unpack(job, deb, &unpacked)?;
    job.stage("unpack the kernel", tree.release.as_str());
    write_vmlinux(&tree, folder)?;
    write_initrd_modules(job, &tree, entry, folder)?;
    write_modules_disk(job, &tree, package, folder)?;
    store::discard(&unpacked)?;
    let source = format!("Debian package {} {}", package.name, package.version);
    let mut manifest = Manifest::of(job, folder, entry.name.as_str(), source)?;
    manifest.release = Some(tree.release);
    manifest.write(folder)?;
    fail_point::hit("pull.built").map_err(at("build", folder))?;
    job.check("keep the kernel")?;
    let content = manifest.content();
    aside.keep(&content, |old| {
        manifest.verify(job, old, Depth::Full).is_ok() && Manifest::read(old, &content).is_ok()
    })?;
    Ok(content)
}

/// An unpacked kernel package.
struct Unpacked {
    root: PathBuf,
    release: String,
    image: PathBuf,
    /// Of the image, seconds since the epoch: nothing in the package is newer.
    made_at: i64,
}

impl Unpacked {
    fn modules(&self) -> PathBuf {
        self.root.join("lib/modules")
    }
}

fn unpack(job: &Job, deb: &Path, target: &Path) -> Result<Unpacked, Failure> {
    let what = format!("unpack {}", deb.display());
    job.stage("unpack the kernel package", "");
    let mut command = program::command("dpkg-deb", "dpkg")?;
    command.arg("-x").arg(deb).arg(target);
    program::run(job, &what, command, None, &mut |_| ())?;
    // Debian 13 and later put modules under /usr; depmod looks for /lib.
    if !target.join("lib").exists() {
        let link = target.join("lib");
        symlink("usr/lib", &link).map_err(at("link", &link))?;
    }
    let release = only_entry(&target.join("lib/modules"), "")
        .ok_or_else(|| Failure::failed(&what).because("it has no folder lib/modules/RELEASE"))?;
    let boot = target.join("boot");
    let image = only_entry(&boot, "vmlinuz-")
        .map(|name| boot.join(name))
        .ok_or_else(|| Failure::failed(&what).because("it has no file boot/vmlinuz-RELEASE"))?;
    let made_at = fs::metadata(&image).map_err(at("read", &image))?.mtime();
    let mut command = program::command("depmod", "kmod")?;
    command.arg("-b").arg(target).arg(&release);
    let indexing = format!("index the modules of kernel {release}");
    program::run(job, &indexing, command, None, &mut |_| ())?;
    Ok(Unpacked {
        root: target.to_owned(),
        release,
        image,
        made_at,
    })
}

fn only_entry(folder: &Path, prefix: &str) -> Option<String> {
    let mut names = fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix));
    names.next().filter(|_| names.next().is_none())
}

fn write_vmlinux(tree: &Unpacked, folder: &Path) -> Result<(), Failure> {
    let image = fs::read(&tree.image).map_err(at("read", &tree.image))?;
    let kernel = vmlinux::extract(&image).map_err(|error| {
        let failure = Failure::failed(format!("take the kernel out of {}", tree.image.display()));
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let failure = failure.because(&error);
        match cause {
            Some(cause) => failure.because(cause),
            None => failure,
        }
    })?;
    let path = folder.join("vmlinux");
    fs::write(&path, kernel).map_err(at("write", &path))
}

fn write_initrd_modules(
    job: &Job,
    tree: &Unpacked,
    entry: &KernelEntry,
    folder: &Path,
) -> Result<(), Failure> {
    let modules = tree.modules().join(&tree.release);
    let read = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path).map_err(at("read", &path))
    };
    let index = Index {
        dependencies: &read("modules.dep")?,
        soft: &read("modules.softdep")?,
        builtin: &read("modules.builtin")?,
    };
    let target = folder.join("initrd-modules");
    fs::create_dir(&target).map_err(at("create", &target))?;
    let usual = entry.initrd_modules.iter();
    let of_templates = usual.clone().chain(&entry.template_modules);
    let lists = [
        ("order", closure(index, usual.map(String::as_str))?),
        (
            "template-order",
            closure(index, of_templates.map(String::as_str))?,
        ),
    ];
    for (list, order) in lists {
        job.check("copy the modules of the initrd")?;
        write_list(&order, &modules, &target, list)?;
    }
    Ok(())
}

/// The modules, as far as they are not there yet, and a list of them.
fn write_list(order: &[Module], from: &Path, target: &Path, list: &str) -> Result<(), Failure> {
    let mut lines = String::new();
    for module in order {
        lines += &module.file_name();
        lines.push('\n');
        let path = target.join(module.file_name());
        if !path.exists() {
            fs::write(&path, module.read(from)?).map_err(at("write", &path))?;
        }
    }
    let path = target.join(list);
    fs::write(&path, lines).map_err(at("write", &path))
}

fn write_modules_disk(
    job: &Job,
    tree: &Unpacked,
    package: &Package,
    folder: &Path,
) -> Result<(), Failure> {
    job.stage("build the modules' disk", tree.release.as_str());
    let mut modules = Tree::list(&tree.modules(), tree.made_at)?;
    let entries = modules.entries.clone();
    let shape = Shape {
        purpose: Purpose::ReadOnly,
        label: "banger-modules",
        identity: format!("modules of {} {}", package.name, package.version),
        epoch: u64::try_from(tree.made_at).unwrap_or(0),
    };
    let target = folder.join("modules.ext4");
    ext4::write(job, &entries, &mut modules, &shape, &target)?;
    Ok(())
}
