//! What a VM's processes may do: each as a user of the VM's own without any right, with
//! nothing of the owner's but what it was given open, and with logs that stay small.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use banger::host::Host;
use banger::host::console;
use banger::host::identity::{Identity, Separation, owners};
use banger::host::launch::{Errors, Inherited, Launch, Launched};
use banger::host::process::{Children, Marker, find};
use banger::model::ids::VmId;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::lab::Lab;
use crate::support::{DEADLINE, skip};
use crate::{BANGER, qemu};

const VM: VmId = VmId::from_bits(0x2a);

/// The user of a VM, or a line that says why it has none here.
fn user(test: &str, vm: VmId) -> Option<Identity> {
    let separation = Separation::discover();
    let identity = separation.identity(vm);
    if identity.is_none() {
        skip(test, &format!("{separation:?}"));
    }
    identity
}

/// The value of a line of /proc/PID/status, its words apart by one blank.
pub fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let words: Vec<&str> = line.unwrap()[1..].split_whitespace().collect();
    words.join(" ")
}

/// The one process with these words.
pub fn pid_of(lab: &Lab, marker: Marker) -> u32 {
    let found = find(&[marker], &owners(lab.vm), None).unwrap();
    assert_eq!(found.len(), 1);
    found[0].pid()
}

/// It is this user in every respect, and cannot become another.
pub fn assert_has_no_rights(pid: u32, user: &Identity) {
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    assert_eq!(status(pid, "Uid"), [&*uid; 4].join(" "));
    assert_eq!(status(pid, "Gid"), [&*gid; 4].join(" "));
    let groups: Vec<String> = user.groups.iter().map(ToString::to_string).collect();
    assert_eq!(status(pid, "Groups"), groups.join(" "));
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
}

#[test]
fn every_process_of_a_vm_is_a_user_without_rights() {
    let test = "every_process_of_a_vm_is_a_user_without_rights";
    let Some(lab) = qemu(test, 0x11) else { return };
    let Some(user) = user(test, lab.vm) else {
        return;
    };
    lab.ensure_until("booted");
    let id = lab.vm.to_string();
    let vmm = pid_of(
        &lab,
        Marker::new(["-name".to_owned(), format!("banger-{id}")]),
    );
    let backend = pid_of(
        &lab,
        Marker::new(["--uds-path".to_owned(), format!("{id}/vsock")]),
    );
    let console = lab.host.layout().console_log(lab.vm);
    let keeper = pid_of(&lab, console::marker(&console));
    for pid in [vmm, backend, keeper] {
        assert_has_no_rights(pid, &user);
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let is_grouped = membership.contains(&format!("banger/{id}"));
        assert_eq!(
            is_grouped,
            lab.host.vmms().groups().is_some(),
            "{membership}"
        );
    }
    // SECCOMP_MODE_FILTER
    assert_eq!(status(vmm, "Seccomp"), "2");
    lab.remove_and_find_nothing();
}

#[test]
fn a_vms_user_reads_what_it_was_given_and_nothing_else_of_the_owner() {
    let test = "a_vms_user_reads_what_it_was_given_and_nothing_else_of_the_owner";
    let Some(user) = user(test, VM) else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "given\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let script = format!(
        "cat <&4; cat {0} && echo reached; cat /etc/shadow >/dev/null && echo shadow; \
         true >{0}; kill -0 $PPID && echo killed; echo end",
        secret.display()
    );
    let text = |identity: Option<Identity>| {
        let log = folder.path().join("log");
        fs::write(&log, "").unwrap();
        let launched = Launch {
            identity,
            files: vec![Inherited::Read(secret.clone())],
            ..shell(&script, &log)
        }
        .start()
        .unwrap();
        assert!(launched.process.ends_within(DEADLINE));
        finish(launched);
        fs::read_to_string(&log).unwrap()
    };
    let confined = text(Some(user));
    assert!(confined.contains("given\n"), "{confined}");
    assert!(confined.ends_with("end\n"), "{confined}");
    for word in ["reached", "shadow\n", "killed"] {
        assert!(!confined.contains(word), "{confined}");
    }
    // The control: as ourselves the same words reach everything.
    let free = text(None);
    for word in ["reached", "shadow\n", "killed"] {
        assert!(free.contains(word), "{word}: {free}");
    }
}

#[test]
fn a_program_in_a_folder_that_is_closed_to_the_vms_user_is_started_all_the_same() {
    let test = "a_program_in_a_closed_folder_is_started_all_the_same";
    let Some(user) = user(test, VM) else { return };
    let closed = tempfile::tempdir().unwrap();
    let folder = closed.path().join("bin");
    fs::create_dir(&folder).unwrap();
    let program = folder.join("banger-test-shell");
    fs::copy("/bin/sh", &program).unwrap();
    let log = closed.path().join("log");
    let launched = Launch {
        program: &program,
        identity: Some(user),
        ..shell(
            "cat /proc/self/comm >&2; read -r name </proc/$$/comm; echo $name",
            &log,
        )
    }
    .start()
    .unwrap();
    assert!(launched.process.ends_within(DEADLINE));
    finish(launched);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("banger-test-she"), "{text}");
}

#[test]
fn a_vmm_and_a_guest_that_never_stop_talking_fill_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let below = |name: &str| folder.path().join(name);
    let (console, log) = (below("console.log"), below("vmm.log"));
    let told = console::pipe_to_read(&below("pipe")).unwrap();
    let talk = console::pipe_to_write(&below("pipe")).unwrap();
    let (said, say) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let keeper = Launch {
        program: Path::new(BANGER),
        arguments: console::arguments(&console),
        files: console::files(&console, &log),
        identity: Separation::discover().identity(VM),
        input: Some(said),
        output: Some(told),
        ..shell("", &below("keeper.log"))
    }
    .start()
    .unwrap();
    let (mut say, mut talk) = (File::from(say), File::from(talk));
    let line = "x".repeat(4095) + "\n";
    for _ in 0..4096 {
        say.write_all(line.as_bytes()).unwrap();
        // Lost when the keeper is behind: a VMM is not held up by its log.
        let _ = talk.write_all(line.as_bytes());
    }
    say.write_all(b"the guest's last line\n").unwrap();
    drop(say);
    assert!(keeper.process.ends_within(DEADLINE));
    finish(keeper);
    for file in [&console, &log] {
        let length = fs::metadata(file).unwrap().len();
        assert!(
            (1..=1 << 20).contains(&length),
            "{} {length}",
            file.display()
        );
    }
    let kept = fs::read_to_string(&console).unwrap();
    assert!(kept.ends_with("the guest's last line\n"));
    assert_eq!(fs::read_to_string(below("keeper.log")).unwrap(), "");
}

#[test]
fn the_run_directory_is_the_vms_to_use_and_ours_to_rule() {
    let test = "the_run_directory_is_the_vms_to_use_and_ours_to_rule";
    let Some(lab) = qemu(test, 0x12) else { return };
    let Some(user) = user(test, lab.vm) else {
        return;
    };
    lab.ensure_until("vsock-backend");
    let run = lab.host.layout().run_directory(lab.vm);
    let found = fs::metadata(&run).unwrap();
    assert_eq!((found.uid(), found.gid()), (0, user.gid));
    assert_eq!(found.mode() & 0o7777, 0o3770);
    let ours = run.join("ours");
    fs::write(&ours, "kept").unwrap();
    let attack = format!("rm -f {0}; mv {0} {0}2; : >{1}/theirs", "ours", ".");
    let log = run.parent().unwrap().parent().unwrap().join("log");
    let launched = Launch {
        identity: Some(user.clone()),
        directory: Some(&run),
        ..shell(&attack, &log)
    }
    .start()
    .unwrap();
    assert!(launched.process.ends_within(DEADLINE));
    finish(launched);
    assert_eq!(fs::read_to_string(&ours).unwrap(), "kept");
    assert_eq!(fs::metadata(run.join("theirs")).unwrap().uid(), user.uid);
    lab.host.absent(&lab.step("run-directory")).unwrap();
    lab.remove_and_find_nothing();
}

/// A shell that writes to this log.
fn shell<'a>(script: &str, log: &'a Path) -> Launch<'a> {
    Launch {
        own_program: Path::new(BANGER),
        program: Path::new("/bin/sh"),
        arguments: ["-c", script].map(Into::into).to_vec(),
        group: None,
        identity: None,
        directory: None,
        files: Vec::new(),
        jail: None,
        errors: Errors::File(log),
        output: None,
        input: None,
        control: None,
    }
}

fn finish(launched: Launched) {
    let children = Children::default();
    children.adopt(launched.process.child());
    children.reap();
}
