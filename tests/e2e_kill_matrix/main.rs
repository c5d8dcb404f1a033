//! The kill matrix: every boundary between steps of every operation, crossed with every
//! fault. After each, a daemon is started by the next command, and the host must be as
//! before, or the VM must answer.
//!
//! ```text
//!  play      one cell: prepare, interrupt, do the fault, let it go on, judge, delete
//!  operation what is interrupted: its command, what it needs before
//!  fault     what is done to it
//!  adjusted  whether a VM that runs has the sizes of its row
//!  lab       a daemon with fail-points on a small disk of its own
//!  table     the result
//! ```
//!
//! The boundaries are those that the operation itself reaches: they are traced first, so
//! a new step is in the matrix by existing. `BANGER_KILL_MATRIX=all` plays every cell,
//! otherwise a few of them, and with `BANGER_KILL_MATRIX_FAULT` only those whose fault has
//! that in its name, or with `BANGER_KILL_MATRIX_PLACE` those at that boundary;
//! `BANGER_KILL_MATRIX_OUT` is a folder for the tables.
//! `scripts/kill-matrix.sh` sets all that up.

#![allow(clippy::print_stdout, reason = "progress of a run of many minutes")]

mod adjusted;
mod fault;
mod lab;
mod operation;
mod play;
#[path = "../support/mod.rs"]
mod support;
mod table;

use operation::Operation;
use play::matrix;

#[test]
fn what_the_cells_boot_is_made_first() {
    assert!(support::seed::prepare(&[operation::IMAGE]).is_dir());
}

#[test]
fn what_is_planted_on_the_host_is_seen() {
    play::planted();
}

#[test]
fn create_that_is_interrupted_leaves_nothing() {
    matrix(Operation::Create);
}

#[test]
fn start_that_is_interrupted_leaves_nothing_or_a_guest_that_answers() {
    matrix(Operation::Start);
}

#[test]
fn running_vm_that_loses_something_is_stopped_or_answers() {
    matrix(Operation::Run);
}

#[test]
fn adjust_that_is_interrupted_leaves_old_sizes_or_new_ones() {
    matrix(Operation::Adjust);
}

#[test]
fn stop_that_is_interrupted_is_finished() {
    matrix(Operation::Stop);
}

#[test]
fn reset_that_is_interrupted_is_finished() {
    matrix(Operation::Reset);
}

#[test]
fn delete_that_is_interrupted_is_finished() {
    matrix(Operation::Delete);
}

#[test]
fn removal_of_a_running_vm_that_is_interrupted_is_finished() {
    matrix(Operation::Remove);
}

#[test]
fn pull_that_is_interrupted_leaves_nothing() {
    matrix(Operation::Pull);
}

#[test]
fn build_that_is_interrupted_leaves_nothing() {
    matrix(Operation::Build);
}
