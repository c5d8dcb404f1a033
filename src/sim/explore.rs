//! Every schedule of a short story with a bounded number of interruptions.
//!
//! After a crash nothing is left of a run but the disk, the world and the clients, and a
//! mind with nothing under way knows what the disk says: schedules that meet at such a
//! point are followed once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

use crate::model::net::NetRequest;
use crate::plan::record::Removal;
use crate::plan::request::{Force, Refresh, Request};
use crate::plan::retry::Verb;
use crate::plan::step::StepKind;

use super::client::{breathe, create, delete, grow, of_image, reset, restart, start, stop};
use super::moves::{Faults, Move};
use super::run::{Helper, Run};
use super::truth::Rest;

/// No undisturbed story has more moves; a longer one never comes to rest.
const MOVES_TO_REST: usize = 2_000;

/// What a search found.
#[derive(Debug)]
pub(super) struct Search {
    faults: Faults,
    met: HashSet<u64>,
    /// Schedules followed to their end, or to where another went on.
    pub(super) schedules: u64,
    /// The first broken truth, with the moves that led there.
    pub(super) broken: Option<(String, Vec<Move>)>,
}

impl Search {
    /// Follows every schedule of this story with at most so many interruptions.
    pub(super) fn of(run: Run, interruptions: u32, faults: Faults) -> Search {
        let mut search = Search {
            faults,
            met: HashSet::new(),
            schedules: 0,
            broken: None,
        };
        search.follow(run, interruptions);
        search
    }

    fn follow(&mut self, mut run: Run, interruptions: u32) {
        for _ in 0..MOVES_TO_REST {
            if let Err(broken) = run.check() {
                return self.found(broken, &run);
            }
            let is_still = run.mind.is_none() || run.is_still();
            if is_still && !self.met.insert(fingerprint(&run, interruptions)) {
                self.schedules += 1;
                return;
            }
            let faults = match interruptions {
                0 => Faults::NONE,
                _ => self.faults,
            };
            let moves = run.moves(faults);
            let Some((usual, others)) = moves.split_first() else {
                return self.rest(&run);
            };
            for other in others {
                self.branch(&run, other, interruptions);
                if self.broken.is_some() {
                    return;
                }
            }
            run.apply(usual);
        }
        self.found("it never comes to rest".to_owned(), &run);
    }

    fn branch(&mut self, run: &Run, other: &Move, interruptions: u32) {
        let is_paid_for = matches!(other, Move::HelperActs | Move::LetsGo(..) | Move::HasRoom);
        let cost = u32::from(!is_paid_for);
        let mut branch = run.clone();
        branch.apply(other);
        self.follow(branch, interruptions - cost);
    }

    fn rest(&mut self, run: &Run) {
        self.schedules += 1;
        // Of a crash nothing must remain; a step that fails may leave something undone.
        let crashes = Faults {
            crashes: true,
            ..Faults::NONE
        };
        let rest = match self.faults == crashes {
            true => Rest::Clean,
            false => Rest::Any,
        };
        if let Err(broken) = run.check_at_rest(rest) {
            self.found(broken, run);
        }
    }

    fn found(&mut self, broken: String, run: &Run) {
        self.broken.get_or_insert((broken, run.history.moves()));
    }

    /// Ends the test with the moves that broke a truth.
    #[track_caller]
    pub(super) fn assert_holds(&self) {
        if let Some((broken, moves)) = &self.broken {
            panic!("{broken}\nafter {moves:#?}");
        }
    }
}

fn fingerprint(run: &Run, interruptions: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    interruptions.hash(&mut hasher);
    run.world.hash_into(&mut hasher);
    (run.mind.is_some(), run.timers.len()).hash(&mut hasher);
    for helper in &run.helpers {
        match helper {
            Helper::Step(verb, step) => {
                (*verb == Verb::Ensure, step.vm(), step.kind()).hash(&mut hasher);
            }
            Helper::Builder(key) => key.to_string().hash(&mut hasher),
        }
    }
    run.lingering.hash(&mut hasher);
    (&run.clients.holds, &run.hold_watches).hash(&mut hasher);
    for key in &run.litter {
        key.to_string().hash(&mut hasher);
    }
    for vm in run.disk.vms.values() {
        (vm.id, vm.phase, vm.run_plan.len()).hash(&mut hasher);
        (vm.stuck.is_some(), vm.removal == Removal::Keep).hash(&mut hasher);
        (
            vm.grows,
            vm.spec.work_disk.0,
            vm.spec.memory_target.is_some(),
        )
            .hash(&mut hasher);
        (vm.lease.map(|lease| lease.address), &vm.spec.image.content).hash(&mut hasher);
        let owner = run.clients.owners.get(&vm.id);
        owner
            .map(|owner| run.clients.is_connected(*owner))
            .hash(&mut hasher);
        let watches = [&run.watches, &run.backend_watches];
        watches
            .map(|watches| watches.contains_key(&vm.id))
            .hash(&mut hasher);
    }
    let images = run.disk.images.values();
    images.for_each(|image| (&image.name, &image.content).hash(&mut hasher));
    run.disk.kernels.len().hash(&mut hasher);
    for client in &run.clients.all {
        (client.script.len(), client.open.is_some()).hash(&mut hasher);
    }
    hasher.finish()
}

/// A number in the environment of the tests.
pub(super) fn number<T: FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

fn story(scripts: Vec<Vec<Request>>) -> Run {
    Run::stocked(scripts)
}

fn dev(removal: Removal) -> Request {
    create("dev", NetRequest::None, removal)
}

#[test]
fn creation_and_start_hold_under_two_interruptions() {
    let run = story(vec![vec![dev(Removal::Keep)]]);
    let search = Search::of(run, 2, Faults::ALL);
    search.assert_holds();
    assert!(search.schedules > 2_000, "{}", search.schedules);
}

#[test]
fn vm_with_every_kind_of_step_holds_under_interruptions() {
    let everything = vec![
        create("dev", NetRequest::Nat, Removal::Keep),
        restart("dev"),
        stop("dev"),
        reset("dev"),
        delete("dev", Force::Refuse),
    ];
    let mut run = story(vec![everything]);
    run.facts.kvm = crate::plan::facts::Fitness::Unfit("none".to_owned());
    let interruptions = number("BANGER_SIM_DEPTH").unwrap_or(2);
    let search = Search::of(run, interruptions, Faults::ALL);
    search.assert_holds();
    assert!(search.schedules > 20_000, "{}", search.schedules);
}

#[test]
fn vm_over_a_snapshot_holds_under_interruptions() {
    let everything = vec![
        dev(Removal::Keep),
        stop("dev"),
        reset("dev"),
        start("dev"),
        delete("dev", Force::Kill),
    ];
    let mut run = story(vec![everything]);
    run.facts.device_mapper = crate::plan::facts::Fitness::Fit;
    let interruptions = number("BANGER_SIM_DEPTH").unwrap_or(2);
    let search = Search::of(run, interruptions, Faults::ALL);
    search.assert_holds();
    assert!(search.schedules > 300, "{}", search.schedules);
}

#[test]
fn sizes_of_a_running_vm_hold_under_interruptions() {
    let run = story(vec![
        vec![
            dev(Removal::Keep),
            grow("dev"),
            breathe("dev"),
            restart("dev"),
        ],
        vec![delete("dev", Force::Kill)],
    ]);
    let faults = Faults {
        late_helpers: false,
        lingering: false,
        ..Faults::ALL
    };
    let search = Search::of(run, 1, faults);
    search.assert_holds();
    assert!(search.schedules > 100, "{}", search.schedules);
}

#[test]
fn stop_and_deletion_beside_another_client_hold_under_two_interruptions() {
    let run = story(vec![
        vec![dev(Removal::Keep), delete("dev", Force::Kill)],
        vec![stop("dev")],
    ]);
    let search = Search::of(run, 2, Faults::ALL);
    search.assert_holds();
    assert!(search.schedules > 10_000, "{}", search.schedules);
}

#[test]
fn reset_holds_under_two_interruptions() {
    let run = story(vec![vec![dev(Removal::Keep), stop("dev"), reset("dev")]]);
    let faults = Faults {
        orders: false,
        ..Faults::ALL
    };
    Search::of(run, 2, faults).assert_holds();
}

#[test]
fn vm_that_goes_with_its_client_holds_under_two_interruptions() {
    let run = story(vec![vec![dev(Removal::WithClient)]]);
    Search::of(run, 2, Faults::ALL).assert_holds();
}

#[test]
fn creation_that_pulls_first_holds_under_two_interruptions() {
    let run = Run::new(vec![vec![dev(Removal::Keep)], vec![dev(Removal::Keep)]]);
    let faults = Faults {
        steps: false,
        vmm_deaths: false,
        ..Faults::ALL
    };
    Search::of(run, 2, faults).assert_holds();
}

#[test]
fn images_pulled_deleted_and_swept_beside_creations_hold_under_interruptions() {
    let pull = |name: &str, refresh| Request::ImagePull {
        name: name.to_owned(),
        refresh,
    };
    let gone = |name: &str| Request::ImageDelete {
        name: name.to_owned(),
    };
    let run = Run::stocked(vec![
        vec![pull("small", Refresh::Again), gone("small")],
        vec![pull("small", Refresh::Keep), pull("twin", Refresh::Keep)],
        vec![of_image("twin", dev(Removal::Keep)), gone("twin")],
    ]);
    let faults = Faults {
        steps: false,
        hangs: false,
        vmm_deaths: false,
        lingering: false,
        ..Faults::ALL
    };
    let search = Search::of(run, 2, faults);
    search.assert_holds();
    assert!(search.schedules > 1_000, "{}", search.schedules);
}

#[test]
fn vm_that_is_stuck_holds_under_two_interruptions() {
    let mut run = story(vec![vec![
        dev(Removal::Keep),
        stop("dev"),
        delete("dev", Force::Kill),
    ]]);
    run.stubborn = Some(StepKind::RunDirectory);
    let faults = Faults {
        orders: false,
        hangs: false,
        lingering: false,
        ..Faults::ALL
    };
    let search = Search::of(run, 2, faults);
    search.assert_holds();
    assert!(search.schedules > 1_000, "{}", search.schedules);
}
