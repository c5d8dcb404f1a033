//! A disk below the state directory that refuses writes, or takes them and forgets them
//! (device-mapper's target flakey): what our steps say then, and that all of it goes away.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use banger::host::{Host, dm};
use banger::model::ids::VmId;
use banger::model::units::Bytes;
use banger::plan::step::{FaultKind, Presence, Step};
use banger::plan::store_level::StoreState;
use banger::store::Store;

use super::mapped::{LoopDevice, Mapped, Mounted, control, empty_file, run, text};
use super::place::{BASE, Place};

/// A file system over a disk that can be made faulty.
struct FaultyDisk {
    mounted: Option<Mounted>,
    mapped: Mapped,
    device: LoopDevice,
    folder: tempfile::TempDir,
}

/// What a disk does with writes; it always reads.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Refuses,
    Forgets,
}

impl FaultyDisk {
    fn new() -> FaultyDisk {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = empty_file(folder.path().join("data"), 192);
        run("mke2fs", &["-q", "-t", "ext4", text(&file)]);
        let device = LoopDevice::over(&file);
        let mapped = Mapped::over(&device, "linear", &format!("{} 0", device.node()));
        let mut disk = FaultyDisk {
            mounted: None,
            mapped,
            device,
            folder,
        };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    fn path(&self) -> &Path {
        self.mounted.as_ref().unwrap().path()
    }

    fn mount(&mut self) {
        let at = self.folder.path().join("disk");
        self.mounted = Some(Mounted::ext4(&self.mapped.node(), at));
    }

    /// From now on; what was written before is on the disk.
    fn becomes(&self, fault: Fault) {
        let how = match fault {
            Fault::Refuses => "error_writes",
            Fault::Forgets => "drop_writes",
        };
        // Up for no time, down for an hour, one option.
        let parameters = format!("{} 0 0 3600 1 {how}", self.device.node());
        self.mapped.becomes(&self.device, "flakey", &parameters);
    }

    /// Another boot, with a disk that works.
    fn is_replaced(&mut self) {
        self.mounted = None;
        let parameters = format!("{} 0", self.device.node());
        self.mapped.becomes(&self.device, "linear", &parameters);
        run("e2fsck", &["-fp", &self.mapped.node()]);
        self.mount();
    }

    /// A place with an image whose state lies on it.
    fn place(&self) -> Place {
        let vm = VmId::from_bits(0xfa17);
        let place = Place::of(vm, self.path(), self.folder.path());
        if !place.image().exists() {
            empty_file(place.image(), BASE.whole_mib());
        }
        place
    }
}

/// Runs a test where disks can be made faulty, or says why not.
fn with_a_faulty_disk(name: &str, test: impl FnOnce(FaultyDisk)) {
    let lack = dm::fitness().err().or_else(|| {
        let version = control().target_version("flakey");
        version
            .err()
            .map(|error| format!("device-mapper's flakey: {error}"))
    });
    match lack {
        None => test(FaultyDisk::new()),
        Some(why) => println!("skipped: {name}: {why}"),
    }
}

/// Writes a mebibyte of the root, and has it synced.
fn write(place: &Place, at: u64, byte: u8) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(place.root())?;
    file.write_all_at(&vec![byte; 1 << 20], at)?;
    file.sync_all()
}

fn reads(place: &Place, at: u64, byte: u8) -> bool {
    let mut bytes = vec![0; 1 << 20];
    let read = File::open(place.root()).and_then(|file| file.read_exact_at(&mut bytes, at));
    read.is_ok() && bytes == vec![byte; 1 << 20]
}

fn state(place: &Place) -> StoreState {
    dm::level(place.vm).unwrap().unwrap().state
}

#[test]
fn a_store_whose_disk_refuses_writes_is_invalid_told_and_taken_away() {
    with_a_faulty_disk("a_store_whose_disk_refuses_writes", |mut disk| {
        let place = disk.place();
        let steps = place.steps();
        place.make(&steps);
        write(&place, 0, 1).unwrap();
        assert_eq!(state(&place), StoreState::Active);

        disk.becomes(Fault::Refuses);
        assert!(write(&place, 32 << 20, 2).is_err());
        assert_eq!(state(&place), StoreState::Invalid);
        assert!(!reads(&place, 0, 1), "nothing of it can be read any more");
        assert_eq!(place.host.probe(&steps[3]), Ok(Presence::Different));
        let fault = place.host.ensure(&steps[3]).unwrap_err();
        assert!(fault.what.contains("invalid"), "{fault}");
        assert!(fault.remedy.unwrap().contains("vm reset"));
        for _ in 0..2 {
            place.remove(&steps[1..]);
        }
        assert_eq!(place.devices(), [""; 0]);
        drop(place);

        // It could not even be declared invalid on the disk: what was synced before the
        // first refusal is there again.
        disk.is_replaced();
        let place = disk.place();
        place.make(&steps);
        assert_eq!(state(&place), StoreState::Active);
        assert!(reads(&place, 0, 1));
        place.remove(&steps);
    });
}

#[test]
fn steps_on_a_disk_that_refuses_writes_say_so_and_leave_nothing() {
    with_a_faulty_disk("steps_on_a_disk_that_refuses_writes", |mut disk| {
        let place = disk.place();
        let (vm, size) = (VmId::from_bits(0xfa18), Bytes::mib(64));
        let store = place.host.layout().state.join("store.redb");
        let (mut rows, _) = Store::open(&store).unwrap();
        disk.becomes(Fault::Refuses);
        let steps = [
            Step::VmDirectory { vm },
            Step::CowFile { vm, size },
            Step::WorkDisk { vm, size },
        ];
        let mut faults = Vec::new();
        // A folder gets to the disk with the first file in it.
        assert_eq!(place.host.ensure(&steps[0]), Ok(()));
        for step in &steps[1..] {
            let fault = place.host.ensure(step).unwrap_err();
            assert!(fault.what.contains(text(disk.path())), "{fault}");
            faults.push(fault);
        }
        assert!(faults[0].what.contains("I/O error"), "{}", faults[0]);
        assert_eq!(faults[0].kind, FaultKind::Other);
        let failure = rows.save(&[]).unwrap_err();
        assert!(format!("{failure:?}").contains("I/O error"), "{failure:?}");
        drop((rows, place));

        disk.is_replaced();
        let place = disk.place();
        for step in steps.iter().rev() {
            assert_eq!(place.host.absent(step), Ok(()));
            assert_eq!(place.host.probe(step), Ok(Presence::Absent));
        }
        Store::open(&store).unwrap();
    });
}

#[test]
fn what_a_disk_forgets_is_as_if_it_had_not_been_done() {
    with_a_faulty_disk("what_a_disk_forgets", |mut disk| {
        let place = disk.place();
        let steps = place.steps();
        place.make(&steps);
        write(&place, 0, 1).unwrap();
        disk.becomes(Fault::Forgets);
        write(&place, 32 << 20, 2).unwrap();
        assert_eq!(
            state(&place),
            StoreState::Active,
            "it says that it has written"
        );
        let later = VmId::from_bits(0xfa19);
        place.host.ensure(&Step::VmDirectory { vm: later }).unwrap();
        place.remove(&steps[1..]);
        drop(place);

        disk.is_replaced();
        let place = disk.place();
        assert_eq!(
            place.host.probe(&Step::VmDirectory { vm: later }),
            Ok(Presence::Absent)
        );
        place.make(&steps);
        assert_eq!(state(&place), StoreState::Active);
        assert!(reads(&place, 0, 1));
        assert!(reads(&place, 32 << 20, 0), "the change is forgotten whole");
        place.remove(&steps);
        assert_eq!(
            fs::read_dir(place.host.layout().state.join("vms"))
                .unwrap()
                .count(),
            1
        );
    });
}
