//! End to end: guests that go on from a template instead of booting their kernel. They share
//! nothing that is random, a template that is of no use is done without, and nothing of one
//! that is being made outlives a crash.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use support::events::{ask_until, kill_and_wait};
use support::{Banger, DEADLINE, in_shell, skip};

const IMAGE: &str = "debian-minimal";

/// A room whose cache holds no template yet; `None` where guests are not translated.
fn room(test: &str) -> Option<Banger> {
    let mut banger = Banger::with_images(&[IMAGE]);
    let cache = banger.home().join("cache");
    banger.set("BANGER_CACHE_DIR", cache);
    // Not `json`: doctor's status is 1 where it fails something else.
    let rows: serde_json::Value = serde_json::from_str(&banger.run(&["doctor", "--json"]).text())
        .expect("doctor prints JSON");
    let rows = rows.as_array().expect("a list of rows");
    let vmm = rows.iter().find(|row| row["name"] == "vmm");
    let detail = vmm.and_then(|row| row["detail"].as_str());
    if !detail.is_some_and(|detail| detail.starts_with("qemu-tcg")) {
        skip(test, "guests are not emulated here");
        return None;
    }
    Some(banger)
}

fn templates(banger: &Banger) -> Vec<PathBuf> {
    let folder = fs::read_dir(banger.home().join("cache/machines"));
    let entries = folder.into_iter().flatten();
    entries.map(|entry| entry.expect("ours").path()).collect()
}

fn log(banger: &Banger) -> String {
    fs::read_to_string(banger.state().join("bangerd.log")).expect("a daemon has logged")
}

/// Whether a VM's guest says that it went on from a template.
fn went_on(banger: &Banger, vm: &str) -> bool {
    let view = banger.json(&["vm", "show", vm]);
    let phases = view["boot_phases"].as_array().expect("a list of phases");
    phases.iter().any(|phase| phase[0] == "template")
}

#[test]
fn guests_of_one_template_share_nothing_that_is_random() {
    let Some(banger) = room("guests_of_one_template_share_nothing_that_is_random") else {
        return;
    };
    // The log of whoever pulled the images comes with them.
    banger.ok(&["vm", "list"]);
    let count = || log(&banger).matches("made the template").count();
    let before = count();
    let vms = ["a", "b", "c"];
    // The first two at once: one makes the template, the other boots meanwhile, or is late
    // enough to find it.
    let starting = ["a", "b"].map(|vm| {
        let run = ["vm", "run", "-d", "--name", vm, "--image", IMAGE];
        banger.start(&run)
    });
    for run in starting {
        let ran = run.finish(DEADLINE);
        assert_eq!(ran.code(), Some(0), "{ran:?}");
    }
    banger.boot("c");
    assert_eq!((count() - before, templates(&banger).len()), (1, 1));
    assert!(went_on(&banger, "a") || went_on(&banger, "b"));
    assert!(went_on(&banger, "c"));
    banger.ok(&["vm", "restart", "a", "b"]);
    assert!(went_on(&banger, "a") && went_on(&banger, "b"));

    let script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; \
                  head -c 16 /dev/urandom | od -An -tx1";
    let draw = |vm: &str| -> Vec<String> {
        let drawn = banger.ok(&in_shell(vm, script));
        drawn.lines().map(str::to_owned).collect()
    };
    let mut drawn: Vec<String> = vms.iter().flat_map(|vm| draw(vm)).collect();
    // Neither does a VM share anything with itself before a restart but its disks.
    banger.exec("a", &["touch", "/root/kept"]);
    banger.ok(&["vm", "restart", "a"]);
    drawn.extend(draw("a"));
    banger.exec("a", &["ls", "/root/kept"]);
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 4 * 3, "{drawn:?}");
}

/// When a VM's work disk was mounted last, by its superblock: seconds since the epoch.
fn mounted_at(banger: &Banger, vm: &str) -> u64 {
    let view = banger.json(&["vm", "show", vm]);
    let id = view["id"].as_str().expect("a VM has an id");
    let disk = fs::File::open(banger.state().join("vms").join(id).join("work.ext4"));
    let mut time = [0; 4];
    let disk = disk.expect("a VM has a work disk");
    disk.read_exact_at(&mut time, 1024 + 0x2c)
        .expect("it has a superblock");
    u32::from_le_bytes(time).into()
}

/// Symptom: disks were mounted in the time of the template; the host's answer came later.
#[test]
fn a_guest_from_a_template_knows_the_time_before_it_mounts_a_disk() {
    let Some(banger) = room("a_guest_from_a_template_knows_the_time_before_it_mounts_a_disk")
    else {
        return;
    };
    banger.boot("a");
    // Some seconds pass.
    for _ in 0..4 {
        banger.ok(&["vm", "restart", "a"]);
    }
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    banger.ok(&["vm", "restart", "a"]);
    assert!(went_on(&banger, "a"));
    banger.ok(&["vm", "stop", "a"]);
    let mounted = mounted_at(&banger, "a");
    assert!(mounted + 1 >= now.as_secs(), "{mounted} and {now:?}");
}

#[test]
fn each_shape_has_a_template_and_none_is_made_where_none_is_wanted() {
    let Some(banger) = room("each_shape_has_a_template_and_none_is_made_where_none_is_wanted")
    else {
        return;
    };
    let run = |name: &str, more: &[&str]| {
        let usual = ["vm", "run", "-d", "--name", name, "--image", IMAGE];
        banger.ok(&[&usual, more].concat());
    };
    run("two", &["--vcpu", "2", "--memory", "384M"]);
    assert_eq!(banger.exec("two", &["nproc"]), "2");
    run("one", &["--vcpu", "1", "--memory", "384M"]);
    assert_eq!(banger.exec("one", &["nproc"]), "1");
    assert_eq!(templates(&banger).len(), 2);
    banger.ok(&["vm", "stop", "one"]);
    banger.ok(&["vm", "set", "one", "--memory", "256M"]);
    banger.ok(&["vm", "start", "one"]);
    assert!(went_on(&banger, "one"));
    assert_eq!(templates(&banger).len(), 3);

    banger.ok(&["config", "set", "templates", "false"]);
    banger.ok(&["daemon", "stop"]);
    banger.ok(&["vm", "restart", "one"]);
    assert!(!went_on(&banger, "one"));
    let line = banger.exec("one", &["cat", "/proc/cmdline"]);
    assert!(!line.contains("banger.template"), "{line}");
    run("other", &["--memory", "320M"]);
    assert!(!went_on(&banger, "other"));
    assert_eq!(templates(&banger).len(), 3);
    // The one that runs since before is none of this daemon's wishes.
    assert_eq!(banger.exec("two", &["nproc"]), "2");
}

#[test]
fn a_damaged_template_is_done_without_and_made_again() {
    let Some(banger) = room("a_damaged_template_is_done_without_and_made_again") else {
        return;
    };
    banger.boot("a");
    let [template] = &templates(&banger)[..] else {
        panic!("one template")
    };
    let file = fs::File::options().write(true).open(template);
    let file = file.expect("a file of ours");
    let middle = file.metadata().expect("it is open").len() / 2;
    file.write_all_at(b"damage", middle).expect("it is open");
    // The next daemon compares before it believes.
    banger.kill_daemon();
    banger.ok(&["vm", "restart", "a"]);
    assert!(!went_on(&banger, "a"));
    let said = "begins without its template, which is removed";
    assert!(log(&banger).contains(said), "{}", log(&banger));
    assert!(!template.exists());
    banger.ok(&["vm", "restart", "a"]);
    assert!(went_on(&banger, "a"));
    assert!(template.exists());
}

#[test]
fn a_folder_that_takes_no_template_leaves_the_kernel_to_boot() {
    let Some(banger) = room("a_folder_that_takes_no_template_leaves_the_kernel_to_boot") else {
        return;
    };
    fs::create_dir_all(banger.home().join("cache")).expect("a fresh home");
    fs::write(banger.home().join("cache/machines"), "no folder").expect("a fresh folder");
    banger.boot("a");
    assert!(!went_on(&banger, "a"));
    assert!(log(&banger).contains("begin without a template"));
    banger.exec("a", &["true"]);
}

/// Processes of machines of which templates are made.
fn makers(banger: &Banger) -> Vec<u32> {
    let makes = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("\0panic=pause\0")
    };
    banger.processes().into_iter().filter(makes).collect()
}

#[test]
fn a_daemon_or_a_vmm_killed_while_a_template_is_made_leaves_nothing_of_it() {
    let Some(banger) =
        room("a_daemon_or_a_vmm_killed_while_a_template_is_made_leaves_nothing_of_it")
    else {
        return;
    };
    let run = ["vm", "run", "-d", "--name", "a", "--image", IMAGE];
    let client = banger.start(&run);
    ask_until(|| makers(&banger), |found| !found.is_empty());
    banger.kill_daemon();
    client.finish(DEADLINE);
    // The next daemon brings it to rest: the start is undone or done again.
    let rest = ["created", "running", "stopped"];
    ask_until(|| banger.phase("a"), |phase| rest.contains(&phase.as_str()));
    assert_eq!(makers(&banger), Vec::<u32>::new());
    banger.ok(&["vm", "delete", "a"]);

    // The template's own VMM: the kernel boots then, and the next start makes another. A
    // machine that was quicker than we has been written down, and is tried again.
    let interrupted = || {
        for template in templates(&banger) {
            fs::remove_file(template).expect("a file of ours");
        }
        let client = banger.start(&run);
        let found = ask_until(|| makers(&banger), |found| !found.is_empty());
        kill_and_wait(found[0]);
        let ran = client.finish(DEADLINE);
        assert_eq!(ran.code(), Some(0), "{ran:?}");
        assert_eq!(makers(&banger), Vec::<u32>::new());
        let went_on = went_on(&banger, "a");
        if went_on {
            banger.ok(&["vm", "delete", "a"]);
        }
        !went_on
    };
    assert!((0..5).any(|_| interrupted()), "a maker can be killed");
    assert_eq!(templates(&banger), Vec::<PathBuf>::new());
    banger.ok(&["vm", "restart", "a"]);
    assert!(went_on(&banger, "a"));
}
