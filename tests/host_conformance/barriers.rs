//! The disk below the state directory, as a power cut leaves it: at every barrier that was
//! reached, and with any part of what was written after it.
//!
//! All writes of real operations on a real store and real disks are logged together with
//! what was reported at which point ([`super::write_log`]). Then the disk is made again as
//! it was at each of these points, mounted, recovered from as a daemon does, and compared
//! with the reports: what was reported is there, and nothing half-made is taken for whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use banger::host::layout::Layout;
use banger::host::{Host, RealHost, Settings, dm};
use banger::model::ids::VmId;
use banger::model::units::Bytes;
use banger::model::vm::{Phase, RootMode, VmSpec};
use banger::plan::make;
use banger::plan::operation::{Effect, Mark, Operation};
use banger::plan::record::{Removal, RowChange, VmRecord};
use banger::plan::step::Presence;
use banger::plan::store_level::StoreState;
use banger::store::Store;

use rustix::fs::{SeekFrom, seek};

use super::mapped::{LoopDevice, Mapped, Mounted, control, empty_file, run, text};
use super::place::{Place, ROOT};
use super::write_log::{self, Entry};

/// A disk whose writes are logged.
struct Recording {
    disk: Mounted,
    mapped: Mapped,
    _loops: [LoopDevice; 2],
    folder: tempfile::TempDir,
}

impl Recording {
    /// An empty file system, from whose making on everything is logged.
    fn begin() -> Recording {
        // In memory: a disk would log its own writes below ours.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let below = |name: &str| folder.path().join(name);
        let data = empty_file(below("data"), 128);
        // Few inodes: what is to be examined at each point is small.
        let options = ["-q", "-t", "ext4", "-N", "256", "-J", "size=4"];
        run("mke2fs", &[&options[..], &[text(&data)]].concat());
        copy(&data, &below("before"));
        let data = LoopDevice::over(&data);
        let log = LoopDevice::over(&empty_file(below("log"), 4096));
        let parameters = format!("{} {}", data.node(), log.node());
        let mapped = Mapped::over(&data, "log-writes", &parameters);
        Recording {
            disk: Mounted::ext4(&mapped.node(), below("disk")),
            mapped,
            _loops: [data, log],
            folder,
        }
    }

    /// Notes what was reported at this point of the log.
    fn report(&self, number: usize) {
        self.mapped.message(&format!("mark {number}"));
    }

    /// Stops; what was logged.
    fn end(self) -> Log {
        let Recording {
            disk,
            mapped,
            _loops,
            folder,
        } = self;
        drop((disk, mapped, _loops));
        let entries = write_log::read(&folder.path().join("log"));
        Log { entries, folder }
    }
}

/// What was written and reported.
struct Log {
    entries: Vec<Entry>,
    folder: tempfile::TempDir,
}

impl Log {
    /// Makes the disk as it was at each barrier and at each report, and between two
    /// barriers with some of the writes only, and lets `check` look at it: mounted at this
    /// folder, with the last report before. How often.
    fn at_every_point(&self, mut check: impl FnMut(&Path, usize)) -> usize {
        let below = |name: &str| self.folder.path().join(name);
        copy(&below("before"), &below("now"));
        let now = OpenOptions::new().write(true).open(below("now")).unwrap();
        let (mut reported, mut points, mut pending) = (0, 0, Vec::new());
        let mut look = |disk: &str, reported: usize| {
            copy(&below(disk), &below("copy"));
            points += 1;
            self.mounted(|folder| check(folder, reported));
        };
        for entry in &self.entries {
            match entry {
                Entry::Mark(text) => {
                    let Ok(number) = text.parse() else { continue };
                    reported = number;
                    look("now", reported);
                }
                Entry::Write {
                    is_barrier: true, ..
                } => {
                    if pending.len() > 1 {
                        copy(&below("now"), &below("torn"));
                        let torn = OpenOptions::new().write(true).open(below("torn")).unwrap();
                        some_of(&pending).for_each(|entry| write_log::apply(entry, &torn));
                        look("torn", reported);
                    }
                    pending
                        .drain(..)
                        .for_each(|entry| write_log::apply(entry, &now));
                    write_log::apply(entry, &now);
                    look("now", reported);
                }
                Entry::Write { .. } | Entry::Discard { .. } => pending.push(entry),
            }
        }
        points
    }

    /// Mounts the copy, which recovers its journal, and has it whole afterwards.
    fn mounted(&self, check: impl FnOnce(&Path)) {
        let file = self.folder.path().join("copy");
        let device = LoopDevice::over(&file);
        let disk = Mounted::ext4(device.node(), self.folder.path().join("disk"));
        check(disk.path());
        drop((disk, device));
        run("e2fsck", &["-fn", text(&file)]);
    }
}

/// Every second or third of them, by their places: no order of a disk is excluded.
fn some_of<'a>(pending: &'a [&Entry]) -> impl Iterator<Item = &'a Entry> {
    let seed = pending.len();
    let chosen = move |at: &usize| (at * 7 + seed) % 5 < 2;
    (0..pending.len()).filter(chosen).map(|at| pending[at])
}

/// Copies what a sparse file holds.
fn copy(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let length = from.metadata().unwrap().len();
    to.set_len(length).unwrap();
    let mut end = 0;
    while let Ok(start) = seek(&from, SeekFrom::Data(end)) {
        end = seek(&from, SeekFrom::Hole(start)).unwrap();
        seek(&from, SeekFrom::Start(start)).unwrap();
        seek(&to, SeekFrom::Start(start)).unwrap();
        io::copy(&mut (&from).take(end - start), &mut &to).unwrap();
    }
}

/// Runs a test where writes can be logged, or says why not.
fn with_a_log(name: &str, test: impl FnOnce(Recording)) {
    let lack = dm::fitness().err().or_else(|| {
        let version = control().target_version("log-writes");
        version
            .err()
            .map(|error| format!("device-mapper's log-writes: {error}"))
    });
    match lack {
        None => test(Recording::begin()),
        Some(why) => println!("skipped: {name}: {why}"),
    }
}

/// A host whose state lies in this folder, with its store.
struct Machine {
    host: RealHost,
    store: Store,
    rows: Vec<VmRecord>,
}

impl Machine {
    fn at(folder: &Path, scratch: &Path) -> Machine {
        let layout = Layout {
            state: folder.join("state"),
            cache: scratch.join("cache"),
            runtime: scratch.join("run"),
        };
        fs::create_dir_all(&layout.state).unwrap();
        let (store, loaded) = Store::open(&layout.state.join("store.redb")).unwrap();
        assert!(loaded.unreadable.is_empty());
        Machine {
            host: RealHost::new(layout, Settings::default()),
            store,
            rows: loaded.vms,
        }
    }

    /// Carries an operation out as the daemon does; calls `saved` after each save.
    fn carry_out(
        &mut self,
        mut operation: Operation,
        row: &mut VmRecord,
        mut saved: impl FnMut(Option<Phase>),
    ) {
        while let Some(effect) = operation.next() {
            match effect {
                Effect::Save(Mark::Phase(phase)) => {
                    row.phase = phase;
                    let row = Box::new(row.clone());
                    self.store.save(&[RowChange::PutVm(row)]).unwrap();
                    saved(Some(phase));
                }
                Effect::Save(Mark::Adjusted) => unreachable!("nothing runs here"),
                Effect::Save(Mark::Gone) => {
                    self.store.save(&[RowChange::DropVm(row.id)]).unwrap();
                    saved(None);
                }
                Effect::Ensure(step) => self.host.ensure(&step).unwrap(),
                Effect::Absent(step) => self.host.absent(&step).unwrap(),
            }
            operation.report(Ok(()));
        }
    }

    /// What a daemon does when it finds these rows; the rows that are left.
    fn recover(&mut self) -> Vec<VmRecord> {
        let mut left = Vec::new();
        for mut row in std::mem::take(&mut self.rows) {
            let mut is_gone = false;
            let (disks, run) = (row.disk_plan.clone(), row.run_plan.clone());
            let operation = match row.phase {
                Phase::Creating | Phase::Deleting => Some(Operation::delete(&disks, &run)),
                Phase::Resetting => Some(Operation::reset(&disks)),
                _ => None,
            };
            if let Some(operation) = operation {
                self.carry_out(operation, &mut row, |phase| is_gone = phase.is_none());
            }
            if !is_gone {
                left.push(row);
            }
        }
        left
    }

    fn folders(&self) -> Vec<String> {
        let folders = self.host.layout().state.join("vms");
        let entries = fs::read_dir(folders).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn row(id: VmId, mode: RootMode) -> VmRecord {
    let spec = VmSpec {
        work_disk: Bytes::mib(64),
        root_disk: ROOT,
        root_mode: mode,
        ..make::unknown(format!("vm-{id}").parse().unwrap())
    };
    VmRecord {
        id,
        disk_plan: make::disk_plan(id, &spec),
        spec,
        lease: None,
        phase: Phase::Creating,
        stuck: None,
        reason: None,
        net_reason: None,
        git: None,
        removal: Removal::Keep,
        grows: false,
        run_plan: Vec::new(),
        vmm: None,
        boot: None,
        created_at: 0,
        started_at: None,
    }
}

/// What holds the changes to a VM's root.
fn root_file(layout: &Layout, row: &VmRecord) -> PathBuf {
    match row.spec.root_mode {
        RootMode::DmSnapshot => layout.cow_file(row.id),
        RootMode::Overlay | RootMode::Reflink => layout.upper_disk(row.id),
    }
}

const USED: &[u8] = b"a guest was here";
/// Where the first blocks of neither a file system nor a store are.
const AT: u64 = 40 << 20;

fn is_used(layout: &Layout, row: &VmRecord) -> bool {
    let mut bytes = [0; USED.len()];
    let root = File::open(root_file(layout, row)).unwrap();
    root.read_exact_at(&mut bytes, AT).unwrap();
    bytes == USED
}

/// A guest changes its root, and has it synced.
fn use_root(layout: &Layout, row: &VmRecord) {
    let root = OpenOptions::new()
        .write(true)
        .open(root_file(layout, row))
        .unwrap();
    root.write_all_at(USED, AT).unwrap();
    root.sync_all().unwrap();
}

/// The rows after each save, and which of them are of a root that was made anew.
#[derive(Debug, Clone, Default)]
struct Truth {
    rows: BTreeMap<VmId, Phase>,
    renewed: Vec<VmId>,
}

/// Creates, uses, resets and deletes VMs; the truth after each save.
fn live(recording: &Recording, scratch: &Path) -> Vec<Truth> {
    let mut machine = Machine::at(recording.disk.path(), scratch);
    recording.report(0);
    let mut truths = vec![Truth::default()];
    let mut rows = [(1, RootMode::Overlay), (2, RootMode::DmSnapshot)]
        .map(|(id, mode)| row(VmId::from_bits(id), mode));
    let mut play = |operation: Operation, row: &mut VmRecord, renews: bool| {
        let id = row.id;
        machine.carry_out(operation, row, |phase| {
            let mut truth = truths.last().unwrap().clone();
            match phase {
                Some(phase) => truth.rows.insert(id, phase),
                None => truth.rows.remove(&id),
            };
            if renews && phase == Some(Phase::Stopped) {
                truth.renewed.push(id);
            }
            truths.push(truth);
            recording.report(truths.len() - 1);
        });
        machine.host.layout().clone()
    };
    for row in &mut rows {
        let layout = play(Operation::create(&row.disk_plan.clone()), row, false);
        use_root(&layout, row);
    }
    for row in &mut rows {
        play(Operation::reset(&row.disk_plan.clone()), row, true);
    }
    for row in &mut rows {
        play(Operation::delete(&row.disk_plan.clone(), &[]), row, false);
    }
    truths
}

#[test]
fn what_was_reported_of_vms_is_on_the_disk_at_every_barrier() {
    let name = "what_was_reported_of_vms_is_on_the_disk_at_every_barrier";
    with_a_log(name, |recording| {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let truths = live(&recording, scratch.path());
        let log = recording.end();
        let mut looked_at = None;
        let points = log.at_every_point(|folder, reported| {
            let look = match looked_at.replace(reported) == Some(reported) {
                true => Look::Again,
                false => Look::First,
            };
            recovers(folder, scratch.path(), &truths[reported..], reported, look);
        });
        println!("{points} points, {} reports", truths.len());
    });
}

/// Whether this is the first point after a report: what takes long is done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    Again,
}

/// The rows are those of the last report or of the next, which was on its way; a daemon
/// makes VMs with all they have of them, and nothing else is there.
fn recovers(folder: &Path, scratch: &Path, truths: &[Truth], reported: usize, look: Look) {
    let mut machine = Machine::at(folder, scratch);
    let found: BTreeMap<VmId, Phase> = machine.rows.iter().map(|row| (row.id, row.phase)).collect();
    let truth = truths.iter().take(2).find(|truth| truth.rows == found);
    let truth =
        truth.unwrap_or_else(|| panic!("after report {reported}: {found:?}, not {:?}", &truths[0]));
    for row in machine.rows.clone() {
        if row.phase == Phase::Stopped {
            let renewed = truth.renewed.contains(&row.id);
            is_whole(&machine, &row, &format!("after report {reported}"));
            if look == Look::First {
                let work = machine.host.layout().work_disk(row.id);
                run("e2fsck", &["-fn", text(&work)]);
            }
            let used = is_used(machine.host.layout(), &row);
            assert!(!(renewed && used), "{} is of before its reset", row.id);
        }
    }
    let left = machine.recover();
    for row in &left {
        is_whole(&machine, row, &format!("recovered after report {reported}"));
    }
    let mut named: Vec<String> = left.iter().map(|row| row.id.to_string()).collect();
    let mut folders = machine.folders();
    named.sort();
    folders.sort();
    assert_eq!(folders, named, "after report {reported}");
}

fn is_whole(machine: &Machine, row: &VmRecord, when: &str) {
    for step in &row.disk_plan {
        let seen = machine.host.probe(step);
        assert_eq!(
            seen,
            Ok(Presence::Present),
            "{} of {} {when}",
            step.kind().word(),
            row.id
        );
    }
    run(
        "e2fsck",
        &["-fn", text(&machine.host.layout().work_disk(row.id))],
    );
}

#[test]
fn what_was_reported_and_not_synced_is_missed_at_some_barrier() {
    with_a_log("what_was_reported_and_not_synced", |recording| {
        let folder = recording.disk.path();
        fs::write(folder.join("synced"), "x").unwrap();
        File::open(folder).unwrap().sync_all().unwrap();
        fs::write(folder.join("not synced"), "x").unwrap();
        recording.report(1);
        let mut missed = Vec::new();
        recording.end().at_every_point(|folder, reported| {
            let names = ["synced", "not synced"].into_iter();
            let gone = names.filter(|name| !folder.join(name).exists());
            missed.extend(gone.filter(|_| reported == 1));
        });
        assert!(missed.contains(&"not synced"), "{missed:?}");
        assert!(!missed.contains(&"synced"), "{missed:?}");
    });
}

/// A chunk of a guest's, told apart by its number.
fn chunk(number: usize) -> Vec<u8> {
    vec![number as u8 + 1; 24 << 10]
}

/// Where it lies on the root: in the image, behind it, and spread.
fn place_of(number: usize) -> u64 {
    (number as u64 * 5 % 13) * (4 << 20) + 8192
}

#[test]
fn what_was_synced_to_a_snapshot_is_on_the_disk_at_every_barrier() {
    let name = "what_was_synced_to_a_snapshot_is_on_the_disk_at_every_barrier";
    with_a_log(name, |recording| {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let vm = VmId::from_bits(0xba44);
        let place = Place::of(vm, recording.disk.path(), scratch.path());
        empty_file(place.image(), 16);
        run("sync", &[]);
        let steps = place.steps();
        place.make(&steps);
        let root = OpenOptions::new().write(true).open(place.root()).unwrap();
        for number in 0..6 {
            root.write_all_at(&chunk(number), place_of(number)).unwrap();
            root.sync_all().unwrap();
            recording.report(number + 1);
            if number == 2 {
                place.make(&[place.cow_loop_of(Bytes(2 * ROOT.0))]);
            }
        }
        drop(root);
        place.remove(&steps[1..]);
        let points = recording.end().at_every_point(|folder, reported| {
            holds(&Place::of(vm, folder, scratch.path()), reported);
        });
        println!("{points} points");
    });
}

/// A start after the power cut finds all that was synced.
fn holds(place: &Place, reported: usize) {
    let steps = place.steps();
    if reported > 0 {
        assert_eq!(
            place.host.probe(&steps[0]),
            Ok(Presence::Present),
            "{reported}"
        );
    }
    if !place.image().exists() {
        // Before the image was on the disk nothing could be made over it.
        return assert_eq!(reported, 0);
    }
    place.remove(&steps[1..]);
    place.make(&steps);
    let level = dm::level(place.vm).unwrap().unwrap();
    assert_eq!(level.state, StoreState::Active, "{reported}");
    let root = File::open(place.root()).unwrap();
    for number in 0..reported {
        let mut bytes = chunk(number);
        root.read_exact_at(&mut bytes, place_of(number)).unwrap();
        assert!(bytes == chunk(number), "{number} of {reported}");
    }
    drop(root);
    place.remove(&steps[1..]);
    assert_eq!(place.devices(), [""; 0]);
}
