//! End to end: the daemon dies by SIGKILL, at rest and in the middle of everything.
//! VMs live on and are adopted; what was half done is brought to rest; nothing leaks.

mod support;

use std::path::Path;
use std::process::{Child, Command};

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};
use support::census::Census;
use support::events::{ask_until, kill_and_wait, wait_for_folder};
use support::running::Running;
use support::terminal::Terminal;
use support::{Banger, DEADLINE, in_shell};

const IMAGE: &str = "debian-minimal";

/// Phases that a VM may stay in.
fn at_rest(phase: &str) -> bool {
    ["created", "running", "stopped"].contains(&phase)
}

/// Asks until every VM rests; their phases.
fn rest(banger: &Banger) -> Vec<String> {
    let phases = || -> Vec<String> {
        let list = banger.json(&["vm", "list"]);
        let vms = list.as_array().cloned();
        let vms = vms.expect("a list of VMs").into_iter();
        vms.map(|vm| vm["phase"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    ask_until(phases, |phases| phases.iter().all(|phase| at_rest(phase)))
}

/// The status of a client whose daemon went away before it had answered.
const CUT_OFF: i32 = 3;

/// The daemon may have been done, and the answer on its way, before it was killed.
#[track_caller]
fn told_or_cut_off(client: Running) {
    let ran = client.finish(DEADLINE);
    assert!(matches!(ran.code(), Some(0 | CUT_OFF)), "{ran:?}");
}

fn has_an_entry(folder: &Path) -> bool {
    folder
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn daemon_killed_with_a_vm_running_is_replaced_and_adopts_it() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let boot_id = banger.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]);
    let session = banger.start(&in_shell("a", "echo on; read word; echo $word"));
    session.wait_for_output("on");
    session.signal(rustix::process::Signal::CONT);

    banger.kill_daemon();

    assert_eq!(
        banger.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]),
        boot_id
    );
    assert_eq!(banger.phase("a"), "running");
    // Its input is empty, so the read ends: over a connection that the daemon never held.
    let ran = session.finish(DEADLINE);
    assert_eq!(ran.text().trim(), "", "{ran:?}");
    banger.ok(&["vm", "stop", "a"]);
    assert_eq!(banger.phase("a"), "stopped");
}

/// What comes of a `vm run --rm` whose daemon ends by `end` while its command runs.
fn session_that_outlives_its_daemon(end: impl Fn(&Banger)) {
    let banger = Banger::with_images(&[IMAGE]);
    let run = ["vm", "run", "--rm", "--name", "r", "--image", IMAGE];
    let script = ["--", "sh", "-c", "echo on; read word; echo got $word"];
    let arguments: Vec<&str> = run.into_iter().chain(script).collect();
    let mut session = Running::with_open_input(banger.command(&arguments));
    session.wait_for_output("on");

    end(&banger);

    // The next daemon finds the VM and leaves it to its client, until that has ended.
    assert_eq!(banger.phase("r"), "running");
    end(&banger);
    assert_eq!(banger.phase("r"), "running");
    session.type_in("it\n");
    session.end_input();
    let ran = session.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert!(ran.text().contains("got it"), "{ran:?}");
    assert_eq!(banger.json(&["vm", "list"]), serde_json::json!([]));
    assert!(!has_an_entry(&banger.state().join("vms")));
    assert!(!has_an_entry(&banger.runtime().join("vms")));
}

#[test]
fn daemon_killed_under_a_vm_of_a_living_client_leaves_it_to_that_client() {
    session_that_outlives_its_daemon(Banger::kill_daemon);
}

#[test]
fn daemon_stopped_under_a_vm_of_a_living_client_leaves_it_to_that_client() {
    session_that_outlives_its_daemon(|banger| {
        banger.ok(&["daemon", "stop"]);
    });
}

#[test]
fn client_killed_under_another_daemon_or_none_takes_its_vm_with_it() {
    let banger = Banger::with_images(&[IMAGE]);
    for asks_before in [true, false] {
        let run = ["vm", "run", "--rm", "--name", "r", "--image", IMAGE];
        let script = ["--", "sh", "-c", "echo on; sleep 600"];
        let arguments: Vec<&str> = run.into_iter().chain(script).collect();
        let session = banger.start(&arguments);
        session.wait_for_output("on");
        banger.kill_daemon();
        if asks_before {
            assert_eq!(banger.phase("r"), "running");
        }
        kill_and_wait(session.pid());
        let count = || banger.json(&["vm", "list"]).as_array().map(Vec::len);
        assert_eq!(ask_until(count, |count| *count == Some(0)), Some(0));
        session.finish(DEADLINE);
    }
}

#[test]
fn daemon_that_died_under_a_session_is_started_again_to_delete_its_vm() {
    let banger = Banger::with_images(&[IMAGE]);
    let run = ["vm", "run", "--rm", "--name", "r", "--image", IMAGE];
    let script = ["--", "sh", "-c", "echo on; read word"];
    let arguments: Vec<&str> = run.into_iter().chain(script).collect();
    let mut session = Running::with_open_input(banger.command(&arguments));
    session.wait_for_output("on");
    banger.kill_daemon();
    session.type_in("end\n");
    let ran = session.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert!(!ran.error().contains("does not run"), "{ran:?}");
    assert!(banger.daemon().is_some());
    assert_eq!(banger.json(&["vm", "list"]), serde_json::json!([]));
}

#[test]
fn daemon_killed_during_a_start_leaves_nothing_over() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    let vms = banger.state().join("vms");
    let runs = banger.runtime().join("vms");
    // The moments: the first disk object, the first object of the run, the VMM's socket.
    let moments: [&dyn Fn(); 3] = [
        &|| wait_for_folder(&vms, has_an_entry),
        &|| wait_for_folder(&runs, has_an_entry),
        &|| {
            wait_for_folder(&runs, has_an_entry);
            let run = runs.read_dir().unwrap().next().unwrap().unwrap().path();
            wait_for_folder(&run, |run| run.join("vmm.sock").exists());
        },
    ];
    for (n, moment) in moments.iter().enumerate() {
        let name = format!("v{n}");
        let client = banger.start(&["vm", "run", "-d", "--name", &name, "--image", IMAGE]);
        moment();
        banger.kill_daemon();
        // Its guest had not even begun to boot, so it cannot have been told of success.
        let ran = client.finish(DEADLINE);
        assert_eq!(ran.code(), Some(125), "moment {n}: {ran:?}");
        assert!(ran.error().contains("bangerd"), "moment {n}: {ran:?}");

        for phase in rest(&banger) {
            assert_eq!(phase, "stopped", "moment {n}");
            banger.ok(&["vm", "delete", &name]);
        }
        assert_eq!(banger.json(&["vm", "list"]), serde_json::json!([]));
        assert_eq!(
            before.changes(&Census::take(&banger)),
            [""; 0],
            "moment {n}"
        );
    }
}

#[test]
fn daemon_killed_during_stop_and_delete_finishes_them_later() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    banger.boot("a");
    let only_entry = |folder: &Path| folder.read_dir().unwrap().next().unwrap().unwrap().path();
    let run = only_entry(&banger.runtime().join("vms"));
    let disks = only_entry(&banger.state().join("vms"));

    let client = banger.start(&["vm", "stop", "a"]);
    wait_for_folder(&run, |run| !run.join("vmm.sock").exists());
    banger.kill_daemon();
    told_or_cut_off(client);
    assert_eq!(rest(&banger), ["stopped"]);

    let client = banger.start(&["vm", "delete", "a"]);
    wait_for_folder(&disks, |disks| !disks.join("work.ext4").exists());
    banger.kill_daemon();
    told_or_cut_off(client);
    // It was begun, so the next daemon goes on with it unasked.
    let count = || banger.json(&["vm", "list"]).as_array().map(Vec::len);
    assert_eq!(ask_until(count, |count| *count == Some(0)), Some(0));
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}

#[test]
fn daemon_killed_in_the_middle_of_a_stream_loses_no_byte_of_it() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let block: Vec<u8> = (0..=255u8).cycle().take(65_521).collect();
    let sent: Vec<u8> = block.iter().copied().cycle().take(16 << 20).collect();
    let (first, second) = sent.split_at(9 << 20);
    let mut stream = Running::with_open_input(banger.command(&["vm", "exec", "a", "--", "cat"]));
    let mut shell = Terminal::start(&banger, &["vm", "shell", "a"], 80, 24);
    shell.type_in("word=kept; echo be''fore\n");
    shell.wait_for("before");
    // Bytes are on their way in both directions: the second half has not even begun.
    stream.type_in(first);
    stream.wait_for_bytes(1 << 20);

    banger.kill_daemon();

    stream.type_in(second);
    stream.end_input();
    let ran = stream.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{}", ran.error());
    assert_eq!(ran.stdout.len(), sent.len());
    assert!(ran.stdout == sent, "other bytes came back");
    // The same shell, with what it knew, and no daemon at all so far.
    shell.type_in("echo $word af''ter\n");
    shell.wait_for("kept after");
    assert_eq!(banger.daemon(), None);
    shell.type_in("exit 5\n");
    assert_eq!(shell.finish(), Some(5));
    // The next daemon finds the VM as it was.
    assert_eq!(banger.exec("a", &["echo", "still here"]), "still here");
}

/// Kills the process of this banger's one VM whose program has this name.
fn kill_program(banger: &Banger, program: &str) {
    // The kernel keeps the first 15 bytes of a program's name (proc(5)).
    let kept = &program[..program.len().min(15)];
    let runs_it = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == kept
    };
    let process = banger.processes().into_iter().find(runs_it);
    kill_and_wait(process.unwrap_or_else(|| panic!("a VM of QEMU has a {program}")));
}

fn kill_backend(banger: &Banger) {
    kill_program(banger, "vhost-device-vsock");
}

fn kill_vmm(banger: &Banger) {
    kill_program(banger, "qemu-system-x86_64");
}

/// Removes the folder with the sockets of this banger's one VM.
fn remove_sockets(banger: &Banger) {
    let view = banger.json(&["vm", "show", "a"]);
    let id = view["id"].as_str().expect("an id is text");
    let folder = banger.runtime().join("vms").join(id);
    std::fs::remove_dir_all(folder).expect("it runs, so it is there");
}

/// Follows the VM's log, cuts it off and gives the reason that is then shown.
fn reason_once(cut_off: impl Fn(&Banger), banger: &Banger) -> String {
    let follower = banger.start(&["vm", "logs", "-f", "a"]);
    cut_off(banger);
    // It ends when the VM has come to rest: nothing is asked again and again.
    let ran = follower.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["phase"], "stopped", "{view}");
    view["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn backend_that_is_killed_stops_its_vm_with_the_reason_and_leaves_nothing() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    banger.boot("a");
    let ended = "its vsock back end was lost";
    assert_eq!(
        reason_once(kill_backend, &banger),
        format!("{ended}: killed by signal 9")
    );

    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["echo", "back"]), "back");
    banger.kill_daemon();
    assert_eq!(banger.phase("a"), "running");
    // Not a child of this daemon: how it ended is not known.
    assert_eq!(reason_once(kill_backend, &banger), ended);

    // Symptom: it was shown as running and could not be reached any more.
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(
        reason_once(remove_sockets, &banger),
        format!("{ended}: its socket was removed")
    );

    banger.ok(&["vm", "start", "a"]);
    banger.kill_daemon();
    kill_backend(&banger);
    let view = banger.json(&["vm", "show", "a"]);
    let reason = "its vsock back end ended while no daemon ran";
    assert_eq!(view["reason"], reason, "{view}");
    assert_eq!(rest(&banger), ["stopped"]);
    banger.ok(&["vm", "delete", "a"]);
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}

#[test]
fn vmm_that_is_killed_is_the_reason_though_its_back_end_goes_with_it() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let ended = "its VMM ended while the guest ran";
    // Both ends are told by watches of their own, in either order.
    for _ in 0..3 {
        assert_eq!(
            reason_once(kill_vmm, &banger),
            format!("{ended}: killed by signal 9")
        );
        banger.ok(&["vm", "start", "a"]);
    }

    banger.kill_daemon();
    assert_eq!(banger.phase("a"), "running");
    // Not a child of this daemon: how it ended is not known.
    assert_eq!(reason_once(kill_vmm, &banger), ended);
}

#[test]
fn end_of_a_banger_whose_daemon_was_killed_leaves_no_tap() {
    let banger = Banger::with_images(&[IMAGE]);
    let taps = || Census::take(&banger).keep(|object| object.starts_with("link bgr-"));
    let before = taps();
    banger.boot("a");
    banger.kill_daemon();
    assert_eq!(before.changes(&taps()).len(), 1);
    banger.end();
    assert_eq!(before.changes(&taps()), [""; 0]);
}

/// Most processes that are made to get one of a given id: others may be quicker.
const ATTEMPTS: usize = 500;

/// A process of somebody else's, killed when it is dropped.
struct Stranger(Child);

impl Stranger {
    fn begin() -> Stranger {
        let child = Command::new("sleep").arg("1000").spawn();
        Stranger(child.expect("sleep is installed"))
    }

    /// One with this id, which must be free; `None` where this host does not let us choose
    /// (`/proc/sys/kernel/ns_last_pid`).
    fn with_id(pid: u32) -> Option<Stranger> {
        let before = (pid - 1).to_string();
        let attempt = || {
            std::fs::write("/proc/sys/kernel/ns_last_pid", &before).ok()?;
            Some(Stranger::begin())
        };
        let mut attempts = std::iter::from_fn(attempt).take(ATTEMPTS);
        attempts.find(|stranger| stranger.0.id() == pid)
    }

    fn lives(&mut self) -> bool {
        let end = self.0.try_wait().expect("a child of ours can be looked at");
        end.is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.kill().expect("a child of ours can be killed");
        self.0.wait().expect("a child of ours can be reaped");
    }
}

#[test]
fn stranger_with_the_process_id_of_a_dead_vmm_is_neither_adopted_nor_killed() {
    // What loses its parent becomes ours, so that its id is free when we say so.
    set_child_subreaper(Some(getpid())).expect("every process may be one");
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let pid = banger.json(&["vm", "show", "a"])["pid"].as_u64();
    let pid = u32::try_from(pid.expect("a running VM has a VMM")).expect("an id of a process");
    banger.kill_daemon();
    kill_and_wait(pid);
    let vmm = Pid::from_raw(pid.cast_signed());
    waitpid(vmm, WaitOptions::empty()).expect("its parent is dead");
    set_child_subreaper(None).expect("every process may cease to be one");
    let Some(mut stranger) = Stranger::with_id(pid) else {
        let name = "stranger_with_the_process_id_of_a_dead_vmm_is_neither_adopted_nor_killed";
        return support::skip(name, "no process gets a chosen id");
    };

    assert_eq!(rest(&banger), ["stopped"]);
    banger.ok(&["vm", "delete", "a"]);

    assert!(stranger.lives());
}
