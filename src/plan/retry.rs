//! Deadlines of steps, and when `absent` is tried again.

use crate::model::vm::VmmKind;

use super::step::{Step, StepKind};

/// Which of a step's two verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Make it exist as described.
    Ensure,
    /// Make it not exist.
    Absent,
}

/// How long a guest that was told to power off may take, milliseconds.
pub const POWER_OFF_MS: u64 = 10_000;
/// How long running steps may go on after the daemon was told to end, milliseconds.
pub const SHUTDOWN_MS: u64 = 10_000;
/// Most steps under way at once: the blocking pool would allow 500 threads.
pub const STEPS_AT_ONCE: usize = 8;

/// Pauses before `absent` is tried again: about 13 s in all. A device that is busy
/// because its last user is just exiting is free within the first few.
const ABSENT_DELAYS_MS: [u64; 9] = [20, 50, 100, 200, 400, 800, 1600, 3200, 6400];

/// The pause after so many failures in a row; 0 before the first, `None` past the limit.
pub fn absent_delay_ms(failures: u32) -> Option<u64> {
    match failures.checked_sub(1) {
        None => Some(0),
        Some(index) => ABSENT_DELAYS_MS.get(index as usize).copied(),
    }
}

/// How long one attempt at a step may take, milliseconds.
///
/// A guest that is translated instruction by instruction boots some ten times slower.
pub fn deadline_ms(verb: Verb, step: &Step, vmm: Option<VmmKind>) -> u64 {
    match (verb, step.kind()) {
        (Verb::Ensure, StepKind::Ready) => ready_deadline_ms(vmm),
        (
            Verb::Ensure,
            StepKind::UpperDisk | StepKind::RootDisk | StepKind::CowFile | StepKind::WorkDisk,
        ) => 60_000,
        (Verb::Ensure, StepKind::Vmm) => vmm_deadline_ms(vmm),
        (Verb::Ensure, StepKind::VsockBackend | StepKind::Configured) => 20_000,
        // Two calls of the agent and one of the VMM.
        (Verb::Ensure, StepKind::Adjusted) => 40_000,
        (
            Verb::Ensure,
            StepKind::VmDirectory
            | StepKind::RunDirectory
            | StepKind::BaseLoop
            | StepKind::CowLoop
            | StepKind::DmSnapshot
            | StepKind::Tap
            | StepKind::NetRules
            | StepKind::NetLimit
            | StepKind::Cgroup
            | StepKind::Booted,
        ) => 10_000,
        (Verb::Absent, _) => 15_000,
    }
}

/// A translated machine's kernel may have to boot first, for a template; and once more, in
/// vain, before it boots without one.
fn vmm_deadline_ms(vmm: Option<VmmKind>) -> u64 {
    match vmm {
        Some(VmmKind::Firecracker | VmmKind::QemuKvm) => 20_000,
        Some(VmmKind::QemuTcg) | None => 150_000,
    }
}

fn ready_deadline_ms(vmm: Option<VmmKind>) -> u64 {
    match vmm {
        Some(VmmKind::Firecracker | VmmKind::QemuKvm) => 30_000,
        Some(VmmKind::QemuTcg) | None => 120_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_tried_at_once_then_slower_then_never() {
        let delays: Vec<_> = (0..11).map(absent_delay_ms).collect();
        assert_eq!(delays[0], Some(0));
        assert_eq!(delays[1], Some(20));
        assert_eq!(delays[9], Some(6400));
        assert_eq!(delays[10], None);
    }
}
