//! Planted bugs: each must be found, or the simulation proves nothing.

use crate::model::net::NetRequest;
use crate::plan::facts::Fitness;
use crate::plan::planted::{Bug, plant};
use crate::plan::record::Removal;
use crate::plan::request::{Force, Refresh, Request};
use crate::plan::step::StepKind;

use super::client::{breathe, create, delete, grow, start, stop};
use super::explore::Search;
use super::moves::Faults;
use super::run::{Run, ShellBug};

/// What the exhaustive search says of a story with a bug in it.
#[track_caller]
fn finds(bug: Option<Bug>, shell: ShellBug, scripts: Vec<Vec<Request>>, said: &str) {
    let mut run = Run::stocked(scripts);
    Search::of(run.clone(), 1, Faults::ALL).assert_holds();
    run.bug = shell;
    plant(bug);
    let search = Search::of(run, 2, Faults::ALL);
    plant(None);
    let (broken, _) = search.broken.expect("the bug is found");
    assert!(broken.contains(said), "{broken}");
}

/// The same on a host whose guests run under QEMU.
#[track_caller]
fn finds_with_qemu(bug: Bug, scripts: Vec<Vec<Request>>, said: &str) {
    let mut run = Run::stocked(scripts);
    run.facts.kvm = Fitness::Unfit("none".to_owned());
    Search::of(run.clone(), 1, Faults::ALL).assert_holds();
    plant(Some(bug));
    let search = Search::of(run, 1, Faults::ALL);
    plant(None);
    let (broken, _) = search.broken.expect("the bug is found");
    assert!(broken.contains(said), "{broken}");
}

#[test]
fn busy_snapshot_that_counts_as_gone_is_found() {
    let mut run = Run::stocked(vec![vec![dev(), delete("dev", Force::Kill)]]);
    run.facts.device_mapper = Fitness::Fit;
    // Not by a VMM that is busy.
    let faults = Faults {
        lingering: false,
        ..Faults::ALL
    };
    Search::of(run.clone(), 1, faults).assert_holds();
    run.bug = ShellBug::BusyIgnored;
    let (broken, _) = Search::of(run, 1, faults).broken.expect("it is found");
    assert!(broken.contains("orphan"), "{broken}");
}

fn dev() -> Request {
    create("dev", NetRequest::Auto, Removal::Keep)
}

fn created() -> Vec<Vec<Request>> {
    vec![vec![dev()]]
}

#[test]
fn intent_saved_late_is_found() {
    finds(None, ShellBug::IntentSavedLate, created(), "orphan");
}

#[test]
fn undo_in_forward_order_is_found() {
    let scripts = vec![vec![dev(), stop("dev")]];
    finds(Some(Bug::UndoForward), ShellBug::None, scripts, "");
}

#[test]
fn failed_step_skipped_is_found() {
    finds(Some(Bug::FailedStepSkipped), ShellBug::None, created(), "");
}

#[test]
fn recovery_that_forgets_a_row_is_found() {
    finds(
        Some(Bug::RecoveryForgetsRow),
        ShellBug::None,
        created(),
        "phase starting",
    );
}

#[test]
fn absent_that_ignores_busy_is_found() {
    let scripts = vec![vec![dev(), delete("dev", Force::Kill)]];
    finds(None, ShellBug::BusyIgnored, scripts, "");
}

#[test]
fn reply_before_save_is_found() {
    finds(None, ShellBug::ReplyBeforeSave, created(), "told");
}

#[test]
fn lease_released_early_is_found() {
    let other = create("other", NetRequest::Auto, Removal::Keep);
    let scripts = vec![vec![dev(), delete("dev", Force::Kill)], vec![other]];
    finds(
        Some(Bug::LeaseReleasedEarly),
        ShellBug::None,
        scripts,
        "is held by",
    );
}

#[test]
fn helpers_not_killed_before_recovery_are_found() {
    finds(
        Some(Bug::HelpersNotKilled),
        ShellBug::None,
        created(),
        "orphan",
    );
}

#[test]
fn back_end_that_nobody_watches_is_found() {
    let said = "is running without its vsock-backend";
    finds_with_qemu(Bug::BackendUnwatched, created(), said);
}

/// What the search says of the stocked host's story with a wrong turn of shell or store.
#[track_caller]
fn shell_finds(shell: ShellBug, said: &str) {
    finds(None, shell, created(), said);
}

#[test]
fn save_that_fails_unnoticed_is_found() {
    shell_finds(ShellBug::FailedSaveIgnored, "");
}

#[test]
fn torn_save_that_counts_as_nothing_is_found() {
    shell_finds(ShellBug::TornSaveIsNothing, "orphan");
}

#[test]
fn order_that_counts_as_its_effect_is_found() {
    let scripts = vec![vec![dev(), delete("dev", Force::Kill)]];
    finds(None, ShellBug::OrderTakenForEffect, scripts, "");
}

#[test]
fn late_step_that_is_given_up_is_found() {
    shell_finds(ShellBug::LateStepGivenUp, "orphan");
}

#[test]
fn stuck_row_that_a_restart_drops_is_found() {
    let mut run = Run::stocked(vec![vec![dev(), delete("dev", Force::Kill)]]);
    run.stubborn = Some(StepKind::WorkDisk);
    Search::of(run.clone(), 1, Faults::ALL).assert_holds();
    plant(Some(Bug::StuckRowDropped));
    let search = Search::of(run, 1, Faults::ALL);
    plant(None);
    let (broken, _) = search.broken.expect("the bug is found");
    assert!(broken.contains("orphan"), "{broken}");
}

#[test]
fn sizes_that_the_next_daemon_forgets_are_found() {
    let run = Run::stocked(vec![vec![dev(), grow("dev"), breathe("dev")]]);
    let faults = Faults {
        crashes: true,
        ..Faults::NONE
    };
    Search::of(run.clone(), 2, faults).assert_holds();
    plant(Some(Bug::AdjustmentForgotten));
    let search = Search::of(run, 1, faults);
    plant(None);
    let (broken, _) = search.broken.expect("the bug is found");
    assert!(broken.contains("never gets the sizes"), "{broken}");
}

#[test]
fn sweep_beside_a_pull_is_found() {
    let pull = |name: &str| Request::ImagePull {
        name: name.to_owned(),
        refresh: Refresh::Again,
    };
    let delete = Request::ImageDelete {
        name: "small".to_owned(),
    };
    let scripts = vec![vec![pull("large")], vec![delete]];
    finds(
        Some(Bug::SweepBesidePull),
        ShellBug::None,
        scripts,
        "a name means it",
    );
}

#[test]
fn builders_not_killed_before_recovery_are_found() {
    let run = Run::new(vec![vec![dev()]]);
    Search::of(run.clone(), 1, Faults::ALL).assert_holds();
    plant(Some(Bug::HelpersNotKilled));
    let search = Search::of(run, 1, Faults::ALL);
    plant(None);
    let (broken, _) = search.broken.expect("the bug is found");
    assert!(broken.contains("half-built"), "{broken}");
}

/// A VM that goes with its client, under deaths of the daemon and of the client.
#[track_caller]
fn finds_of_a_hold(bug: Bug, said: &str) {
    let dev = create("dev", NetRequest::Auto, Removal::WithClient);
    // Somebody else, so that there is a time after the creation.
    let run = Run::stocked(vec![vec![dev], vec![start("dev")]]);
    let faults = Faults {
        crashes: true,
        leaving: true,
        ..Faults::NONE
    };
    Search::of(run.clone(), 3, faults).assert_holds();
    plant(Some(bug));
    let search = Search::of(run, 2, faults);
    plant(None);
    let (broken, _) = search.broken.expect("the bug is found");
    assert!(broken.contains(said), "{broken}");
}

#[test]
fn living_client_that_recovery_overlooks_is_found() {
    finds_of_a_hold(Bug::HoldOverlooked, "under its living client");
}

#[test]
fn client_of_an_earlier_daemon_that_nobody_watches_is_found() {
    finds_of_a_hold(Bug::HoldUnwatched, "outlives its client");
}
