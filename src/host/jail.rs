//! The file system that a jailed VMM finds itself in, made of mounts that only its own
//! process has. Nothing of it is on this machine's table of mounts or on a disk, so
//! nothing of it can be left behind: it ends with the process.
//!
//! ```text
//!  launcher   a table of mounts of its own, from which nothing comes back
//!    tmpfs    over <runtime>/vms, in that table alone; bounded
//!      .../root            what the jailer makes the process's root
//!        <runtime>/vms/ID  the VM's run directory, bound
//!        <state>/...       kernel, initrd and disks, bound one by one under their own
//!                          names; what VMs share read-only
//!  jailer     copies firecracker there, makes /dev/kvm and /dev/net/tun, changes root,
//!             lets go of everything else, becomes the VM's user, executes firecracker
//! ```
//!
//! Files keep their names, so that one API call describes a machine to either kind of
//! process. Read next: [`super::launcher`].

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount,
};
use rustix::thread::CapabilitySet;

use crate::sys::mounts;

use super::identity::Separation;
use super::program::Programs;

/// What the jailer's own work takes (Firecracker 1.14, src/jailer): mounts, device nodes,
/// files given to the VM's user and folders of his, the change to him.
pub const NEEDED: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::MKNOD, "CAP_MKNOD"),
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
];

/// What the jail may hold besides the copy of the program: device nodes and folders.
const ROOM: u64 = 1 << 20;

/// A jail to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jail {
    /// An existing folder; the jail's file system lies over it, for the jailed alone.
    pub cover: PathBuf,
    /// What becomes the root, below `cover`.
    pub root: PathBuf,
    /// How much may be written there, bytes.
    pub size: u64,
    /// What is to be seen in it.
    pub shown: Vec<Shown>,
}

/// Something of this machine that is seen in a jail under its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A file, read-only.
    ToRead(PathBuf),
    /// A file.
    ToWrite(PathBuf),
    /// A folder with what is in it.
    Folder(PathBuf),
    /// A device node, or a link to one: made anew, for the VM's group.
    Device(PathBuf),
}

/// How much room a jail with this program in it needs.
///
/// # Errors
/// The program cannot be looked at.
pub fn size_for(program: &Path) -> io::Result<u64> {
    Ok(fs::metadata(program)?.len() + ROOM)
}

/// The jailer of a firecracker: named by itself, of the same release in the same folder,
/// or found as other programs are.
pub fn jailer(programs: &Programs, firecracker: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(firecracker).unwrap_or_else(|_| firecracker.to_owned());
    let beside = [firecracker, &*real].map(|program| {
        let name = program.file_name()?.to_str()?;
        // Releases are called `firecracker-v1.14.1-x86_64` and `jailer-v1.14.1-x86_64`.
        Some(program.with_file_name(name.replacen("firecracker", "jailer", 1)))
    });
    let beside = beside.into_iter().flatten();
    programs.find_beside("jailer", beside.filter(|path| path != firecracker))
}

/// The jailer of the firecracker of this machine, if it can be used.
///
/// # Errors
/// The reason why not, for people.
pub fn fitness(programs: &Programs) -> Result<PathBuf, String> {
    let firecracker = programs.find("firecracker");
    let firecracker = firecracker.ok_or("firecracker is not installed")?;
    let shown = firecracker.display();
    let jailer = jailer(programs, &firecracker).ok_or(format!("no jailer beside {shown}"))?;
    match is_dynamic(&firecracker) {
        Ok(false) => {}
        Ok(true) => {
            return Err(format!(
                "{shown} is linked to libraries, which a jail has none of"
            ));
        }
        Err(error) => return Err(format!("read {shown}: {error}")),
    }
    if let Separation::Own(why) = Separation::discover() {
        return Err(why);
    }
    let held = rustix::thread::capabilities(None).map_err(|error| error.to_string())?;
    if let Some((_, name)) = NEEDED
        .iter()
        .find(|(one, _)| !held.effective.contains(*one))
    {
        return Err(format!("root has no {name} here"));
    }
    // mknod(2) of a device is refused in every other one, capability or not.
    match fs::read_to_string("/proc/self/uid_map") {
        Ok(map) if is_initial(&map) => Ok(jailer),
        _ => Err("device nodes cannot be made in a user namespace".to_owned()),
    }
}

/// Whether a map of ids (user_namespaces(7)) is that of the first user namespace.
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a program is loaded by another (`PT_INTERP` of elf(5)), which a jail would have
/// to hold as well, with its libraries.
///
/// # Errors
/// It is no 64-bit ELF file.
pub fn is_dynamic(program: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = File::open(program)?;
    let header: [u8; 64] = read_at(&file, 0)?;
    if header[..5] != *b"\x7fELF\x02" {
        return Err(io::Error::other("it is no 64-bit ELF program"));
    }
    let table = u64::from_le_bytes(part(&header, 32));
    let [size, count] = [54, 56].map(|at| u64::from(u16::from_le_bytes(part(&header, at))));
    for index in 0..count {
        let kind: [u8; 4] = read_at(&file, table.saturating_add(index * size))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

fn read_at<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, at)?;
    Ok(bytes)
}

impl Shown {
    /// As the launcher is told.
    pub(super) fn words(&self) -> [&OsStr; 2] {
        match self {
            Shown::ToRead(path) => ["--show-file".as_ref(), path.as_os_str()],
            Shown::ToWrite(path) => ["--show-disk".as_ref(), path.as_os_str()],
            Shown::Folder(path) => ["--show-folder".as_ref(), path.as_os_str()],
            Shown::Device(path) => ["--show-device".as_ref(), path.as_os_str()],
        }
    }

    /// As the launcher reads it; `None` if the word is another one.
    pub(super) fn from_words(name: &str, value: &OsStr) -> Option<Shown> {
        Some(match name {
            "--show-file" => Shown::ToRead(value.into()),
            "--show-disk" => Shown::ToWrite(value.into()),
            "--show-folder" => Shown::Folder(value.into()),
            "--show-device" => Shown::Device(value.into()),
            _ => return None,
        })
    }

    /// Where it lies on this machine.
    pub fn path(&self) -> &Path {
        let (Shown::ToRead(path)
        | Shown::ToWrite(path)
        | Shown::Folder(path)
        | Shown::Device(path)) = self;
        path
    }
}

/// What is to be shown, found before its place is covered.
struct Pinned<'a> {
    shown: &'a Shown,
    file: OwnedFd,
}

impl Pinned<'_> {
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.file.as_raw_fd().to_string())
    }
}

impl Jail {
    /// As the launcher is told.
    pub(super) fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![
            "--jail".into(),
            self.root.clone().into(),
            "--jail-over".into(),
            self.cover.clone().into(),
            "--jail-size".into(),
            self.size.to_string().into(),
        ];
        words.extend(self.shown.iter().flat_map(Shown::words).map(Into::into));
        words
    }

    /// As the launcher reads it: whether the word is one about a jail.
    ///
    /// # Errors
    /// It is, and its value means nothing.
    pub(super) fn take(jail: &mut Option<Jail>, name: &str, value: &OsStr) -> io::Result<bool> {
        if let Some(shown) = Shown::from_words(name, value) {
            jail.get_or_insert_default().shown.push(shown);
            return Ok(true);
        }
        match name {
            "--jail" => jail.get_or_insert_default().root = value.into(),
            "--jail-over" => jail.get_or_insert_default().cover = value.into(),
            "--jail-size" => {
                let size = value.to_str().and_then(|text| text.parse().ok());
                jail.get_or_insert_default().size = size.ok_or(Errno::INVAL)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes it, for this process and what it becomes. Device nodes are for this group.
    ///
    /// # Errors
    /// The step that failed and the object.
    pub(super) fn make(&self, group: Option<u32>) -> io::Result<()> {
        let during = |what: String| {
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        // What is made here has the modes that are named here.
        rustix::process::umask(Mode::empty());
        mounts::unshare().map_err(during("have mounts of its own".to_owned()))?;
        let back = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", back)
            .map_err(|error| during("keep mounts to itself".to_owned())(error.into()))?;
        let pinned = self.shown.iter().map(pin).collect::<io::Result<Vec<_>>>()?;
        self.cover()
            .map_err(during(format!("cover {}", self.cover.display())))?;
        for one in &pinned {
            self.show(one, group)
                .map_err(during(format!("show {}", one.shown.path().display())))?;
        }
        Ok(())
    }

    fn cover(&self) -> io::Result<()> {
        let options = format!("mode=0755,size={},nr_inodes=256", self.size);
        let options = CString::new(options)?;
        mount(
            "banger-jail",
            &self.cover,
            "tmpfs",
            MountFlags::NOSUID,
            &*options,
        )?;
        make_folder(&self.root)
    }

    fn show(&self, pinned: &Pinned<'_>, group: Option<u32>) -> io::Result<()> {
        let below = pinned.shown.path().strip_prefix("/");
        let target = self.root.join(below.map_err(io::Error::other)?);
        make_folder(target.parent().unwrap_or(&self.root))?;
        match pinned.shown {
            Shown::Device(_) => make_node(&pinned.path(), &target, group),
            Shown::Folder(_) => {
                make_folder(&target)?;
                bind(&pinned.path(), &target, MountFlags::empty())
            }
            Shown::ToWrite(_) => {
                File::create(&target)?;
                bind(&pinned.path(), &target, MountFlags::empty())
            }
            Shown::ToRead(_) => {
                File::create(&target)?;
                bind(&pinned.path(), &target, MountFlags::RDONLY)
            }
        }
    }
}

fn pin(shown: &Shown) -> io::Result<Pinned<'_>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = rustix::fs::open(shown.path(), flags, Mode::empty());
    let file = file.map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(
            error.kind(),
            format!("open {}: {error}", shown.path().display()),
        )
    })?;
    Ok(Pinned { shown, file })
}

/// For all to pass through: the process is another user by then.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn bind(source: &Path, target: &Path, more: MountFlags) -> io::Result<()> {
    mount_bind(source, target)?;
    // A bind mount takes flags of its own only when it is mounted again (mount(2)).
    let none = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(target, MountFlags::BIND | none | more, "")?)
}

fn make_node(source: &Path, target: &Path, group: Option<u32>) -> io::Result<()> {
    let found = fs::metadata(source)?;
    let kind = FileType::from_raw_mode(found.mode());
    if kind != FileType::BlockDevice {
        return Err(io::Error::other("it is no block device"));
    }
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    mknodat(CWD, target, kind, mode, found.rdev())?;
    chown(target, None, group)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(path: &Path) -> PathBuf {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_owned()
    }

    #[test]
    fn the_jailer_of_the_same_release_in_the_same_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        let firecracker = program(&below("firecracker-v1.14.1-x86_64"));
        let jailer_of = |named: &[(String, PathBuf)]| {
            let named = named.iter().cloned().collect();
            jailer(&Programs::new(named, below("tools")), &firecracker)
        };
        let beside = program(&below("jailer-v1.14.1-x86_64"));
        assert_eq!(jailer_of(&[]), Some(beside));
        let named = program(&below("another"));
        let name = "jailer".to_owned();
        assert_eq!(jailer_of(&[(name, named.clone())]), Some(named));
    }

    #[test]
    fn a_linked_firecracker_has_the_jailer_that_lies_where_the_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        fs::create_dir(below("release")).unwrap();
        program(&below("release/firecracker"));
        let beside = program(&below("release/jailer"));
        let link = below("firecracker");
        std::os::unix::fs::symlink(below("release/firecracker"), &link).unwrap();
        assert_eq!(jailer(&Programs::default(), &link), Some(beside));
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_a_static_one() {
        assert!(is_dynamic(Path::new("/bin/sh")).unwrap());
        let own = std::env::current_exe().unwrap();
        let linked = cfg!(not(target_feature = "crt-static"));
        assert_eq!(is_dynamic(&own).unwrap(), linked);
        assert!(is_dynamic(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn only_the_first_user_namespace_maps_every_id_to_itself() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("0 100000 65536\n"));
        assert!(!is_initial(""));
    }

    #[test]
    fn a_firecracker_that_is_linked_to_libraries_is_not_jailed() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        fs::copy("/bin/sh", below("firecracker")).unwrap();
        let named = |name: &str, path: PathBuf| (name.to_owned(), path);
        let fit = |firecracker: &str, jailer: &str| {
            let named = [
                named("firecracker", below(firecracker)),
                named("jailer", below(jailer)),
            ];
            fitness(&Programs::new(named.into(), below("tools"))).unwrap_err()
        };
        assert!(fit("none", "none").contains("firecracker is not installed"));
        assert!(fit("firecracker", "none").contains("no jailer beside"));
        let why = fit("firecracker", "firecracker");
        assert!(why.contains("linked to libraries"), "{why}");
    }

    #[test]
    fn a_jail_is_read_as_it_is_written() {
        let path = || PathBuf::from("/s/x");
        let jail = Jail {
            cover: "/r/vms".into(),
            root: "/r/vms/firecracker/2a/root".into(),
            size: 4096,
            shown: vec![
                Shown::ToRead(path()),
                Shown::ToWrite(path()),
                Shown::Folder(path()),
                Shown::Device(path()),
            ],
        };
        let mut read = None;
        for pair in jail.words().chunks(2) {
            assert!(Jail::take(&mut read, pair[0].to_str().unwrap(), &pair[1]).unwrap());
        }
        assert_eq!(read, Some(jail));
        assert!(Jail::take(&mut None, "--jail-size", OsStr::new("much")).is_err());
        assert!(!Jail::take(&mut None, "--uid", OsStr::new("7")).unwrap());
    }
}
