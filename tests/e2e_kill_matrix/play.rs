//! One cell of the matrix, from a clean host to a clean host.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use crate::adjusted;
use crate::fault::{Fault, Object};
use crate::lab::Lab;
use crate::operation::{Operation, VM};
use crate::support::events::ask_until;
use crate::support::running::Ran;
use crate::support::{COMMAND_DEADLINE, is_root, skip};
use crate::table::{Table, Verdict};

/// Where a VM that runs is struck, for want of a step.
const AT_REST: &str = "at rest";

/// Plays the cells of an operation and writes its table; fails if one does.
pub fn matrix(operation: Operation) {
    let test = format!("kill matrix of {}", operation.word());
    if !is_root() {
        return skip(&test, "taps, mounts and control groups need root");
    }
    let Some(lab) = Lab::new(operation) else {
        return skip(
            &test,
            "BANGER_FAIL_POINTS_BIN names no program with fail-points",
        );
    };
    let places = places(&lab, operation);
    let mut lab = Some(lab);
    let all = std::env::var("BANGER_KILL_MATRIX").is_ok_and(|which| which == "all");
    let mut table = Table::new(operation);
    let faults = Fault::of(operation);
    // An image takes most of a minute each time.
    let faults = match operation == Operation::Build && !all {
        true => &faults[..1],
        false => faults,
    };
    let only = std::env::var("BANGER_KILL_MATRIX_FAULT").unwrap_or_default();
    let wanted = |(_, fault): &(usize, &Fault)| fault.word().contains(&only);
    let only_at = std::env::var("BANGER_KILL_MATRIX_PLACE").unwrap_or_default();
    for (number, fault) in faults.iter().enumerate().filter(wanted) {
        // A few: each fault once, at the first place after a different one where there
        // is something to do it to.
        let start = if all { 0 } else { number * 5 % places.len() };
        let order = places[start..].iter().chain(&places[..start]);
        for place in order.filter(|place| only_at.is_empty() || only_at == **place) {
            let verdict = cell(&mut lab, operation, place, *fault);
            println!("{} {place} {}: {verdict}", operation.word(), fault.word());
            let was_there = verdict != Verdict::NotThere;
            table.note(place, *fault, verdict);
            table.write();
            if was_there && !all {
                break;
            }
        }
    }
    assert_eq!(table.failures(), [""; 0]);
}

/// The negative control: what a cell might leave is a difference.
pub fn planted() {
    let test = "what_is_planted_on_the_host_is_seen";
    if !is_root() {
        return skip(test, "links and mounts need root");
    }
    let Some(lab) = Lab::new(Operation::Create) else {
        return skip(
            test,
            "BANGER_FAIL_POINTS_BIN names no program with fail-points",
        );
    };
    let state = lab.banger.state();
    let id = format!("{:08x}", std::process::id());
    let tap = format!("bgr-{id}");
    let ip = |words: &[&str]| Command::new("ip").args(words).status();
    std::fs::create_dir_all(state.join("vms").join(&id)).expect("the state takes a folder");
    std::fs::write(lab.banger.runtime().join("left"), "").expect("it takes a file");
    ip(&["tuntap", "add", "dev", &tap, "mode", "tap"]).expect("ip is installed");
    let group = plant_group(&id);
    let mut child = Command::new("sleep")
        .arg("1000")
        .env("LEFT", &state)
        .spawn()
        .expect("sleep is installed");
    let seen = lab
        .differs(lab.baseline.as_ref(), Fault::KillDaemon)
        .join("\n");
    child.kill().expect("a child of ours can be killed");
    child.wait().expect("a child of ours can be reaped");
    ip(&["link", "delete", &tap]).expect("ip is installed");
    for words in ["+ link bgr-", "/vms/ID", "/left", "+ process sleep"] {
        assert!(seen.contains(words), "no {words:?} in {seen}");
    }
    if let Some(group) = group {
        std::fs::remove_dir(group).expect("a group of ours is empty");
        let seen = seen.lines().filter(|line| line.contains("cgroup"));
        assert!(seen.count() > 0, "the control group of the VM is not seen");
    }
}

/// A control group of a VM with this id beside those of others; `None` without any.
fn plant_group(id: &str) -> Option<std::path::PathBuf> {
    let mut groups = crate::support::census::control_groups().into_iter();
    let all = groups.find(|path| path.ends_with("/banger"))?;
    let group = std::path::Path::new(&all).join(id);
    std::fs::create_dir(&group).expect("root makes groups");
    Some(group)
}

/// The boundaries that the operation reaches when nothing goes wrong.
fn places(lab: &Lab, operation: Operation) -> Vec<String> {
    if operation == Operation::Run {
        return vec![AT_REST.to_owned()];
    }
    prepare(lab, operation);
    let places = lab.point.traced(|| {
        lab.banger.ok(&operation.command());
    });
    let left = clear(lab, operation, Fault::KillDaemon);
    assert_eq!(left, None, "before anything was interrupted");
    places
}

/// Plays a cell; after a failure the next one gets a fresh lab, once the old one has gone
/// with its network: nothing of it may be in what the new one compares with.
fn cell(held: &mut Option<Lab>, operation: Operation, place: &str, fault: Fault) -> Verdict {
    let lab = held.as_ref().expect("there is one between cells");
    let played = catch_unwind(AssertUnwindSafe(|| {
        prepare(lab, operation);
        let verdict = match operation {
            Operation::Run => strike_at_rest(lab, fault),
            _ => interrupt(lab, operation, place, fault),
        };
        clear(lab, operation, fault).unwrap_or(verdict)
    }));
    let verdict = played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Verdict::Fail(text.unwrap_or_else(|| "a panic without words".to_owned()))
    });
    if let Verdict::Fail(why) = &verdict {
        println!("FAIL {place} {}: {why}", fault.word());
        println!("{}", end_of_log(lab));
    }
    // Tables are made again by the next start; what is compared with has them.
    if fault == Fault::Gone(Object::Tables) || matches!(verdict, Verdict::Fail(_)) {
        drop(held.take());
        *held = Lab::new(operation);
    }
    verdict
}

fn end_of_log(lab: &Lab) -> String {
    let log = std::fs::read_to_string(lab.banger.state().join("bangerd.log"));
    let log = log.unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn prepare(lab: &Lab, operation: Operation) {
    lab.point.clear();
    lab.set_up(operation);
}

fn interrupt(lab: &Lab, operation: Operation, place: &str, fault: Fault) -> Verdict {
    lab.point.arm(&format!("{place} {}", fault.action()));
    let client = lab.banger.start(&operation.command());
    if !lab.point.wait_or_end(client.pid()) {
        let ended = client.finish(COMMAND_DEADLINE);
        return Verdict::Fail(format!("the place was not reached: {ended:?}"));
    }
    let mut there = true;
    if fault.action() == "hang" {
        there = fault.strike(lab);
        match there {
            true => lab.point.go(),
            // Nothing to strike: the daemon is, so that a guest need not boot for it.
            false => lab.banger.kill_daemon(),
        }
    }
    let said = client.finish(COMMAND_DEADLINE);
    lab.point.clear();
    lab.disk.free();
    let verdict = match judge(lab, operation, fault) {
        verdict @ (Verdict::Done | Verdict::Adopted | Verdict::Restarted)
            if operation == Operation::Adjust =>
        {
            adjusted::judge(lab, fault, &said, verdict)
        }
        Verdict::Stuck(_) => retry(lab, operation, fault),
        verdict => verdict,
    };
    match (there, verdict) {
        (false, verdict @ Verdict::Fail(_)) | (true, verdict) => verdict,
        (false, _) => Verdict::NotThere,
    }
}

/// A VM that is stuck is tried again as it says itself, now that nothing is in the way.
fn retry(lab: &Lab, operation: Operation, fault: Fault) -> Verdict {
    let view = lab.banger.json(&["vm", "show", VM]);
    let again = view["retry"].as_str().unwrap_or("stop");
    let ran = lab.banger.run(&["vm", again, VM]);
    if ran.code() != Some(0) {
        return match fault {
            // With it went the user's work disk, which nothing brings back: the other
            // command that is named takes away what is left.
            Fault::Gone(Object::Folder) if ran.error().contains("banger vm delete") => {
                Verdict::Stuck(Box::new(Verdict::Lost))
            }
            _ => Verdict::Fail(format!("it stays stuck: {}", ran.error())),
        };
    }
    match judge(lab, operation, fault) {
        verdict @ (Verdict::AsBefore | Verdict::Done) => Verdict::Stuck(Box::new(verdict)),
        Verdict::Stuck(_) => Verdict::Fail("it stays stuck".to_owned()),
        verdict => verdict,
    }
}

/// A VM that runs is struck; it then answers, ends by itself, or can be stopped.
fn strike_at_rest(lab: &Lab, fault: Fault) -> Verdict {
    if fault == Fault::Busy || !fault.strike(lab) {
        return Verdict::NotThere;
    }
    let ends = matches!(fault, Fault::KillVmm | Fault::Gone(Object::Cgroup));
    if ends {
        ask_until(|| lab.banger.phase(VM), |phase| phase == "stopped");
    }
    if fault == Fault::KillDaemon {
        return judge(lab, Operation::Run, fault);
    }
    let stopped = lab.banger.run(&["vm", "stop", VM]);
    lab.disk.free();
    match stopped.code() {
        Some(0) => judge(lab, Operation::Run, fault),
        _ => Verdict::Fail(format!("it cannot be stopped: {}", stopped.error())),
    }
}

/// What came of it, once everything rests.
fn judge(lab: &Lab, operation: Operation, fault: Fault) -> Verdict {
    if !operation.has_vm() {
        return match lab.has(operation) {
            true => Verdict::Done,
            false => as_before(lab.differs(lab.baseline.as_ref(), fault)),
        };
    }
    let (phase, reason) = lab.rest().unwrap_or_default();
    match (phase.as_str(), operation) {
        ("", Operation::Delete | Operation::Remove) => {
            done(lab.differs(lab.baseline.as_ref(), fault))
        }
        ("", _) => as_before(lab.differs(lab.baseline.as_ref(), fault)),
        ("stopped", Operation::Start | Operation::Run | Operation::Delete | Operation::Remove) => {
            as_before(lab.differs(lab.stopped.as_ref(), fault))
        }
        ("stopped", _) => done(lab.differs(lab.stopped.as_ref(), fault)),
        ("running", _) => answers(lab, fault),
        ("stuck", _) => Verdict::Stuck(Box::new(Verdict::Fail(reason))),
        (phase, _) => Verdict::Fail(format!("it is {phase}: {reason}")),
    }
}

fn answers(lab: &Lab, fault: Fault) -> Verdict {
    let ask = || lab.banger.run(&["vm", "exec", VM, "--", "echo", "here"]);
    let cut_off = |ran: &Ran| ran.error().contains("banger vm restart");
    let mut ran = match fault {
        // Halted by the full disk; it goes on by itself, some seconds after there is room.
        Fault::NoSpace => ask_until(ask, |ran| ran.code() == Some(0) || cut_off(ran)),
        _ => ask(),
    };
    let restarted = fault == Fault::NoSpace && cut_off(&ran);
    if restarted {
        lab.banger.ok(&["vm", "restart", VM]);
        ran = ask();
    }
    match (ran.text().trim(), fault) {
        ("here", _) if restarted => Verdict::Restarted,
        ("here", Fault::KillDaemon) => Verdict::Adopted,
        ("here", _) => Verdict::Done,
        _ => Verdict::Fail(format!("it runs and does not answer: {ran:?}")),
    }
}

fn as_before(changes: Vec<String>) -> Verdict {
    match changes.is_empty() {
        true => Verdict::AsBefore,
        false => Verdict::Fail(changes.join("; ")),
    }
}

fn done(changes: Vec<String>) -> Verdict {
    match as_before(changes) {
        Verdict::AsBefore => Verdict::Done,
        other => other,
    }
}

/// Removes what the cell made; what is left of it then is a failure.
fn clear(lab: &Lab, operation: Operation, fault: Fault) -> Option<Verdict> {
    if !operation.has_vm() {
        if lab.has(operation) {
            lab.forget(operation);
        }
    } else if lab.rest().is_some() {
        let ran = lab.banger.run(&["vm", "delete", VM]);
        if ran.code() != Some(0) {
            return Some(Verdict::Fail(format!(
                "it cannot be deleted: {}",
                ran.error()
            )));
        }
    }
    let changes = lab.differs(lab.baseline.as_ref(), fault);
    (!changes.is_empty()).then(|| Verdict::Fail(format!("deleted: {}", changes.join("; "))))
}
