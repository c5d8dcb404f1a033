//! `banger doctor --fix`: has the daemon put right what can be, and says what was done.

use serde::Serialize;

use super::context::{Context, unexpected};
use super::render::{self, Paint, Stream, paint, printable};
use crate::failure::Failure;
use crate::proto::repair::{Outcome, Repair, Repaired, StuckVm};
use crate::proto::reply::Reply;
use crate::proto::request::Request;

/// What a `--json` reader gets.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether anything was to be changed.
    dry_run: bool,
    /// Every object that is not as it must be, with what became of it.
    repairs: Vec<Repair>,
}

/// Carries it out; the exit status is 1 when something remains.
///
/// # Errors
/// No daemon can be started: only it knows which VMs there are.
pub fn run(context: &Context, dry_run: bool, json: bool) -> Result<u8, Failure> {
    let Repaired {
        mut repairs,
        contents,
        stuck,
    } = match context.ask(Request::Repair { dry_run }).map_err(unknown)? {
        Reply::Repaired(repaired) => repaired,
        other => return Err(unexpected("repair", &other)),
    };
    repairs.extend(sweep(context, contents, dry_run));
    repairs.extend(stuck.iter().map(|vm| retry(context, vm, dry_run)));
    let remains = repairs.iter().any(|repair| repair.outcome.remains());
    match json {
        true => render::json(&Report { dry_run, repairs }),
        false => render::out(&text(&repairs)),
    }
    Ok(u8::from(remains))
}

fn unknown(failure: Failure) -> Failure {
    let what = "fix this machine: nothing was changed, only the daemon knows which VMs there are";
    let hint = failure.hint.clone();
    let because = Failure::new(failure.kind, what).because(failure);
    match hint {
        Some(hint) => because.hint(hint),
        None => because,
    }
}

/// The daemon removes contents between pulls, so they are asked for as one.
fn sweep(context: &Context, contents: Vec<String>, dry_run: bool) -> Vec<Repair> {
    let (outcome, why) = match dry_run || contents.is_empty() {
        true => (Outcome::WouldRemove, "nothing names it".to_owned()),
        false => match context.ask(Request::Sweep {}) {
            Ok(_) => (Outcome::Removed, "nothing names it".to_owned()),
            Err(failure) => (Outcome::Failed, failure.to_string()),
        },
    };
    let repair = |what| Repair {
        outcome,
        what,
        why: why.clone(),
    };
    contents.into_iter().map(repair).collect()
}

/// Tries once more what got stuck. What a row that cannot be read stood for is for its
/// owner to decide.
fn retry(context: &Context, stuck: &StuckVm, dry_run: bool) -> Repair {
    let vm = stuck.name.clone();
    let what = format!("vm {vm}, stuck while {}", stuck.at);
    let again = match stuck.at.as_str() {
        "stopping" => Request::VmStop { vm },
        "resetting" => Request::VmReset { vm },
        "deleting" => Request::VmDelete { vm, force: true },
        _ => {
            let why = format!(
                "{}; `banger vm delete {vm}` removes what it had",
                stuck.reason
            );
            return Repair {
                outcome: Outcome::Left,
                what: format!("vm {vm}"),
                why,
            };
        }
    };
    let (outcome, why) = match dry_run {
        true => (Outcome::WouldMend, stuck.reason.clone()),
        false => match context.ask(again) {
            Ok(_) => (Outcome::Mended, "tried again, and it is done".to_owned()),
            Err(failure) => (Outcome::Failed, failure.to_string()),
        },
    };
    Repair { outcome, what, why }
}

fn text(repairs: &[Repair]) -> String {
    if repairs.is_empty() {
        return "nothing to fix\n".to_owned();
    }
    repairs.iter().map(line).collect()
}

fn line(repair: &Repair) -> String {
    let colour = match repair.outcome {
        Outcome::Removed | Outcome::Mended => Paint::Green,
        Outcome::WouldRemove | Outcome::WouldMend | Outcome::Left => Paint::Yellow,
        Outcome::Failed => Paint::Red,
    };
    let word = format!("{:<12}", repair.outcome.word());
    format!(
        "{} {}: {}\n",
        paint(Stream::Out, colour, &word),
        printable(&repair.what),
        printable(&repair.why)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_what_became_of_a_thing_and_why() {
        let repair = |outcome| Repair {
            outcome,
            what: "tap bgr-0000002a".to_owned(),
            why: "no VM has it".to_owned(),
        };
        assert_eq!(
            text(&[repair(Outcome::Removed), repair(Outcome::WouldRemove)]),
            "removed      tap bgr-0000002a: no VM has it\nwould remove tap bgr-0000002a: no VM has it\n"
        );
        assert_eq!(text(&[]), "nothing to fix\n");
    }
}
