//! What came of an adjustment, where the VM runs on: it has the sizes of before, those of
//! its row, or gets them when it is asked for them again, as it was said.

use crate::fault::{Fault, Object};
use crate::lab::Lab;
use crate::operation::{Operation, VM};
use crate::support::events::ask_until;
use crate::support::running::Ran;
use crate::table::Verdict;

/// The sizes that are asked for.
const WORK_DISK: u64 = 1200 << 20;
const MEMORY_TARGET: u64 = 112 << 20;

/// What a client ends with whose daemon has ended, killed or because it could not save.
const DAEMON_ENDED: i32 = 3;

/// Judges the VM after its adjustment was interrupted and the command ended as `said`; one
/// that does not run any more came to `otherwise`.
pub fn judge(lab: &Lab, fault: Fault, said: &Ran, otherwise: Verdict) -> Verdict {
    let view = lab.banger.json(&["vm", "show", VM]);
    if view["phase"] != "running" {
        return match said.code() {
            Some(0) | Some(DAEMON_ENDED) => otherwise,
            _ if says(said, "banger vm start") || says(said, "banger vm restart") => otherwise,
            _ => Verdict::Fail(format!("it does not say what to type: {said:?}")),
        };
    }
    let row = ["work_disk", "memory_target"].map(|key| view[key].as_u64());
    if row == [Some(1 << 30), None] {
        return match (said.code(), fault) {
            (Some(0), _) => Verdict::Fail(format!("it said done: {view}")),
            _ if otherwise == Verdict::Restarted => otherwise,
            (_, Fault::KillDaemon) => Verdict::Adopted,
            _ => Verdict::AsBefore,
        };
    }
    if row != [Some(WORK_DISK), Some(MEMORY_TARGET)] {
        return Verdict::Fail(format!("neither the old sizes nor the new ones: {view}"));
    }
    match (said.code(), fault) {
        _ if otherwise == Verdict::Restarted => reached(lab, fault, otherwise),
        // The next daemon does it, and nobody is told when.
        (Some(DAEMON_ENDED), _) | (_, Fault::KillDaemon) => reached(lab, fault, Verdict::Adopted),
        (Some(0), _) => reached(lab, fault, Verdict::Done),
        _ => again(lab, fault, said),
    }
}

/// It failed and its row has the new sizes: whoever asks again gets them, or at least who
/// restarts the VM, where nobody reaches its VMM any more.
fn again(lab: &Lab, fault: Fault, said: &Ran) -> Verdict {
    if !says(said, "banger vm set") {
        return Verdict::Fail(format!("it does not say what to type: {said:?}"));
    }
    let ran = lab.banger.run(&Operation::Adjust.command());
    match ran.code() {
        Some(0) => reached(lab, fault, Verdict::Again),
        _ if says(&ran, "banger vm restart") => restarted(lab, fault),
        // The guest runs on, on files without a name; no disk can be made longer there.
        _ if fault == Fault::Gone(Object::Folder) => Verdict::Lost,
        _ => Verdict::Fail(format!("asked again: {ran:?}")),
    }
}

/// The guest has the sizes, or has them after the restart that is said to be needed: the
/// full disk has halted it, and its back end has not outlived that.
fn reached(lab: &Lab, fault: Fault, verdict: Verdict) -> Verdict {
    let cut_off = |seen: &Seen| says(&seen.said, "banger vm restart");
    let seen = ask_until(|| look(lab, fault), |seen| is_given(seen) || cut_off(seen));
    match cut_off(&seen) {
        true => restarted(lab, fault),
        false => given(&seen, verdict),
    }
}

fn restarted(lab: &Lab, fault: Fault) -> Verdict {
    let ran = lab.banger.run(&["vm", "restart", VM]);
    match ran.code() {
        Some(0) => given(
            &ask_until(|| look(lab, fault), is_given),
            Verdict::Restarted,
        ),
        _ => Verdict::Fail(format!("restarted: {ran:?}")),
    }
}

fn says(said: &Ran, words: &str) -> bool {
    said.error().contains(words)
}

/// What a VM has.
#[derive(Debug)]
struct Seen {
    /// What the guest was asked for, and said.
    said: Ran,
    /// KiB of the file system on the work disk.
    work_disk: u64,
    /// Bytes of memory that the guest has.
    memory: u64,
}

fn look(lab: &Lab, fault: Fault) -> Seen {
    let home = ["vm", "exec", VM, "--", "df", "-k", "--output=size", "/root"];
    let said = lab.banger.run(&home);
    let text = said.text();
    let kibibytes = text.split_whitespace().last().and_then(|n| n.parse().ok());
    let memory = lab.banger.json(&["vm", "show", VM])["memory_actual"].as_u64();
    // Without its socket nobody can ask the VMM.
    let unknown = match fault {
        Fault::Gone(Object::Socket) => 0,
        _ => u64::MAX,
    };
    Seen {
        work_disk: kibibytes.unwrap_or_default(),
        memory: memory.unwrap_or(unknown),
        said,
    }
}

/// A file system is a little smaller than its disk; a balloon takes its time.
fn is_given(seen: &Seen) -> bool {
    seen.work_disk > 1100 << 10 && seen.memory <= MEMORY_TARGET
}

fn given(seen: &Seen, verdict: Verdict) -> Verdict {
    match is_given(seen) {
        true => verdict,
        false => Verdict::Fail(format!("it has not got them: {seen:?}")),
    }
}
