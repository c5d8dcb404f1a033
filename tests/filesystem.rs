//! What a tar archive says arrives in the ext4 file, judged by e2fsprogs and, where a
//! test may mount, by the kernel.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger::failure::{Failure, FailureKind};
use banger::host::layout::Layout;
use banger::image::ext4::{self, Purpose, Shape};
use banger::image::job::{Cancel, Job};
use banger::image::tarball::Tarball;
use tar::{Builder, EntryType, Header};

const EPOCH: u64 = 1_700_000_000;
/// cap_net_raw=ep, revision 2 (linux/capability.h).
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
/// u::rw- u:7:r-- g::r-- m::r-- o::---, as getxattr(2) gives it.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
    255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// An archive in a temporary folder, and the file system made of it.
struct World {
    folder: tempfile::TempDir,
    cancel: Cancel,
}

impl World {
    fn new() -> World {
        World {
            folder: tempfile::tempdir().unwrap(),
            cancel: Cancel::new().unwrap(),
        }
    }

    fn tar(&self) -> PathBuf {
        self.folder.path().join("tree.tar")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("tree.ext4")
    }

    fn build(&self) -> Result<u64, Failure> {
        let root = self.folder.path();
        let layout = Layout {
            state: root.join("state"),
            cache: root.join("cache"),
            runtime: root.join("run"),
        };
        let job = Job {
            layout: &layout,
            cancel: &self.cancel,
            progress: &|_| (),
        };
        let tarball = Tarball::open(&job, &self.tar())?;
        let shape = Shape {
            purpose: Purpose::Root,
            label: "test",
            identity: "test".to_owned(),
            epoch: EPOCH,
        };
        let mut contents = tarball.contents(&tarball.entries);
        ext4::write(&job, &tarball.entries, &mut contents, &shape, &self.image())
    }

    fn debugfs(&self, request: &str) -> String {
        let output = Command::new("/usr/sbin/debugfs")
            .args(["-R", request])
            .arg(self.image())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(EPOCH);
    header.set_size(0);
    header
}

fn long_name() -> String {
    format!("etc/{}/{}", "d".repeat(120), "n".repeat(200))
}

/// Writes an archive that holds one of every kind of entry.
fn write_odd_archive(path: &Path) {
    let mut tar = Builder::new(File::create(path).unwrap());
    let mut add = |name: &str, mut header: Header, pax: &[(&str, &[u8])], data: &[u8]| {
        tar.append_pax_extensions(pax.iter().copied()).unwrap();
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, data).unwrap();
    };
    add("./", header(EntryType::Directory, 0o750), &[], b"");
    let mut tmp = header(EntryType::Directory, 0o1777);
    tmp.set_uid(12345);
    tmp.set_gid(54321);
    add("./tmp/", tmp, &[], b"");
    add("./etc/", header(EntryType::Directory, 0o755), &[], b"");
    let regular = || header(EntryType::Regular, 0o644);
    let fraction: &[(&str, &[u8])] = &[("mtime", b"1600000000.123456789")];
    add("./etc/passwd", regular(), fraction, b"root:x:0:0\n");
    add(
        "./bin/ping",
        header(EntryType::Regular, 0o4755),
        &[
            ("SCHILY.xattr.security.capability", &CAPABILITY),
            ("SCHILY.xattr.user.note", b"kept"),
        ],
        &[7; 10_000],
    );
    let acl: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_access", &ACL)];
    add("./etc/shared", regular(), acl, b"");
    add(&long_name(), regular(), &[], b"deep");
    add("./etc/ŝlosilo", regular(), &[], b"utf-8");
    let owner: &[(&str, &[u8])] = &[("uid", b"3000000"), ("gid", b"3000001")];
    add("./etc/far-owner", regular(), owner, b"");
    write_links_and_devices(&mut tar);
    tar.finish().unwrap();
}

fn write_links_and_devices(tar: &mut Builder<File>) {
    for (name, kind, target) in [
        ("etc/short", EntryType::Symlink, "passwd".to_owned()),
        (
            "etc/absolute",
            EntryType::Symlink,
            "/nowhere/at/all".to_owned(),
        ),
        ("etc/long", EntryType::Symlink, "x/".repeat(90)),
        ("etc/passwd-", EntryType::Link, "./etc/passwd".to_owned()),
    ] {
        let mut header = header(kind, 0o777);
        tar.append_link(&mut header, name, target).unwrap();
    }
    for (name, kind, major, minor) in [
        ("dev/null", EntryType::Char, 1, 3),
        ("dev/loop300", EntryType::Block, 7, 300),
        ("dev/pipe", EntryType::Fifo, 0, 0),
    ] {
        let mut header = header(kind, 0o666);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        tar.append_data(&mut header, name, &b""[..]).unwrap();
    }
}

fn assert_fsck_clean(image: &Path) {
    let check = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(image)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "{text}");
}

#[test]
fn every_kind_of_entry_is_kept() {
    let world = World::new();
    write_odd_archive(&world.tar());
    let size = world.build().unwrap();
    assert_eq!(fs::metadata(world.image()).unwrap().len(), size);
    assert_fsck_clean(&world.image());
    let blocks = format!("Block count:              {}\n", size / 4096);
    assert!(world.debugfs("stats -h").contains(&blocks));
    for (path, facts) in [
        ("/", &["Mode:  0750"][..]),
        ("/tmp", &["Mode:  01777", "User: 12345", "Group: 54321"]),
        (
            "/etc/passwd",
            &["Links: 2", "Size: 11", "0x5f5e1000:1d6f3454"],
        ),
        (
            "/bin/ping",
            &[
                "Mode:  04755",
                "security.capability (20)",
                "user.note (4) = \"kept\"",
            ],
        ),
        ("/etc/far-owner", &["User: 3000000", "Group: 3000001"]),
        ("/etc/short", &["Fast link dest: \"passwd\""]),
        ("/etc/long", &["Type: symlink", "Size: 180"]),
        ("/dev/null", &["Type: character special", "01:03"]),
        ("/dev/loop300", &["Type: block special", "07:300"]),
        ("/dev/pipe", &["Type: FIFO"]),
        ("/etc/ŝlosilo", &["Size: 5"]),
    ] {
        let stat = world.debugfs(&format!("stat \"{path}\""));
        for fact in facts {
            assert!(stat.contains(fact), "{path}: no {fact:?} in {stat}");
        }
    }
    assert_eq!(world.debugfs(&format!("cat /{}", long_name())), "deep");
}

#[test]
fn the_kernel_sees_what_the_archive_says() {
    let world = World::new();
    write_odd_archive(&world.tar());
    world.build().unwrap();
    let Some(mounted) = Mounted::mount(&world) else {
        println!("skipped: the_kernel_sees_what_the_archive_says: cannot mount here");
        return;
    };
    let root = mounted.path.clone();
    let facts = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    let passwd = facts("etc/passwd");
    assert_eq!(
        (passwd.mtime(), passwd.mtime_nsec()),
        (1_600_000_000, 123_456_789)
    );
    assert_eq!(passwd.ino(), facts("etc/passwd-").ino());
    assert_eq!(facts("tmp").mode() & 0o7777, 0o1777);
    assert!(facts("dev/null").file_type().is_char_device());
    assert_eq!(facts("dev/null").rdev(), 0x103);
    assert!(facts("dev/pipe").file_type().is_fifo());
    let target = fs::read_link(root.join("etc/long")).unwrap();
    assert_eq!(target.as_os_str().len(), 180);
    assert_eq!(fs::read(root.join("bin/ping")).unwrap(), [7; 10_000]);
    assert_eq!(
        attribute(&root.join("bin/ping"), "security.capability"),
        CAPABILITY
    );
    assert_eq!(
        attribute(&root.join("etc/shared"), "system.posix_acl_access"),
        ACL
    );
}

fn attribute(path: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(path, name, &mut value).unwrap();
    value[..length].to_vec()
}

/// A mounted file system, read-only; unmounted at the end.
struct Mounted {
    path: PathBuf,
}

impl Mounted {
    fn mount(world: &World) -> Option<Mounted> {
        let path = world.folder.path().join("mounted");
        fs::create_dir(&path).unwrap();
        let done = Command::new("mount")
            .args(["-o", "ro,loop"])
            .args([&world.image(), &path])
            .output()
            .is_ok_and(|output| output.status.success());
        done.then_some(Mounted { path })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.path).status().unwrap();
    }
}

#[test]
fn the_same_archive_gives_the_same_bytes() {
    let (first, second) = (World::new(), World::new());
    for world in [&first, &second] {
        write_odd_archive(&world.tar());
        world.build().unwrap();
    }
    let bytes = |world: &World| {
        let mut bytes = Vec::new();
        let mut file = File::open(world.image()).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert!(bytes(&first) == bytes(&second));
}

#[test]
fn holes_of_a_sparse_file_stay_holes() {
    let world = World::new();
    let sparse = world.folder.path().join("sparse");
    let file = File::create(&sparse).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 5000], 1 << 20).unwrap();
    file.set_len(64 << 20).unwrap();
    let tarred = Command::new("tar")
        .args(["--format=gnu", "-S", "-C"])
        .arg(world.folder.path())
        .arg("-cf")
        .arg(world.tar())
        .arg("sparse")
        .status()
        .unwrap();
    assert!(tarred.success());
    assert!(fs::metadata(world.tar()).unwrap().len() < 1 << 20);
    world.build().unwrap();
    assert_fsck_clean(&world.image());
    let stat = world.debugfs("stat /sparse");
    assert!(stat.contains("Size: 67108864"), "{stat}");
    assert!(
        stat.contains("Blockcount: 16\n") || stat.contains("Blockcount: 24\n"),
        "{stat}"
    );
    let dumped = world.folder.path().join("dumped");
    world.debugfs(&format!("dump /sparse {}", dumped.display()));
    assert!(fs::read(&dumped).unwrap() == fs::read(&sparse).unwrap());
}

/// Builds an archive of one entry and gives the refusal.
fn refusal(name: &[u8], kind: EntryType, target: Option<&str>) -> String {
    let world = World::new();
    let mut tar = Builder::new(File::create(world.tar()).unwrap());
    let mut link = header(EntryType::Symlink, 0o777);
    tar.append_link(&mut link, "elsewhere", "/").unwrap();
    let mut header = header(kind, 0o644);
    // Past the checks of the writer: archives of others have such names.
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    if let Some(target) = target {
        header.set_link_name(target).unwrap();
    }
    header.set_cksum();
    tar.append(&header, &b""[..]).unwrap();
    tar.finish().unwrap();
    let failure = world.build().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed);
    failure.to_string()
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let cases: [(&[u8], EntryType, Option<&str>, &str); 6] = [
        (b"etc/../../up", EntryType::Regular, None, "out of the root"),
        (b"bad-\xff-name", EntryType::Regular, None, "not UTF-8"),
        (
            b"elsewhere/file",
            EntryType::Regular,
            None,
            "/elsewhere is no directory",
        ),
        (b"elsewhere", EntryType::Regular, None, "there twice"),
        (
            b"link",
            EntryType::Link,
            Some("missing"),
            "which is not there",
        ),
        (b"odd", EntryType::new(b'V'), None, "not known"),
    ];
    for (name, kind, target, reason) in cases {
        let text = refusal(name, kind, target);
        assert!(text.contains(reason), "{text} / {reason}");
    }
}

#[test]
fn a_cut_archive_is_refused() {
    let world = World::new();
    write_odd_archive(&world.tar());
    let file = File::options().write(true).open(world.tar()).unwrap();
    file.set_len(5000).unwrap();
    assert!(world.build().is_err());
}

#[test]
fn a_cancel_ends_the_work() {
    let world = World::new();
    write_odd_archive(&world.tar());
    world.cancel.set();
    let failure = world.build().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Cancelled);
}
