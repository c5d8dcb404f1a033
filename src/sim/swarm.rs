//! Long stories with several VMs and clients, chosen by seed.
//!
//! Each seed enables a random subset of the faults and a random rate of them: a run
//! with everything at once rarely gets far. When the story is told, the faults are
//! switched off: everything must come to rest, and after one more restart cleanly.

use crate::model::net::NetRequest;
use crate::plan::record::Removal;
use crate::plan::request::{Force, Refresh, Request};

use super::client::{create, delete, kill, reset, restart, start, stop};
use super::moves::{Death, Faults, Move};
use super::run::Run;
use super::truth::Rest;

/// Moves under faults.
const MOVES_OF_STORY: usize = 1_500;
/// Moves that coming to rest may take.
const MOVES_TO_REST: usize = 20_000;
/// Seeds of an ordinary test run.
const RUNS: u64 = 60;

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
    }
}

fn some_request(dice: &mut Dice) -> Request {
    let name = *dice.pick(&["a", "b", "c", "d"]);
    let net = *dice.pick(&[NetRequest::Auto, NetRequest::Nat, NetRequest::None]);
    let removal = *dice.pick(&[Removal::Keep, Removal::Keep, Removal::WithClient]);
    let image = || "small".to_owned();
    match dice.below(16) {
        0..=4 => create(name, net, removal),
        5 => start(name),
        6 | 7 => stop(name),
        8 => kill(name),
        9 => restart(name),
        10 => reset(name),
        11 => delete(name, Force::Refuse),
        12 | 13 => delete(name, Force::Kill),
        14 => Request::ImagePull {
            name: image(),
            refresh: Refresh::Again,
        },
        _ => Request::ImageDelete { name: image() },
    }
}

/// Tells the story of a seed; the broken truth and the moves that led to it.
pub(super) fn tell(seed: u64, prepare: impl FnOnce(&mut Run)) -> Result<(), (String, Vec<Move>)> {
    let mut dice = Dice(seed);
    let faults = some_faults(&mut dice);
    let one_in = 2 + dice.below(30);
    let clients = 2 + dice.below(3);
    let scripts = (0..clients)
        .map(|_| (0..12).map(|_| some_request(&mut dice)).collect())
        .collect();
    let mut run = Run::new(scripts);
    prepare(&mut run);
    let told = disturb(&mut run, &mut dice, faults, one_in)
        .and_then(|()| settle(&mut run, Rest::Any))
        .and_then(|()| {
            run.apply(&Move::Crash(Death::BeforeEffects));
            settle(&mut run, Rest::Clean)
        });
    told.map_err(|broken| (broken, run.history))
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

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn seeded_stories_hold() {
    let seeds = match number("BANGER_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BANGER_SIM_RUNS").unwrap_or(RUNS),
    };
    for seed in seeds {
        if let Err((broken, moves)) = tell(seed, |_| {}) {
            let last = &moves[moves.len().saturating_sub(60)..];
            panic!(
                "{broken}\nafter {} moves, the last of them {last:#?}\nBANGER_SIM_SEED={seed}",
                moves.len()
            );
        }
    }
}
