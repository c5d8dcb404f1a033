//! Properties of every operation, whatever goes wrong.

use proptest::prelude::*;

use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::step::{FaultKind, GroupLimits};

use super::*;

const VM: VmId = VmId::from_bits(7);

fn disks() -> Vec<Step> {
    let (vm, size) = (VM, Bytes::gib(1));
    vec![
        Step::VmDirectory { vm },
        Step::UpperDisk { vm, size },
        Step::WorkDisk { vm, size },
    ]
}

fn run() -> Vec<Step> {
    let vm = VM;
    let kind = VmmKind::QemuTcg;
    vec![
        Step::RunDirectory { vm },
        Step::Cgroup {
            vm,
            limits: GroupLimits::default(),
        },
        Step::VsockBackend { vm },
        Step::Booted { vm, kind },
        Step::Ready { vm },
    ]
}

fn operation(goal: Goal) -> Operation {
    match goal {
        Goal::Create => Operation::create(&disks()),
        Goal::Start => Operation::start(&run()),
        Goal::Stop => Operation::stop(&run()),
        Goal::Delete => Operation::delete(&disks(), &run()),
        Goal::Reset => Operation::reset(&disks()),
        Goal::Adjust => Operation::adjust(disks()),
    }
}

const GOALS: [Goal; 5] = [
    Goal::Create,
    Goal::Start,
    Goal::Stop,
    Goal::Delete,
    Goal::Reset,
];

fn fault() -> Fault {
    Fault::new(FaultKind::Other, "planted")
}

/// Every effect until rest, with the effects of these numbers failing.
fn effects(mut operation: Operation, fails: impl Fn(usize) -> bool) -> (Vec<Effect>, Outcome) {
    let mut effects = Vec::new();
    while let Some(effect) = operation.next() {
        assert_eq!(operation.next().as_ref(), Some(&effect), "next is pure");
        let saves = matches!(effect, Effect::Save(_));
        let result = match fails(effects.len()) && !saves {
            true => Err(fault()),
            false => Ok(()),
        };
        effects.push(effect);
        operation.report(result);
        assert!(effects.len() < 500, "it comes to rest: {effects:?}");
    }
    let outcome = operation.outcome().unwrap();
    (effects, outcome)
}

fn undone(effects: &[Effect]) -> Vec<StepKind> {
    let mut kinds: Vec<StepKind> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Absent(step) => Some(step.kind()),
            Effect::Save(_) | Effect::Ensure(_) => None,
        })
        .collect();
    kinds.dedup();
    kinds
}

fn reversed(steps: &[Step]) -> Vec<StepKind> {
    steps.iter().rev().map(Step::kind).collect()
}

fn saved(effects: &[Effect]) -> Vec<Mark> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Save(mark) => Some(*mark),
            Effect::Ensure(_) | Effect::Absent(_) => None,
        })
        .collect()
}

#[test]
fn undisturbed_operations_save_twice_and_reach_their_goal() {
    use Mark::{Gone, Phase as P};
    let cases = [
        (Goal::Create, [P(Phase::Creating), P(Phase::Stopped)]),
        (Goal::Start, [P(Phase::Starting), P(Phase::Running)]),
        (Goal::Stop, [P(Phase::Stopping), P(Phase::Stopped)]),
        (Goal::Delete, [P(Phase::Deleting), Gone]),
        (Goal::Reset, [P(Phase::Resetting), P(Phase::Stopped)]),
    ];
    for (goal, marks) in cases {
        let (effects, outcome) = effects(operation(goal), |_| false);
        assert_eq!(saved(&effects), marks, "{goal:?}");
        assert_eq!(outcome, Outcome::Done, "{goal:?}");
        assert_eq!(effects.first(), Some(&Effect::Save(marks[0])));
    }
}

#[test]
fn adjustment_saves_that_it_is_done_and_undoes_nothing() {
    let (done, outcome) = effects(operation(Goal::Adjust), |_| false);
    assert_eq!(saved(&done), [Mark::Adjusted]);
    assert_eq!(outcome, Outcome::Done);
    let (failed, outcome) = effects(operation(Goal::Adjust), |index| index == 1);
    assert_eq!(
        (failed.len(), saved(&failed), undone(&failed)),
        (2, vec![], vec![])
    );
    let at = Some(disks()[1].kind());
    assert_eq!(outcome, Outcome::Failed { fault: fault(), at });
    let mut cancelled = operation(Goal::Adjust);
    cancelled.cancel(fault());
    cancelled.report(Ok(()));
    assert_eq!(cancelled.next(), None);
}

#[test]
fn deletion_undoes_the_run_before_the_disks() {
    let (effects, _) = effects(operation(Goal::Delete), |_| false);
    let expected = [reversed(&run()), reversed(&disks())].concat();
    assert_eq!(undone(&effects), expected);
}

#[test]
fn absent_that_never_works_ends_stuck_and_says_in_what() {
    for goal in [Goal::Stop, Goal::Delete, Goal::Reset] {
        let operation = operation(goal);
        let stuck = operation.stuck();
        let (effects, outcome) = effects(operation, |_| true);
        assert_eq!(outcome, Outcome::Stuck(fault()), "{goal:?} {stuck:?}");
        assert_eq!(saved(&effects).last(), Some(&Mark::Phase(Phase::Stuck)));
        assert_eq!(undone(&effects).len(), 1, "lower objects are in use");
    }
}

#[test]
fn pauses_grow_between_attempts_and_vanish_with_success() {
    let mut operation = operation(Goal::Stop);
    operation.report(Ok(()));
    assert_eq!(operation.pause_ms(), 0);
    operation.report(Err(fault()));
    let first = operation.pause_ms();
    operation.report(Err(fault()));
    assert!(operation.pause_ms() > first && first > 0);
    operation.report(Ok(()));
    assert_eq!(operation.pause_ms(), 0);
}

#[test]
fn reset_that_cannot_make_the_root_is_stuck_in_resetting() {
    // Save, absent, then the failing ensure.
    let (_, outcome) = effects(operation(Goal::Reset), |index| index == 2);
    assert_eq!(outcome, Outcome::Stuck(fault()));
    assert_eq!(operation(Goal::Reset).stuck(), Stuck::Resetting);
}

proptest! {
    #[test]
    fn failed_way_up_undoes_the_whole_plan_in_exact_reverse(at in 0_usize..5, create: bool) {
        let (goal, plan) = if create { (Goal::Create, disks()) } else { (Goal::Start, run()) };
        let at = at % plan.len();
        let (effects, outcome) = effects(operation(goal), |index| index == at + 1);
        prop_assert_eq!(undone(&effects), reversed(&plan));
        let failed = Outcome::Failed { fault: fault(), at: Some(plan[at].kind()) };
        prop_assert_eq!(outcome, failed);
    }

    #[test]
    fn cancelled_way_up_undoes_the_whole_plan(after in 0_usize..6, create: bool) {
        let (goal, plan) = if create { (Goal::Create, disks()) } else { (Goal::Start, run()) };
        let mut operation = operation(goal);
        for _ in 0..after.min(plan.len()) {
            operation.report(Ok(()));
        }
        operation.cancel(fault());
        let (effects, outcome) = effects(operation, |_| false);
        prop_assert_eq!(undone(&effects), reversed(&plan));
        let cancelled = matches!(outcome, Outcome::Failed { .. });
        prop_assert!(cancelled);
    }

    #[test]
    fn every_pair_of_state_and_result_is_answered(
        goal in prop::sample::select(vec![Goal::Create, Goal::Start, Goal::Stop, Goal::Delete, Goal::Reset, Goal::Adjust]),
        script in prop::collection::vec((0_u8..3, any::<bool>()), 0..80),
    ) {
        let mut operation = operation(goal);
        let mut at_rest = None;
        for (what, works) in script {
            match what {
                0 => operation.cancel(fault()),
                _ => operation.report(if works { Ok(()) } else { Err(fault()) }),
            }
            let _total = (operation.next(), operation.pause_ms(), operation.is_going_up());
            prop_assert_eq!(operation.next().is_none(), operation.outcome().is_some());
            prop_assert!(at_rest.is_none() || at_rest == operation.outcome(), "rest is final");
            at_rest = operation.outcome();
        }
    }

    #[test]
    fn intent_is_saved_before_any_effect_and_success_after_all(
        goal in prop::sample::select(&GOALS[..]),
        fails in prop::collection::btree_set(0_usize..40, 0..6),
    ) {
        let (effects, outcome) = effects(operation(goal), |index| fails.contains(&index));
        prop_assert!(matches!(effects.first(), Some(Effect::Save(_))));
        prop_assert!(matches!(effects.last(), Some(Effect::Save(_))));
        if outcome == Outcome::Done && goal == Goal::Start {
            let made = effects.iter().filter(|e| matches!(e, Effect::Ensure(_))).count();
            prop_assert_eq!(made, run().len());
        }
    }
}
