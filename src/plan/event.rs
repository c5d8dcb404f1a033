//! The two closed enums of the daemon's loop: what the mind hears, what it wants done.
//!
//! Actions are performed in the order given; `Save` inline and durably, so that what
//! follows it in the list happens after it is on disk. A failed save ends the process.

use std::collections::BTreeSet;

use crate::failure::Failure;
use crate::model::ids::{ContentId, VmId};
use crate::model::image::{Image, Kernel};

use super::facts::Installed;
use super::record::{BootReport, RowChange};
use super::request::{ClientId, OpId, Progress, PullKey, PullProgress, Reply, Request};
use super::retry::Verb;
use super::step::{Fault, Step};

/// One step under way; given back when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepToken(pub u64);

/// One run of a VM, so that news of an earlier one is not taken for this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunToken(pub u64);

/// A timer; fires once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub u64);

/// A job that works on images or kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What the mind hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The store is open; the first event.
    Opened,
    /// Answer to [`Action::FindVmms`]. Clients are heard only after it.
    Recovered {
        /// Those of the VMs asked about that have a live VMM.
        alive: BTreeSet<VmId>,
        /// Those of the living that have a live vsock back end.
        linked: BTreeSet<VmId>,
        /// Those of the VMs that go with a client whose client lives: it was answered by
        /// an earlier daemon and holds on.
        held: BTreeSet<VmId>,
    },
    /// What is installed, where something was missing; before a request that may need it.
    Installed(Installed),
    /// A client asks.
    Request {
        /// Who.
        client: ClientId,
        /// Fresh.
        op: OpId,
        /// What.
        request: Request,
    },
    /// A client's connection ended, by its own or by our doing.
    ClientGone {
        /// Whose.
        client: ClientId,
    },
    /// The client of a VM for which [`Action::WatchHold`] was asked has ended.
    HoldReleased {
        /// Of which VM.
        vm: VmId,
    },
    /// A step ended; exactly one for each [`Action::RunStep`].
    StepDone {
        /// Of which VM.
        vm: VmId,
        /// Which.
        token: StepToken,
        /// How.
        result: Result<(), Fault>,
    },
    /// The agent has called; precedes the `StepDone` of the step `Ready`.
    GuestReady {
        /// Of which VM.
        vm: VmId,
        /// What it said.
        boot: BootReport,
    },
    /// Answer to [`Action::PowerOff`]: whether the agent said that it does so.
    PowerOffSent {
        /// Of which VM.
        vm: VmId,
        /// Which run.
        run: RunToken,
        /// `Err`: it could not be reached, there is nothing to wait for.
        result: Result<(), Fault>,
    },
    /// The VMM of a watched run ended.
    VmmExited {
        /// Of which VM.
        vm: VmId,
        /// Which run.
        run: RunToken,
        /// For people: `exited with status 1`.
        reason: String,
    },
    /// The vsock back end of a watched run ended.
    BackendExited {
        /// Of which VM.
        vm: VmId,
        /// Which run.
        run: RunToken,
        /// For people, where it is known: `killed by signal 9`.
        how: Option<String>,
    },
    /// A timer fired.
    TimerFired {
        /// Which.
        timer: TimerId,
    },
    /// A pull goes on.
    JobProgress {
        /// Which.
        job: JobId,
        /// How far.
        progress: PullProgress,
    },
    /// A job ended; exactly one for each [`Action::StartJob`].
    JobDone {
        /// Which.
        job: JobId,
        /// How.
        result: Result<JobResult, Failure>,
    },
    /// A signal asks the daemon to end.
    Shutdown,
}

/// What a job brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobResult {
    /// This image is in its place.
    Image(Image),
    /// This kernel is in its place.
    Kernel(Kernel),
    /// How the content that was looked at is damaged; `None` when it is whole.
    Checked(Option<String>),
    /// What was to go is gone.
    Removed,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobWork {
    /// Look whether what the store has of it is whole. Quick; changes nothing.
    Check {
        /// What.
        key: PullKey,
        /// Its content.
        content: ContentId,
    },
    /// Fetch or build it, written aside and renamed into place.
    Pull(PullKey),
    /// Remove the content of every image and kernel but these: runs while no pull does.
    Sweep {
        /// Images that a row or a VM names.
        images: BTreeSet<ContentId>,
        /// Kernels that a row or a VM names.
        kernels: BTreeSet<ContentId>,
    },
}

/// What the mind wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make these changes durable in one transaction, before anything that follows.
    Save(Vec<RowChange>),
    /// Kill what helper programs of an earlier daemon still run, and wait until none
    /// does, before anything that follows.
    KillHelpers,
    /// Find out what an earlier daemon left alive; answer with `Recovered`. Nothing else
    /// is under way until then.
    FindVmms {
        /// Which of these have a live VMM and which a live vsock back end; the steps named
        /// are ensured for those with a VMM.
        running: Vec<(VmId, Vec<Step>)>,
        /// Which of these have a client that holds on to them.
        owned: Vec<VmId>,
    },
    /// Say when the client that holds this VM ends, with `HoldReleased`.
    WatchHold {
        /// Which VM.
        vm: VmId,
    },
    /// Do this step off the loop; answer with `StepDone`. The wait for a guest ends at the
    /// deadline; every other step bounds its own waits below it, and one that is late all
    /// the same is logged and waited for.
    RunStep {
        /// Of which VM.
        vm: VmId,
        /// To give back.
        token: StepToken,
        /// Which verb.
        verb: Verb,
        /// Which object.
        step: Step,
        /// Milliseconds from now.
        deadline_ms: u64,
    },
    /// Raise the flag of a running step: it should end soon. Its `StepDone` is awaited.
    CancelStep {
        /// Of which VM.
        vm: VmId,
        /// Which.
        token: StepToken,
    },
    /// Listen for the calls of a guest that is about to boot in its run directory, which
    /// exists; replaces an earlier listener.
    AcceptGuest {
        /// Which VM.
        vm: VmId,
    },
    /// Close the listener and connections of a guest.
    ForgetGuest {
        /// Which VM.
        vm: VmId,
    },
    /// Say when the VMM of this run ends; answer with `VmmExited`, at once if it has.
    Watch {
        /// Of which VM.
        vm: VmId,
        /// Which run.
        run: RunToken,
    },
    /// Say when the vsock back end of this run ends; answer with `BackendExited`, at once
    /// if it has.
    WatchBackend {
        /// Of which VM.
        vm: VmId,
        /// Which run.
        run: RunToken,
    },
    /// Ask the agent to write back and power off; answer with `PowerOffSent`.
    PowerOff {
        /// Of which VM.
        vm: VmId,
        /// Which run.
        run: RunToken,
    },
    /// Answer with `TimerFired`.
    ArmTimer {
        /// To give back.
        timer: TimerId,
        /// Milliseconds from now.
        after_ms: u64,
    },
    /// Do this off the loop; answer with `JobDone`.
    StartJob {
        /// To give back.
        job: JobId,
        /// What.
        work: JobWork,
    },
    /// Raise the flag of a job: it should end soon, leaving nothing half. Its `JobDone`
    /// is awaited.
    CancelJob {
        /// Which.
        job: JobId,
    },
    /// The one final answer to a request.
    Reply {
        /// To whom.
        client: ClientId,
        /// To which request.
        op: OpId,
        /// What.
        reply: Reply,
    },
    /// News of a request under way.
    Progress {
        /// To whom.
        client: ClientId,
        /// Of which request.
        op: OpId,
        /// What.
        progress: Progress,
    },
    /// A line for the log.
    Log {
        /// About which VM.
        vm: Option<VmId>,
        /// About which request.
        op: Option<OpId>,
        /// What.
        text: String,
    },
    /// End the process with status 0; nothing follows.
    Exit,
}
