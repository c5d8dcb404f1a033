//! Images of a test's own, brought into the store by the store's own means.

use std::fs;
use std::path::Path;
use std::process::Command;

use banger::host::layout::Layout;
use banger::image::job::{Cancel, Job};
use banger::image::manifest::Manifest;
use banger::model::image::Image;
use banger::model::units::Bytes;
use banger::plan::record::RowChange;
use banger::store::Store;

use super::Banger;

/// Makes an ext4 image of what is in a folder and gives it this name in the store. The
/// daemon must not run: the store has one owner.
pub fn add(banger: &Banger, name: &str, tree: &Path) {
    let layout = Layout {
        state: banger.state(),
        cache: banger.home().join("no-cache"),
        runtime: banger.runtime().to_owned(),
    };
    let aside = layout.images().join("in-the-making");
    fs::create_dir(&aside).expect("the store of a seed takes a folder");
    make_ext4(tree, &aside.join("rootfs.ext4"));
    let cancel = Cancel::new().expect("an eventfd can be had");
    let job = Job {
        layout: &layout,
        cancel: &cancel,
        progress: &|_| (),
    };
    let manifest = Manifest::of(&job, &aside, name, "a test's own".to_owned());
    let manifest = manifest.expect("files of ours can be read");
    manifest.write(&aside).expect("a fresh folder takes a file");
    let content = manifest.content();
    fs::rename(&aside, layout.images().join(content.as_str()))
        .expect("a folder can be renamed beside itself");
    let image = Image {
        name: name.parse().expect("the test's name is one"),
        content,
        size: manifest.size_of("rootfs.ext4"),
        allocated: Bytes::mib(1),
        source: manifest.source,
        created_at: 1,
    };
    let (mut store, _) = Store::open(&layout.store()).expect("no daemon has the store open");
    store
        .save(&[RowChange::PutImage(image)])
        .expect("a sound store can be written");
}

fn make_ext4(tree: &Path, file: &Path) {
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
        .args([tree, file])
        .arg("64M")
        .output()
        .expect("e2fsprogs is installed");
    assert!(made.status.success(), "{made:?}");
}
