//! The objects below a VM's root: loop devices, snapshots, copies with shared blocks.
//!
//! Loop devices are the machine's, not a namespace's: each test has a VM of its own and
//! leaves none behind. Device-mapper is in few kernels that tests run on; where it is
//! missing its tests say so by name, and as root in a Debian guest they run.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use banger::host::loopdev::{self, Role};
use banger::host::{Host, cow, dm, reflink};
use banger::model::units::Bytes;
use banger::plan::step::{FaultKind, Presence, Step};
use banger::plan::store_level::StoreState;

use super::make_and_remove_twice;
use super::place::{Place, ROOT, image, with_loops, with_snapshots};

fn read(path: &PathBuf, at: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(path)?.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn write(path: &PathBuf, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, at)?;
    file.sync_all()
}

#[test]
fn loop_devices_are_made_and_removed_twice() {
    with_loops("loop_devices_are_made_and_removed_twice", |place| {
        make_and_remove_twice(&place.host, &place.cow_file());
        place.host.ensure(&place.cow_file()).unwrap();
        make_and_remove_twice(&place.host, &place.cow_loop());
        make_and_remove_twice(&place.host, &place.base_loop());
    });
}

#[test]
fn a_base_is_read_only_and_a_store_reaches_its_file() {
    with_loops("a_base_is_read_only", |place| {
        for step in &place.steps()[..3] {
            place.host.ensure(step).unwrap();
        }
        let base = place.device(Role::Base);
        assert_eq!(read(&base, 4096, 9).unwrap(), b"the image");
        assert!(write(&base, 0, &[1; 512]).is_err());
        write(&place.device(Role::Cow), 8192, &[7; 512]).unwrap();
        let store = place.host.layout().cow_file(place.vm);
        assert_eq!(read(&store, 8192, 512).unwrap(), [7; 512]);
    });
}

#[test]
fn a_device_over_another_file_of_that_name_is_seen_and_replaced() {
    with_loops("a_device_over_another_file", |place| {
        for step in [place.cow_file(), place.cow_loop()] {
            place.host.ensure(&step).unwrap();
        }
        place.host.absent(&place.cow_file()).unwrap();
        place.host.ensure(&place.cow_file()).unwrap();
        assert_eq!(place.host.probe(&place.cow_loop()), Ok(Presence::Different));
        place.host.ensure(&place.cow_loop()).unwrap();
        assert_eq!(place.host.probe(&place.cow_loop()), Ok(Presence::Present));
        place.device(Role::Cow);
    });
}

#[test]
fn a_device_in_use_is_busy_lets_go_with_its_user_and_is_not_taken_for_a_good_one() {
    with_loops("a_device_in_use_is_busy", |place| {
        let step = place.base_loop();
        place.host.ensure(&step).unwrap();
        let user = File::open(place.device(Role::Base)).unwrap();
        let fault = place.host.absent(&step).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Busy, "{fault}");
        assert_eq!(place.host.probe(&step), Ok(Presence::Different));
        drop(user);
        assert_eq!(place.host.absent(&step), Ok(()));
        assert_eq!(place.host.probe(&step), Ok(Presence::Absent));
    });
}

#[test]
fn a_user_who_lets_go_in_time_is_waited_for() {
    with_loops("a_user_who_lets_go_is_waited_for", |place| {
        let step = place.base_loop();
        place.host.ensure(&step).unwrap();
        let user = File::open(place.device(Role::Base)).unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| {
                begun.send(()).unwrap();
                place.host.absent(&step)
            });
            begins.recv().unwrap();
            // Held until the order to let go is seen to have been given.
            let tag = loopdev::tag(place.vm, Role::Base);
            while !loopdev::find(&tag).unwrap()[0].status.is_detaching {
                std::thread::yield_now();
            }
            drop(user);
            assert_eq!(removal.join().unwrap(), Ok(()));
        });
        assert_eq!(place.host.probe(&step), Ok(Presence::Absent));
    });
}

#[test]
fn many_vms_take_loop_devices_at_once() {
    with_loops("many_vms_take_loop_devices_at_once", |_| {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let place = Place::new();
                    place.host.ensure(&place.base_loop()).unwrap();
                    assert_eq!(place.host.probe(&place.base_loop()), Ok(Presence::Present));
                    place.host.absent(&place.base_loop()).unwrap();
                });
            }
        });
    });
}

#[test]
fn a_store_grows_below_its_device_while_that_is_in_use() {
    with_loops("a_store_grows_below_its_device", |place| {
        for step in [place.cow_file(), place.cow_loop()] {
            place.host.ensure(&step).unwrap();
        }
        let device = place.device(Role::Cow);
        let _user = File::open(&device).unwrap();
        let larger = Step::CowLoop {
            vm: place.vm,
            size: Bytes::gib(1),
        };
        assert_eq!(place.host.ensure(&larger), Ok(()));
        assert_eq!(place.device(Role::Cow), device);
        let last = cow::length_for(Bytes::gib(1)).0 - 512;
        assert!(read(&device, last, 512).is_ok());
    });
}

#[test]
fn every_object_of_a_snapshot_is_made_and_removed_twice() {
    with_snapshots("every_object_of_a_snapshot", |place| {
        let [store, base, cow, snapshot] = place.steps();
        for step in [&store, &base, &cow] {
            place.host.ensure(step).unwrap();
        }
        make_and_remove_twice(&place.host, &snapshot);
    });
}

#[test]
fn a_snapshot_shows_the_image_keeps_changes_and_leaves_the_image_alone() {
    with_snapshots("a_snapshot_shows_the_image", |place| {
        for step in &place.steps() {
            place.host.ensure(step).unwrap();
        }
        let root = place.root();
        assert_eq!(read(&root, 4096, 9).unwrap(), b"the image");
        assert_eq!(read(&root, ROOT.0 - 512, 512).unwrap(), [0; 512]);
        write(&root, 4096, &[5; 4096]).unwrap();
        write(&root, ROOT.0 - 4096, &[6; 4096]).unwrap();
        // As a reboot of the host has it: all but the file is gone, then made again.
        for step in place.steps()[1..].iter().rev() {
            place.host.absent(step).unwrap();
        }
        for step in &place.steps()[1..] {
            place.host.ensure(step).unwrap();
        }
        assert_eq!(read(&root, 4096, 4096).unwrap(), [5; 4096]);
        assert_eq!(read(&root, ROOT.0 - 4096, 4096).unwrap(), [6; 4096]);
        let image = place.host.layout().image_rootfs(&image());
        assert_eq!(read(&image, 4096, 9).unwrap(), b"the image");
    });
}

#[test]
fn a_snapshot_in_use_is_busy_and_goes_with_its_user() {
    with_snapshots("a_snapshot_in_use_is_busy", |place| {
        let steps = place.steps();
        for step in &steps {
            place.host.ensure(step).unwrap();
        }
        let user = File::open(place.root()).unwrap();
        let fault = place.host.absent(&steps[3]).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Busy, "{fault}");
        // Its loop devices are held by it, whatever they are told.
        assert_eq!(
            place.host.absent(&steps[1]).unwrap_err().kind,
            FaultKind::Busy
        );
        assert_eq!(place.host.probe(&steps[3]), Ok(Presence::Different));
        drop(user);
        for step in steps.iter().rev() {
            assert_eq!(place.host.absent(step), Ok(()));
            assert_eq!(place.host.probe(step), Ok(Presence::Absent));
        }
    });
}

#[test]
fn a_half_made_snapshot_is_seen_and_made_whole() {
    with_snapshots("a_half_made_snapshot_is_seen", |place| {
        let steps = place.steps();
        for step in &steps {
            place.host.ensure(step).unwrap();
        }
        let snapshot = &steps[3];
        fs::remove_file(place.root()).unwrap();
        assert_eq!(place.host.probe(snapshot), Ok(Presence::Different));
        place.host.ensure(snapshot).unwrap();
        // A root of another size has another table.
        let larger = Step::DmSnapshot {
            vm: place.vm,
            size: Bytes::mib(128),
        };
        assert_eq!(place.host.probe(&larger), Ok(Presence::Different));
        place
            .host
            .ensure(&Step::CowLoop {
                vm: place.vm,
                size: Bytes::mib(128),
            })
            .unwrap();
        place.host.ensure(&larger).unwrap();
        assert_eq!(place.host.probe(&larger), Ok(Presence::Present));
        assert_eq!(place.host.probe(snapshot), Ok(Presence::Different));
    });
}

#[test]
fn a_whole_root_can_change_without_overflow_and_its_level_is_told() {
    with_snapshots("a_whole_root_can_change", |place| {
        for step in &place.steps() {
            place.host.ensure(step).unwrap();
        }
        let before = dm::level(place.vm).unwrap().unwrap();
        assert_eq!(before.state, StoreState::Active);
        assert!(before.used < Bytes::mib(1), "{before:?}");
        for at in (0..ROOT.0).step_by(1 << 20) {
            write(&place.root(), at, &vec![9; 1 << 20]).unwrap();
        }
        let after = dm::level(place.vm).unwrap().unwrap();
        assert_eq!(after.state, StoreState::Active, "{after:?}");
        assert!(after.used >= ROOT && after.used <= after.total, "{after:?}");
    });
}

#[test]
fn a_store_that_is_full_refuses_changes_keeps_what_it_has_and_grows() {
    with_snapshots("a_store_that_is_full", |place| {
        let steps = place.steps();
        for step in &steps[..3] {
            place.host.ensure(step).unwrap();
        }
        // Cut before it is used: no store of ours is ever so short by itself.
        place.host.absent(&steps[2]).unwrap();
        let store = place.host.layout().cow_file(place.vm);
        let small = Bytes::mib(2);
        OpenOptions::new()
            .write(true)
            .open(&store)
            .unwrap()
            .set_len(small.0)
            .unwrap();
        let short = Step::CowLoop {
            vm: place.vm,
            size: Bytes::mib(1),
        };
        place.host.ensure(&short).unwrap();
        place.host.ensure(&steps[3]).unwrap();
        write(&place.root(), 0, &vec![3; 1 << 20]).unwrap();
        // Grown while it is used, it takes what it did not have room for before.
        let longer = Step::CowLoop {
            vm: place.vm,
            size: Bytes::mib(4),
        };
        place.host.ensure(&longer).unwrap();
        write(&place.root(), 1 << 20, &vec![3; 2 << 20]).unwrap();
        assert!(write(&place.root(), 8 << 20, &vec![4; 8 << 20]).is_err());
        let level = dm::level(place.vm).unwrap().unwrap();
        assert_eq!(level.state, StoreState::Overflow, "{level:?}");
        assert_eq!(read(&place.root(), 0, 1 << 20).unwrap(), vec![3; 1 << 20]);
        // The next start finds it valid and long enough.
        for step in steps[1..].iter().rev() {
            place.host.absent(step).unwrap();
        }
        for step in &steps[1..] {
            place.host.ensure(step).unwrap();
        }
        assert_eq!(
            dm::level(place.vm).unwrap().unwrap().state,
            StoreState::Active
        );
        assert_eq!(read(&place.root(), 0, 3 << 20).unwrap(), vec![3; 3 << 20]);
        write(&place.root(), 8 << 20, &vec![4; 8 << 20]).unwrap();
    });
}

#[test]
fn a_store_that_could_not_be_written_is_refused_with_the_way_out() {
    with_snapshots("a_store_that_could_not_be_written", |place| {
        let steps = place.steps();
        for step in &steps {
            place.host.ensure(step).unwrap();
        }
        write(&place.root(), 0, &[1; 4096]).unwrap();
        for step in steps[2..].iter().rev() {
            place.host.absent(step).unwrap();
        }
        // `valid` of the header (struct disk_header of dm-snap-persistent.c) is 0 in a
        // store that the kernel has declared invalid.
        let store = place.host.layout().cow_file(place.vm);
        assert_eq!(read(&store, 0, 4).unwrap(), b"SnAp");
        write(&store, 4, &[0; 4]).unwrap();
        place.host.ensure(&steps[2]).unwrap();
        let fault = place.host.ensure(&steps[3]).unwrap_err();
        assert!(fault.what.contains("invalid"), "{fault}");
        assert!(fault.remedy.unwrap().contains("vm reset"));
        for step in steps.iter().rev() {
            assert_eq!(place.host.absent(step), Ok(()));
        }
    });
}

#[test]
fn our_devices_are_listed_by_vm() {
    with_snapshots("our_devices_are_listed_by_vm", |place| {
        for step in &place.steps() {
            place.host.ensure(step).unwrap();
        }
        let vm = place.vm;
        let ours: Vec<_> = dm::ours().unwrap();
        let names: Vec<_> = ours.iter().filter(|(of, _)| *of == vm).collect();
        assert_eq!(names.len(), 2, "{ours:?}");
    });
}

/// Makes an object and tells how long that took: for docs/disks.md, and judged by nobody.
/// The first of a size makes its template too, so it is the second that counts.
fn timed(place: &Place, step: &Step, base: Bytes) {
    place.host.ensure(step).unwrap();
    place.host.absent(step).unwrap();
    let begun = std::time::Instant::now();
    place.host.ensure(step).unwrap();
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    println!("{} over {base}: {took:.1} ms", step.kind().word());
}

/// An image with a piece of data in each 16 MiB, so that it has extents to be copied.
fn image_of(place: &Place, size: Bytes) {
    let image = place.host.layout().image_rootfs(&image());
    let file = File::create(image).unwrap();
    file.set_len(size.0).unwrap();
    for at in (0..size.0).step_by(16 << 20) {
        file.write_all_at(&[1; 4096], at).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn a_root_over_a_large_image_takes_no_more_space_than_over_a_small_one() {
    with_loops("a_root_over_a_large_image", |_| {
        for base in [Bytes::gib(1), Bytes::gib(50)] {
            let place = Place::new();
            image_of(&place, base);
            let (vm, size) = (place.vm, base);
            let mut steps = vec![Step::UpperDisk { vm, size }];
            if reflink::fitness(&place.host.layout().state).is_ok() {
                let image = image();
                steps.push(Step::RootDisk { vm, image, size });
            }
            steps.extend([Step::CowFile { vm, size }, place.base_loop()]);
            steps.push(Step::CowLoop { vm, size });
            if dm::fitness().is_ok() {
                steps.push(Step::DmSnapshot { vm, size });
            }
            steps.iter().for_each(|step| timed(&place, step, base));
            let layout = place.host.layout();
            for own in [layout.upper_disk(vm), layout.cow_file(vm)] {
                let taken = own.metadata().unwrap().blocks() * 512;
                assert!(taken < 1 << 20, "{}: {taken}", own.display());
            }
        }
    });
}
