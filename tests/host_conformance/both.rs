//! The same script on the simulated world and on the real kernel: what each verb says,
//! and what a probe of every step sees after it, must be the same. Where they differ the
//! simulation proves something about another kernel, and the world must be mended.

use std::fmt::Write;

use banger::model::ids::VmId;
use banger::plan::retry::Verb;
use banger::plan::step::{Fault, FaultKind, Presence, Step, StepKind};

use crate::lab::{self, FileSystem, Lab};
use crate::real::Real;
use crate::script::{self, Line, Script};
use crate::support::skip;
use crate::world::{Turn, World};

/// One of the two.
pub trait Side {
    fn act(&mut self, verb: Verb, step: &Step) -> Result<(), Fault>;
    fn probe(&self, step: &Step) -> Result<Presence, Fault>;
    fn turn(&mut self, turn: &Turn);
}

impl Side for World {
    fn act(&mut self, verb: Verb, step: &Step) -> Result<(), Fault> {
        World::act(self, verb, step)
    }

    fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        World::probe(self, step)
    }

    fn turn(&mut self, turn: &Turn) {
        World::turn(self, turn);
    }
}

/// What a side does with a script.
struct Seen {
    /// For comparison, line by line.
    lines: Vec<String>,
    /// In words, for whoever must find out why they differ.
    faults: Vec<String>,
}

fn play(side: &mut impl Side, script: &Script) -> Seen {
    let steps = script.steps();
    let (mut lines, mut faults) = (Vec::new(), Vec::new());
    for line in &script.lines {
        let outcome = match line {
            Line::Does(verb, step) => side.act(*verb, step),
            Line::Happens(turn) => {
                side.turn(turn);
                Ok(())
            }
        };
        if let Some(vm) = ends_a_vmm(line, outcome.is_err()) {
            // Whether a back end outlives its VMM depends on what it was reading then.
            side.turn(&Turn::BackendDies(vm));
        }
        let mut seen = match &outcome {
            Ok(()) => "ok".to_owned(),
            Err(fault) => word(fault.kind),
        };
        for step in &steps {
            let found = match side.probe(step) {
                Ok(presence) => format!("{presence:?}").to_lowercase(),
                Err(fault) => word(fault.kind),
            };
            write!(seen, ", {} {found}", step.kind().word()).unwrap();
        }
        lines.push(seen);
        faults.push(outcome.err().map(|fault| fault.what).unwrap_or_default());
    }
    Seen { lines, faults }
}

fn ends_a_vmm(line: &Line, failed: bool) -> Option<VmId> {
    match line {
        Line::Does(Verb::Absent, Step::Vmm { vm, .. }) => Some(*vm),
        Line::Does(Verb::Ensure, Step::Vmm { vm, .. }) if failed => Some(*vm),
        Line::Happens(Turn::VmmDies(vm)) => Some(*vm),
        _ => None,
    }
}

fn word(kind: FaultKind) -> String {
    format!("fault {kind:?}").to_lowercase()
}

/// The first line on which they differ, with both.
fn difference(script: &Script, world: &Seen, kernel: &Seen) -> Option<String> {
    let mut both = world.lines.iter().zip(&kernel.lines);
    let at = both.position(|(world, kernel)| world != kernel)?;
    Some(format!(
        "{}, line {}: {}\n  world:  {}\n  kernel: {}\n  kernel's words: {}",
        script.name,
        at + 1,
        script.lines[at],
        world.lines[at],
        kernel.lines[at],
        kernel.faults[at],
    ))
}

/// What world and kernel disagree about in those scripts that this host can play.
fn disagreements(name: &str, lab: &Lab, vm: VmId, scripts: &[Script]) -> Vec<String> {
    let mut found = Vec::new();
    for script in scripts {
        if let Some(lack) = script
            .needs
            .iter()
            .find_map(|need| crate::real::lack(lab, *need))
        {
            skip(&format!("{name}: {}", script.name), lack);
            continue;
        }
        let kernel = play(&mut Real::new(lab, vm), script);
        let world = play(&mut World::default(), script);
        found.extend(difference(script, &world, &kernel));
    }
    found
}

fn vm(number: u32) -> VmId {
    VmId::from_bits(std::process::id() << 8 | number)
}

#[test]
fn world_and_kernel_agree_on_every_line() {
    let name = "world_and_kernel_agree_on_every_line";
    lab::run_on(name, Some(FileSystem::Tmpfs), |lab: &mut Lab| {
        let found = disagreements(name, lab, vm(1), &script::scripts(vm(1)));
        assert!(found.is_empty(), "{}", found.join("\n"));
    });
}

#[test]
fn world_and_kernel_agree_on_snapshots() {
    let name = "world_and_kernel_agree_on_snapshots";
    lab::run_without_network(name, |lab: &mut Lab| {
        let found = disagreements(name, lab, vm(4), &script::snapshots::scripts(vm(4)));
        assert!(found.is_empty(), "{}", found.join("\n"));
    });
}

#[test]
fn every_kind_of_step_is_in_a_script() {
    let scripts = script::scripts(vm(0));
    let steps = scripts.iter().flat_map(Script::steps);
    let kinds: Vec<StepKind> = steps.map(|step| step.kind()).collect();
    // That the agent has called the daemon knows; no host carries it out.
    let missing = StepKind::ALL
        .iter()
        .filter(|kind| **kind != StepKind::Ready && !kinds.contains(kind));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&StepKind>::new());
}

/// A world with one rule of its own, for the proof that a wrong one is found.
struct Wrong {
    world: World,
    rule: fn(&World, Verb, &Step) -> Option<FaultKind>,
}

impl Side for Wrong {
    fn act(&mut self, verb: Verb, step: &Step) -> Result<(), Fault> {
        match (self.rule)(&self.world, verb, step) {
            Some(kind) => Err(Fault::new(kind, "so says the wrong rule")),
            None => self.world.act(verb, step),
        }
    }

    fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        self.world.probe(step)
    }

    fn turn(&mut self, turn: &Turn) {
        self.world.turn(turn);
    }
}

/// Two rules that this world once had.
fn folder_with_disks_is_busy(world: &World, verb: Verb, step: &Step) -> Option<FaultKind> {
    let disks = [StepKind::UpperDisk, StepKind::WorkDisk];
    let is_folder = (verb, step.kind()) == (Verb::Absent, StepKind::VmDirectory);
    let has_disk = disks.iter().any(|disk| world.has(step.vm(), *disk));
    (is_folder && has_disk).then_some(FaultKind::Busy)
}

fn rules_need_a_tap(world: &World, verb: Verb, step: &Step) -> Option<FaultKind> {
    let are_rules = (verb, step.kind()) == (Verb::Ensure, StepKind::NetRules);
    (are_rules && !world.has(step.vm(), StepKind::Tap)).then_some(FaultKind::Missing)
}

#[test]
fn a_wrong_rule_of_the_world_is_found_and_both_sides_are_printed() {
    let name = "a_wrong_rule_of_the_world_is_found_and_both_sides_are_printed";
    lab::run_on(name, Some(FileSystem::Tmpfs), |lab: &mut Lab| {
        let scripts = script::scripts(vm(2));
        for (script, rule, says) in [
            (
                "disks, without",
                folder_with_disks_is_busy as fn(&World, Verb, &Step) -> Option<FaultKind>,
                "absent vm-directory\n  world:  fault busy, upper-disk",
            ),
            (
                "rules without",
                rules_need_a_tap,
                "ensure net-rules\n  world:  fault missing, net-rules",
            ),
        ] {
            let mut scripts = scripts.iter();
            let script = scripts.find(|one| one.name.starts_with(script)).unwrap();
            let kernel = play(&mut Real::new(lab, vm(2)), script);
            let world = World::default();
            let wrong = play(&mut Wrong { world, rule }, script);
            let found = difference(script, &wrong, &kernel).expect("they differ");
            assert!(found.contains(says), "{found}");
            assert!(found.contains("\n  kernel: ok, "), "{found}");
        }
    });
}

/// Copies by reference, and what is left of a full disk, are the file system's.
fn disks_agree_on(name: &str, kind: FileSystem) {
    lab::run_on(name, Some(kind), |lab: &mut Lab| {
        let found = disagreements(name, lab, vm(3), &script::folders_and_disks(vm(3)));
        assert!(found.is_empty(), "{}", found.join("\n"));
    });
}

#[test]
fn world_and_kernel_agree_on_disks_of_an_xfs() {
    disks_agree_on("world_and_kernel_agree_on_disks_of_an_xfs", FileSystem::Xfs);
}

#[test]
fn world_and_kernel_agree_on_disks_of_a_btrfs() {
    let name = "world_and_kernel_agree_on_disks_of_a_btrfs";
    disks_agree_on(name, FileSystem::Btrfs);
}
