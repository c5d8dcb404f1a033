//! End to end: a state directory that cannot be written, and a store that cannot be read.
//! Clear words, status 74, a FAIL of doctor, and nothing that was durable is touched.

mod support;

use std::fs;
use std::path::Path;

use support::disk::SmallDisk;
use support::running::Ran;
use support::{Banger, is_root, skip};

/// A daemon that has been there and is gone, with its state on a small disk.
fn lab(test: &str) -> Option<(Banger, SmallDisk)> {
    if !is_root() {
        skip(test, "mounts need root");
        return None;
    }
    let disk = SmallDisk::mount(32);
    let banger = Banger::with_state(disk.path());
    banger.ok(&["vm", "list"]);
    banger.kill_daemon();
    Some((banger, disk))
}

#[track_caller]
fn assert_storage_failure(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code(), Some(74), "{ran:?}");
    let error = ran.error();
    for words in words {
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
}

fn assert_doctor_fails(banger: &Banger, words: &str) {
    let ran = banger.run(&["doctor"]);
    let text = ran.text();
    let row = text.lines().find(|line| line.contains(" bangerd "));
    let row = row.expect("doctor has a row for the daemon");
    assert!(row.starts_with("FAIL") && row.contains(words), "{text}");
    assert_eq!(ran.code(), Some(1), "{text}");
}

#[test]
fn read_only_state_is_said_and_the_store_can_still_be_looked_at() {
    let Some((banger, disk)) = lab("read_only_state_is_said_and_the_store_can_still_be_looked_at")
    else {
        return;
    };
    disk.remount("ro");
    let words = ["bangerd.log", "Read-only file system", "BANGER_STATE_DIR"];
    assert_storage_failure(&banger.run(&["vm", "list"]), &words);
    assert_doctor_fails(&banger, "Read-only file system");
    assert_eq!(banger.json(&["store", "check"])["sound"], true);
    assert_eq!(banger.json(&["store", "export"])["format"], 1);

    disk.remount("rw");
    banger.ok(&["vm", "list"]);
}

#[test]
fn full_disk_under_a_new_store_is_said_and_leaves_no_half_store() {
    let Some((banger, disk)) = lab("full_disk_under_a_new_store_is_said_and_leaves_no_half_store")
    else {
        return;
    };
    let store = banger.state().join("store.redb");
    fs::remove_file(&store).expect("the store is there");
    disk.fill();
    let words = ["No space left on device", "df"];
    assert_storage_failure(&banger.run(&["vm", "list"]), &words);
    assert_doctor_fails(&banger, "No space left on device");
    assert!(!store.exists());

    disk.free();
    banger.ok(&["vm", "list"]);
}

fn write(store: &Path, bytes: &[u8]) {
    fs::write(store, bytes).expect("a file of ours can be written");
}

#[test]
fn store_that_is_damaged_is_refused_left_alone_and_taken_again_when_put_back() {
    let test = "store_that_is_damaged_is_refused_left_alone_and_taken_again_when_put_back";
    let Some((banger, _disk)) = lab(test) else {
        return;
    };
    let store = banger.state().join("store.redb");
    let whole = fs::read(&store).expect("the store is there");
    let mut garbage = whole.clone();
    garbage[4096..].fill(0xa5);
    let damages: [&[u8]; 5] = [&[], &whole[..100], &whole[..5000], &garbage, b"hello"];
    for damage in damages {
        write(&store, damage);
        let words = ["store.redb.damaged`", "the files of their disks stay"];
        assert_storage_failure(&banger.run(&["vm", "list"]), &words);
        assert_storage_failure(&banger.run(&["store", "check"]), &words);
        assert_storage_failure(&banger.run(&["store", "export"]), &words);
        assert_doctor_fails(&banger, "store.redb");
        assert_eq!(fs::read(&store).expect("it is left"), damage);
    }
    write(&store, &whole);
    banger.ok(&["vm", "list"]);
    let checked = banger.json(&["store", "check"]);
    assert_eq!(
        (&checked["sound"], &checked["read_from"]),
        (&true.into(), &"bangerd".into())
    );
}

#[test]
fn store_that_names_what_is_not_there_is_found() {
    let Some((banger, _disk)) = lab("store_that_names_what_is_not_there_is_found") else {
        return;
    };
    let left = banger.state().join("vms/0000beef");
    fs::create_dir_all(&left).expect("the state takes a folder");
    let ran = banger.run(&["store", "check"]);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert!(
        ran.text().contains("vms/0000beef belongs to no VM"),
        "{ran:?}"
    );
    fs::remove_dir(&left).expect("it is empty");
    let ran = banger.run(&["store", "check"]);
    assert_eq!((ran.code(), ran.text().contains("sound")), (Some(0), true));
    assert!(banger.daemon().is_none(), "to look starts no daemon");
}

#[test]
fn content_damaged_beyond_its_beginning_is_found_by_reading_it_whole() {
    let banger = Banger::with_images(&["debian-minimal"]);
    let kernel = banger.json(&["kernel", "show", "debian-6.1-cloud"]);
    let content = kernel["content"].as_str().expect("a kernel has a content");
    let path = banger.state().join("kernels").join(content).join("vmlinux");
    let sound = banger.ok(&["store", "check", "--contents"]);
    assert!(sound.ends_with("sound"), "{sound}");

    let mut bytes = fs::read(&path).expect("a kernel has a vmlinux");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    // Replaced, not written to: the file is shared with the seed.
    fs::remove_file(&path).expect("the state is ours");
    write(&path, &bytes);

    // Its beginning is as it was.
    banger.ok(&["store", "check"]);
    let ran = banger.run(&["store", "check", "--contents"]);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let said = ran.text();
    let remedy = "`banger kernel pull debian-6.1-cloud --force`";
    assert!(
        said.contains("kernel debian-6.1-cloud is damaged: "),
        "{said}"
    );
    assert!(said.contains("vmlinux") && said.contains(remedy), "{said}");
    assert!(!said.contains("image debian-minimal is"), "{said}");
    let ran = banger.run(&["store", "check", "--contents", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("it is JSON");
    assert_eq!(
        report["findings"].as_array().map(Vec::len),
        Some(1),
        "{report}"
    );
}
