//! The VMMs' processes on the real host: each step twice, a guest of twenty bytes that
//! really runs, ends that are noticed, and nothing left. No image and no Linux needed.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod confined;
mod firecracker;
mod jailed;
mod kernel;
mod lab;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use banger::host::launch::{Errors, Launch};
use banger::host::process::Children;
use banger::host::{Host, loopdev};
use banger::model::vm::VmmKind;
use banger::plan::step::{Fault, FaultKind, Presence};
use banger::vmm::fitness;
use banger::vmm::{Deadline, GuestState, of};

use lab::{Lab, assert_sees};
use support::events::wait_for_folder;
use support::{DEADLINE, skip};

const BANGER: &str = env!("CARGO_BIN_EXE_banger");

/// A lab for QEMU, or a line that says why there is none.
fn qemu(test: &str, vm: u32) -> Option<Lab> {
    for program in ["qemu-system-x86_64", "vhost-device-vsock"] {
        if lab::program(program).is_none() {
            skip(test, &format!("{program} is not installed"));
            return None;
        }
    }
    Some(Lab::new(VmmKind::QemuTcg, vm))
}

#[test]
fn every_step_made_twice_runs_a_guest_and_removed_twice_leaves_nothing() {
    let test = "every_step_made_twice_runs_a_guest_and_removed_twice_leaves_nothing";
    let Some(lab) = qemu(test, 1) else { return };
    for step in lab.steps() {
        let word = step.kind().word();
        for _ in 0..2 {
            lab.host.ensure(&step).unwrap();
            assert_sees(&lab, word, Presence::Present);
        }
        let state = match word {
            "vmm" | "configured" => GuestState::NotStarted,
            "booted" => GuestState::Running,
            _ => continue,
        };
        let control = lab.host.layout().control_socket(lab.vm);
        let seen = of(VmmKind::QemuTcg).state(&control, Deadline::after(DEADLINE));
        assert_eq!(seen.unwrap(), state, "{word}");
    }
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    lab.remove_and_find_nothing();
    for word in ["vsock-backend", "vmm", "configured", "booted"] {
        assert_sees(&lab, word, Presence::Absent);
    }
}

#[test]
fn a_machine_on_a_tap_runs_and_gives_it_back() {
    let test = "a_machine_on_a_tap_runs_and_gives_it_back";
    let Some(lab) = qemu(test, 6) else { return };
    let ran = lab::in_a_network_of_its_own("qemu", || runs_on_a_tap(&lab.on_a_tap()));
    if !ran {
        skip(test, "no network namespace can be made");
    }
}

/// In a network namespace: the guest runs with its tap in use, and all is removed.
fn runs_on_a_tap(lab: &Lab) {
    lab.ensure_until("booted");
    assert_sees(lab, "tap", Presence::Present);
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    lab.remove_and_find_nothing();
    assert_sees(lab, "tap", Presence::Absent);
}

#[test]
fn a_root_that_is_a_block_device_is_opened_by_the_vmm_and_let_go() {
    let test = "a_root_that_is_a_block_device_is_opened_by_the_vmm_and_let_go";
    let Some(mut lab) = qemu(test, 8) else { return };
    if let Err(why) = loopdev::fitness() {
        return skip(test, &why);
    }
    let root = lab.root_on_a_loop_device();
    lab.ensure_until("booted");
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    assert_eq!(root.remove().unwrap_err().kind, FaultKind::Busy);
    lab.remove_and_find_nothing();
    assert_eq!(root.remove(), Ok(()));
}

#[test]
fn a_vmm_that_cannot_start_is_reported_with_its_last_words() {
    let test = "a_vmm_that_cannot_start_is_reported_with_its_last_words";
    let Some(lab) = qemu(test, 3) else { return };
    lab.ensure_until("vsock-backend");
    let kernel = lab.host.layout().kernel(&lab.machine.kernel);
    fs::write(kernel.join("vmlinux"), "no kernel at all").unwrap();
    let fault = lab.host.ensure(&lab.step("vmm")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Exited);
    assert!(fault.what.contains("qemu-system-x86_64"), "{fault}");
    assert!(fault.what.contains("kernel"), "{fault}");
    assert_sees(&lab, "vmm", Presence::Absent);
    lab.remove_and_find_nothing();
}

#[test]
fn a_vmm_that_dies_is_noticed_and_the_step_starts_it_anew() {
    let test = "a_vmm_that_dies_is_noticed_and_the_step_starts_it_anew";
    let Some(lab) = qemu(test, 4) else { return };
    lab.ensure_until("booted");
    let watched = lab.host.vmms().watch(lab.vm).unwrap().unwrap();
    assert!(watched.is_alive());
    watched.kill().unwrap();
    assert!(watched.ends_within(DEADLINE));
    assert!(lab.host.vmms().watch(lab.vm).unwrap().is_none());
    assert_sees(&lab, "vmm", Presence::Absent);
    lab.ensure_until("booted");
    assert_sees(&lab, "booted", Presence::Present);
    lab.remove_and_find_nothing();
}

#[test]
fn a_group_takes_the_processes_and_its_removal_ends_them() {
    let test = "a_group_takes_the_processes_and_its_removal_ends_them";
    let Some(lab) = qemu(test, 5) else { return };
    let Some(groups) = lab.host.vmms().groups() else {
        return skip(test, "no cgroup v2 hierarchy is ours to use");
    };
    lab.ensure_until("booted");
    let members = fs::read_to_string(groups.path(lab.vm).join("cgroup.procs")).unwrap();
    // QEMU, its vsock back end, and what keeps the console.
    assert_eq!(members.lines().count(), 3, "{members}");
    let watched = lab.host.vmms().watch(lab.vm).unwrap().unwrap();
    lab.host.absent(&lab.step("cgroup")).unwrap();
    assert!(watched.ends_within(DEADLINE));
    assert_sees(&lab, "cgroup", Presence::Absent);
    lab.remove_and_find_nothing();
}

#[test]
fn a_launcher_whose_group_is_gone_does_not_become_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let fault = launch(folder.path(), Some(gone.clone()), "touch made").unwrap_err();
    let what = format!("open control group {}", gone.display());
    assert!(fault.what.contains(&what), "{fault}");
    assert!(!folder.path().join("made").exists());
}

#[test]
fn a_launched_program_has_a_session_and_only_three_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let inherited = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let script = "echo session $(cut -d' ' -f6 /proc/$$/stat) pid $$; \
                  for n in 0 1 2 3 4 5 6 7 8 9; do (eval \": <&$n\") 2>/dev/null && echo fd $n; \
                  done; umask; env";
    let launched = launch(folder.path(), None, script).unwrap();
    assert!(launched.process.ends_within(DEADLINE));
    let text = fs::read_to_string(folder.path().join("log")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(words[1], words[3], "{text}");
    let open: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("fd "))
        .collect();
    assert_eq!(open, ["0", "1", "2"], "{text}");
    assert!(lines.contains(&"0077"), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
}

#[test]
fn a_launched_program_outlives_the_thread_that_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let script = "touch runs; exec tail -f /dev/null";
    let starter = std::thread::spawn(move || {
        let launched = launch(&path, None, script).unwrap();
        wait_for_folder(&path, |folder| folder.join("runs").exists());
        launched
    });
    let launched = starter.join().unwrap();
    assert!(!launched.process.ends_within(Duration::from_millis(100)));
    launched.process.kill().unwrap();
    assert!(launched.process.ends_within(DEADLINE));
    Children::default().adopt(launched.process.child());
}

#[test]
fn the_trial_of_kvm_gives_a_verdict_in_time() {
    let verdict = fitness::try_out(Path::new(BANGER));
    let fit = match &verdict {
        fitness::Fitness::Fit(found) | fitness::Fitness::Unfit(found) if found.is_empty() => {
            panic!("no reason: {verdict:?}")
        }
        fitness::Fitness::Fit(_) => true,
        fitness::Fitness::Unfit(_) => false,
    };
    assert!(Path::new("/dev/kvm").exists() || !fit, "{verdict:?}");
    println!("KVM: {verdict:?}");
}

fn launch(
    folder: &Path,
    group: Option<std::path::PathBuf>,
    script: &str,
) -> Result<banger::host::launch::Launched, Fault> {
    Launch {
        own_program: Path::new(BANGER),
        program: Path::new("/bin/sh"),
        arguments: ["-c", &format!("cd {}; {script}", folder.display())]
            .map(Into::into)
            .to_vec(),
        group,
        identity: None,
        directory: None,
        files: Vec::new(),
        jail: None,
        errors: Errors::File(&folder.join("log")),
        input: None,
        output: None,
        control: None,
    }
    .start()
}
