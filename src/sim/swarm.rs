//! Long stories with several VMs and clients, chosen by seed.
//!
//! Each seed enables a random subset of the faults and a random rate of them: a run
//! with everything at once rarely gets far. When the story is told, the faults are
//! switched off: everything must come to rest, and after one more restart cleanly.

use std::collections::{BTreeSet, HashSet};
use std::process::Command;

use crate::model::net::NetRequest;
use crate::model::vm::{Phase, RootModeRequest};
use crate::plan::facts::Fitness;
use crate::plan::record::Removal;
use crate::plan::request::{Force, Refresh, Request};
use crate::plan::step::StepKind;

use super::client::{
    breathe, create, delete, grow, kill, of_image, reset, restart, start, stop, with_root,
};
use super::explore::number;
use super::moves::{Death, Faults, Move};
use super::run::{Run, ShellBug};
use super::truth::Rest;

/// Moves under faults.
const MOVES_OF_STORY: usize = 1_500;
/// Moves that coming to rest may take.
const MOVES_TO_REST: usize = 20_000;
/// Seeds of an ordinary test run: as many as pass through every move.
const RUNS: u64 = 560;

/// A small generator (splitmix64, Steele et al. 2014): the same numbers for a seed,
/// whatever version of whatever crate.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn some_faults(dice: &mut Dice) -> Faults {
    Faults {
        steps: dice.coin(),
        crashes: dice.coin(),
        late_helpers: dice.coin(),
        reboots: dice.coin(),
        vmm_deaths: dice.coin(),
        leaving: dice.coin(),
        orders: dice.coin(),
        deaf_guests: dice.coin(),
        jobs: dice.coin(),
        saves: dice.coin(),
        hangs: dice.coin(),
        lingering: dice.coin(),
        full_disks: dice.coin(),
    }
}

fn some_request(dice: &mut Dice) -> Request {
    let name = *dice.pick(&["a", "b", "c", "d"]);
    let net = *dice.pick(&[NetRequest::Auto, NetRequest::Nat, NetRequest::None]);
    let removal = *dice.pick(&[Removal::Keep, Removal::Keep, Removal::WithClient]);
    let image = *dice.pick(&["small", "small", "twin", "large"]);
    let refresh = *dice.pick(&[Refresh::Again, Refresh::Keep]);
    match dice.below(39) / 2 {
        0..=4 => {
            let wanted = create(name, net, removal);
            of_image(image, with_root(wanted, *dice.pick(RootModeRequest::ALL)))
        }
        5 => start(name),
        6 | 7 => stop(name),
        8 => kill(name),
        9 => restart(name),
        10 => reset(name),
        11 => grow(name),
        19 => breathe(name),
        12 => delete(name, Force::Refuse),
        13 | 14 => delete(name, Force::Kill),
        15 => Request::ImagePull {
            name: image.to_owned(),
            refresh,
        },
        16 => Request::ImageDelete {
            name: image.to_owned(),
        },
        17 => Request::KernelDelete {
            name: "cloud".to_owned(),
        },
        _ => Request::Shutdown,
    }
}

/// Tells the story of a seed: how it ended, and the run with its history.
fn tell(seed: u64, bug: ShellBug) -> (Result<(), String>, Run) {
    let mut dice = Dice(seed);
    let faults = some_faults(&mut dice);
    let one_in = 3 + dice.below(60);
    let clients = 2 + dice.below(3);
    let scripts = (0..clients)
        .map(|_| (0..12).map(|_| some_request(&mut dice)).collect())
        .collect();
    let mut run = Run::new(scripts);
    run.bug = bug;
    if dice.coin() {
        run.facts.kvm = Fitness::Unfit("none".to_owned());
    }
    run.facts.reflink = Fitness::Fit;
    run.facts.device_mapper = Fitness::Fit;
    let stubborn = [
        StepKind::Tap,
        StepKind::WorkDisk,
        StepKind::UpperDisk,
        StepKind::DmSnapshot,
        StepKind::CowLoop,
    ];
    run.stubborn = stubborn.get(dice.below(12)).copied();
    let told = disturb(&mut run, &mut dice, faults, one_in)
        .and_then(|()| settle(&mut run, Rest::Any))
        .and_then(|()| {
            run.stubborn = None;
            run.apply(&Move::Crash(Death::BeforeEffects));
            settle(&mut run, Rest::Clean)
        });
    (told, run)
}

fn disturb(run: &mut Run, dice: &mut Dice, faults: Faults, one_in: usize) -> Result<(), String> {
    for _ in 0..MOVES_OF_STORY {
        let moves = run.moves(faults);
        let Some((usual, others)) = moves.split_first() else {
            return Ok(());
        };
        let disturbed = !others.is_empty() && dice.below(one_in) == 0;
        let chosen = if disturbed { dice.pick(others) } else { usual };
        run.apply(chosen);
        run.check()?;
    }
    Ok(())
}

fn settle(run: &mut Run, rest: Rest) -> Result<(), String> {
    for _ in 0..MOVES_TO_REST {
        let moves = run.moves(Faults::NONE);
        let Some(usual) = moves.first() else {
            return run.check_at_rest(rest);
        };
        run.apply(usual);
        run.check()?;
    }
    Err("it never comes to rest".to_owned())
}

/// What a failure prints: what broke, how it came to it, and how to see it again.
fn complaint(seed: u64, broken: &str, run: &Run) -> String {
    let moves = run.history.moves();
    let last = &moves[moves.len().saturating_sub(60)..];
    let count = moves.len();
    format!(
        "{broken}\nthe last of {count} moves: {last:#?}\n\
         tell it again: BANGER_SIM_SEED={seed} cargo test --lib {TELLER}"
    )
}

/// The test that tells stories by seed.
const TELLER: &str = "sim::swarm::seeded_stories_hold_and_pass_through_every_phase";

/// Everything that can happen to a run.
const MOVES: [&str; 19] = [
    "AgentStaysSilent",
    "Ask",
    "BackendDies",
    "Complete",
    "Crash",
    "EndJob",
    "FillsUp",
    "Fire",
    "Hang",
    "HasRoom",
    "Hear",
    "HelperActs",
    "Leave",
    "LetsGo",
    "Perform",
    "PowerOffFails",
    "Restart",
    "SaveFails",
    "VmmDies",
];

#[test]
fn seeded_stories_hold_and_pass_through_every_phase() {
    let chosen = number("BANGER_SIM_SEED");
    let seeds = match chosen {
        Some(seed) => seed..seed + 1,
        None => 0..number("BANGER_SIM_RUNS").unwrap_or(RUNS),
    };
    // For the proof that a failure is told again by the command it prints.
    let bug = match std::env::var("BANGER_SIM_BUG").as_deref() {
        Ok("reply-before-save") => ShellBug::ReplyBeforeSave,
        _ => ShellBug::None,
    };
    let (mut phases, mut moves) = (HashSet::new(), BTreeSet::new());
    for seed in seeds {
        let (told, run) = tell(seed, bug);
        if let Err(broken) = told {
            panic!("{}", complaint(seed, &broken, &run));
        }
        moves.extend(run.history.moves().iter().map(Move::word));
        phases.extend(run.phases);
    }
    if chosen.is_none() {
        assert_eq!(phases.len(), Phase::ALL.len(), "{phases:?}");
        assert!(moves.iter().eq(MOVES), "{moves:?}");
    }
}

#[test]
fn story_of_a_seed_is_the_same_each_time() {
    let story = || tell(7, ShellBug::None).1.history.moves();
    let first = story();
    assert!(first.len() > 100);
    assert_eq!(first, story());
}

#[test]
fn failure_is_told_again_by_the_command_that_it_prints() {
    let bug = ShellBug::ReplyBeforeSave;
    let mut stories = (0..RUNS).map(|seed| (seed, tell(seed, bug)));
    let told = stories.find_map(|(seed, (told, run))| Some(complaint(seed, &told.err()?, &run)));
    let complaint = told.expect("some seed finds a lying shell");
    let command = complaint.split("tell it again: ").nth(1).unwrap();
    let (variable, cargo) = command.split_once(' ').unwrap();
    let (name, value) = variable.split_once('=').unwrap();
    let filter = cargo.strip_prefix("cargo test --lib ").unwrap();
    let again = Command::new(std::env::current_exe().unwrap())
        .arg(filter)
        .envs([(name, value), ("BANGER_SIM_BUG", "reply-before-save")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains(&complaint), "{said}\ninstead of {complaint}");
}
