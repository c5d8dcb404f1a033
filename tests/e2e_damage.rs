//! Damaged images and kernels: named in lists and refusals, mended by a plain pull, and
//! VMs of the same content go on.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::Banger;

const IMAGE: &str = "debian-minimal";
const KERNEL: &str = "debian-6.1-cloud";

/// The folder of the only content of this kind.
fn folder_of(banger: &Banger, kind: &str, name: &str) -> PathBuf {
    let view = banger.json(&[kind, "show", name]);
    let content = view["content"].as_str().expect("a stored one has content");
    banger.state().join(format!("{kind}s")).join(content)
}

/// Replaces a file by its first bytes. The file itself stays: it is a link to that of all
/// tests, and a VM may have it open.
fn cut(file: &Path, length: usize) {
    let mut bytes = vec![0; length];
    let whole = fs::File::open(file).expect("a stored file can be opened");
    whole
        .read_exact_at(&mut bytes, 0)
        .expect("a stored file can be read");
    replace(file, &bytes);
}

fn replace(file: &Path, bytes: &[u8]) {
    fs::remove_file(file).expect("a stored file can be removed");
    fs::write(file, bytes).expect("a stored file can be written");
}

/// What `list` and `show` say is damaged.
#[track_caller]
fn damage(banger: &Banger, kind: &str, name: &str) -> Option<String> {
    let shown = banger.json(&[kind, "show", name])["damaged"].clone();
    let listed = banger.json(&[kind, "list"]);
    let mut all = listed.as_array().expect("a list is one").iter();
    let listed = all.find(|view| view["name"] == name).expect("it is listed");
    assert_eq!(listed["damaged"], shown);
    let text = banger.ok(&[kind, "show", name]);
    assert_eq!(text.contains("damaged:"), !shown.is_null(), "{text}");
    shown.as_str().map(str::to_owned)
}

/// A VM is refused with the object's name and what mends it.
#[track_caller]
fn assert_refused(banger: &Banger, kind: &str, name: &str) {
    let ran = banger.run(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    let said = ran.error();
    assert!(
        said.contains(&format!("{kind} {name}: it is damaged")),
        "{said}"
    );
    let remedy = format!("`banger {kind} pull {name} --force`");
    assert!(said.contains(&remedy), "{said}");
}

#[test]
fn a_damaged_image_is_named_and_a_plain_pull_mends_it_under_running_vms() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("dev");
    let folder = folder_of(&banger, "image", IMAGE);
    assert_eq!(damage(&banger, "image", IMAGE), None);

    cut(&folder.join("rootfs.ext4"), 4096);
    let said = damage(&banger, "image", IMAGE).expect("a cut file is damage");
    assert!(said.contains("4096 bytes instead of"), "{said}");
    assert_refused(&banger, "image", IMAGE);
    assert_eq!(banger.exec("dev", &["echo", "alive"]), "alive");

    let pulled = banger.run(&["image", "pull", IMAGE]);
    assert_eq!(pulled.code(), Some(0), "{pulled:?}");
    assert_eq!(damage(&banger, "image", IMAGE), None);
    assert_eq!(banger.exec("dev", &["echo", "alive"]), "alive");
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
}

#[test]
fn a_manifest_that_is_gone_or_garbage_names_its_image() {
    let banger = Banger::with_images(&[IMAGE]);
    let manifest = folder_of(&banger, "image", IMAGE).join("manifest.json");
    let whole = fs::read(&manifest).unwrap();
    replace(&manifest, b"\xff garbage");
    let said = damage(&banger, "image", IMAGE).expect("garbage is damage");
    assert!(said.contains("manifest.json"), "{said}");
    assert_refused(&banger, "image", IMAGE);
    fs::remove_file(&manifest).unwrap();
    assert!(damage(&banger, "image", IMAGE).is_some());
    assert_refused(&banger, "image", IMAGE);
    fs::write(&manifest, whole).unwrap();
    assert_eq!(damage(&banger, "image", IMAGE), None);
}

#[test]
fn a_damaged_kernel_is_named_and_a_plain_pull_mends_it() {
    let banger = Banger::with_images(&[IMAGE]);
    let folder = folder_of(&banger, "kernel", KERNEL);
    cut(&folder.join("vmlinux"), 100);
    let said = damage(&banger, "kernel", KERNEL).expect("a cut file is damage");
    assert!(said.contains("vmlinux"), "{said}");
    assert_refused(&banger, "kernel", KERNEL);
    banger.ok(&["kernel", "pull", KERNEL]);
    assert_eq!(damage(&banger, "kernel", KERNEL), None);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
}
