//! A power cut while a root is written to, grown and made anew.
//!
//! ```text
//!  here                              in a guest
//!  start a part                -->   a snapshot root on files of the guest's work disk:
//!  wait for a line             <--   fills it and tells of each file that it has synced
//!  SIGKILL to the guest's VMM
//!  start the VM again
//!  play the part `check`       -->   recovers as a daemon does, and looks for all that
//!                                    was promised by those lines
//! ```
//!
//! What the guest had not written to its disk by then is gone, as the power's end has it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger::host::{Host, dm};
use banger::model::ids::VmId;
use banger::model::units::Bytes;
use banger::plan::step::Presence;
use banger::plan::store_level::StoreState;

use super::in_a_guest::load_modules;
use super::place::{Place, ROOT};
use super::support::events::{ask_until, kill_and_wait};
use super::support::inside::{self, Inside};
use super::support::{Banger, DEADLINE};

const TEST: &str = "power::a_root_has_what_was_synced_before_the_power_was_cut";
/// In the guest, on the disk that outlives it.
const FOLDER: &str = "/root/power";
/// In the guest, in memory.
const RUNTIME: &str = "/run/power";
/// A file system that is shorter than the root.
const IMAGE: Bytes = Bytes::mib(48);
/// How often a store is made longer: for longer than the power lasts.
const GROWTHS: u64 = 5000;
/// Bytes of a file, and how many are written at most.
const FILE: usize = 96 << 10;
const FILES: usize = 200;

#[test]
fn a_root_has_what_was_synced_before_the_power_was_cut() {
    let part = inside::part();
    let words: Vec<&str> = part.iter().flat_map(|part| part.split(':')).collect();
    match words.as_slice() {
        [] => cut_and_check(),
        ["fill", from] => fill(from.parse().unwrap()),
        ["grow", from] => grow_and_fill(from.parse().unwrap()),
        ["renew", _] => renew(),
        ["check", word, number] => check(word, number.parse().unwrap()),
        part => panic!("there is no such part: {part:?}"),
    }
}

/// The cuts: what goes on, and the line after which the power goes.
const CUTS: [(&str, &str); 5] = [
    ("fill:0", "synced 1\n"),
    ("fill:2", "synced 60\n"),
    ("grow:61", "synced 65\n"),
    ("renew:0", "renewed 2\n"),
    ("renew:0", "removed 4\n"),
];

/// The outer test.
fn cut_and_check() {
    let banger = Banger::with_images(&["debian-bookworm"]);
    banger.ok(&["vm", "run", "-d", "--name", "a"]);
    let inside = Inside::bring(&banger, "a");
    banger.exec("a", &["sync"]);
    for (part, line) in CUTS {
        load_modules(&banger, "a");
        let running = inside.start_part(TEST, part);
        let said = running.wait_for_output(line);
        cut_power(&banger);
        running.finish(DEADLINE);
        banger.ok(&["vm", "start", "a"]);
        load_modules(&banger, "a");
        let found = inside.run_part(TEST, &format!("check:{}", promised(&said)));
        let found = found.split("found ").nth(1).unwrap();
        let found = found.lines().next().unwrap();
        println!("power cut in {part} after {}: found {found}", line.trim());
    }
}

fn cut_power(banger: &Banger) {
    let pid = banger.json(&["vm", "show", "a"])["pid"].as_u64().unwrap();
    kill_and_wait(u32::try_from(pid).unwrap());
    ask_until(|| banger.phase("a"), |phase| phase == "stopped");
}

/// The last line with a number of this output, as `word:number`.
fn promised(said: &str) -> String {
    let last = |word: &str| {
        let numbers = said
            .lines()
            .filter_map(|line| line.strip_prefix(word)?.trim().parse().ok());
        numbers
            .max()
            .map(|number: usize| format!("{word}:{number}"))
    };
    last("synced")
        .or_else(|| last("renewed"))
        .unwrap_or_else(|| "renewed:0".to_owned())
}

/// The VM that is in all the boots of the guest.
fn place() -> Place {
    Place::of(
        VmId::from_bits(0x90e7),
        Path::new(FOLDER),
        Path::new(RUNTIME),
    )
}

fn kept_image() -> PathBuf {
    Path::new(FOLDER).join("image.kept")
}

/// An image that is a file system, and a copy to compare it with later.
fn make_image(place: &Place) {
    let file = File::create(place.image()).unwrap();
    file.set_len(IMAGE.0).unwrap();
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(place.image()));
    run(Command::new("cp")
        .arg("--sparse=always")
        .args([place.image(), kept_image()]));
    rustix::fs::syncfs(file).unwrap();
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The root, mounted until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn of(place: &Place) -> Mounted {
        let at = Path::new(RUNTIME).join("root");
        fs::create_dir_all(&at).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(place.root(), &at, "ext4", flags, None).unwrap();
        Mounted(at)
    }

    fn file(&self, number: usize) -> PathBuf {
        self.0.join(format!("file-{number}"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty());
    }
}

fn content(number: usize) -> Vec<u8> {
    (0..FILE).map(|at| (at / 512 * 7 + number) as u8).collect()
}

/// Writes file after file, and says of each when it is on the disk.
fn write_files(root: &Mounted, from: usize) {
    for number in from..from + FILES {
        let mut file = File::create(root.file(number)).unwrap();
        file.write_all(&content(number)).unwrap();
        file.sync_all().unwrap();
        println!("synced {number}");
    }
}

/// Fills a root; a new one if it begins with the first file.
fn fill(from: usize) {
    let place = place();
    if from == 0 {
        make_image(&place);
    }
    place.make(&place.steps());
    write_files(&Mounted::of(&place), from);
}

/// Fills the root while its store is made longer again and again.
fn grow_and_fill(from: usize) {
    let place = place();
    place.make(&place.steps());
    let root = Mounted::of(&place);
    std::thread::scope(|scope| {
        scope.spawn(|| write_files(&root, from));
        for times in 1..GROWTHS {
            place.make(&[place.cow_loop_of(Bytes(ROOT.0 + times * (4 << 20)))]);
            println!("grown {times}");
        }
    });
}

/// Makes the root anew, as `vm reset` does, again and again.
fn renew() {
    let place = place();
    let steps = place.steps();
    for times in 1.. {
        place.remove(&steps);
        println!("removed {times}");
        place.make(&steps);
        println!("renewed {times}");
        let root = Mounted::of(&place);
        write_generation(&root, times).unwrap();
    }
}

/// Written aside, synced and renamed, so that it is whole or not there, whenever the power
/// goes.
fn write_generation(root: &Mounted, times: usize) -> io::Result<()> {
    let aside = root.0.join("generation.aside");
    let mut file = File::create(&aside)?;
    file.write_all(times.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(aside, root.0.join("generation"))?;
    File::open(&root.0)?.sync_all()
}

/// Recovers as a daemon does after a reboot, and looks for what was promised.
fn check(word: &str, number: usize) {
    let place = place();
    assert_eq!(place.devices(), [""; 0], "they went with the power");
    let steps = place.steps();
    for _ in 0..2 {
        place.remove(&steps[1..]);
    }
    assert_eq!(
        place.host.probe(&steps[0]),
        Ok(Presence::Present),
        "the store"
    );
    place.make(&steps[1..]);
    for step in &steps {
        assert_eq!(
            place.host.probe(step),
            Ok(Presence::Present),
            "{}",
            step.kind().word()
        );
    }
    let level = dm::level(place.vm).unwrap().unwrap();
    assert_eq!(level.state, StoreState::Active, "{level:?}");
    let found = found(&place, word, number);
    assert!(
        level.used.0 >= (found * FILE) as u64,
        "{level:?} with {found} files"
    );
    let device = fs::read_link(place.root()).unwrap();
    run(Command::new("e2fsck").arg("-fn").arg(device));
    run(Command::new("cmp").args([place.image(), kept_image()]));
    place.remove(&steps[1..]);
    assert_eq!(place.devices(), [""; 0]);
    println!("found {found} files, store {level:?}");
}

/// How many files there are; those that were promised must be, and whole.
fn found(place: &Place, word: &str, number: usize) -> usize {
    let root = Mounted::of(place);
    if word == "synced" {
        for number in 0..=number {
            assert!(
                fs::read(root.file(number)).unwrap() == content(number),
                "{number}"
            );
        }
    }
    if word == "renewed" {
        // A root that was just made has none yet.
        let generation = fs::read_to_string(root.0.join("generation")).ok();
        let generation = generation.map(|text| text.parse::<usize>().expect("it is whole"));
        assert!(
            generation.is_none_or(|generation| generation >= number),
            "a root of before the {number}th reset: {generation:?}"
        );
        assert!(!root.file(0).exists(), "a root of before all resets");
    }
    let all = fs::read_dir(&root.0).unwrap();
    all.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("file-")
    })
    .count()
}
