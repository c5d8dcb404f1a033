//! `banger doctor --fix`: what of ours nobody knows of is removed, what running VMs lack
//! is put back.
//!
//! ```text
//!  client -> Call::survey (off the loop) -> Input::Surveyed -> Call::judge (on the loop)
//!         -> Call::carry_out (off the loop) -> the client's answer
//! ```
//!
//! The look comes first and the rows after it: a VM is in the rows before its first
//! object exists, so an object that was seen and has no VM in the rows *now* has none at
//! all. What belongs to a VM that is known is changed on the loop itself, while the VM is
//! at rest: so no step of it can come in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::hands::Hands;
use super::survey::{self, Found, Look, Whose};
use crate::host::Host;
use crate::image::store;
use crate::model::ids::{ContentId, VmId};
use crate::model::net::Subnet;
use crate::model::vm::Phase;
use crate::plan::make;
use crate::plan::mind::Mind;
use crate::plan::record::{Stuck, VmRecord};
use crate::plan::step::{Fault, Outside, Presence, Step, StepKind};
use crate::proto::repair::{Outcome, Repair, Repaired, StuckVm};

/// What was seen of this machine.
#[derive(Debug)]
pub struct Survey {
    found: Vec<Found>,
    rules: Vec<(VmId, Ipv4Addr)>,
    faults: Vec<Fault>,
}

/// What is to be done off the loop, and what has been done or found on it.
#[derive(Debug)]
pub struct Judgement {
    orphans: BTreeMap<VmId, Vec<Found>>,
    rules: Vec<(VmId, Ipv4Addr)>,
    /// Contents that rows name, images and kernels; `None`: not known now.
    named: Option<Named>,
    subnet: Subnet,
    repaired: Repaired,
}

/// Contents of images, and of kernels.
type Named = (BTreeSet<ContentId>, BTreeSet<ContentId>);

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No: what would be is said.
    Tell,
    /// Yes.
    Do,
}

/// Looks at this machine; takes as long as reading /proc does.
pub fn survey(host: &Hands) -> Survey {
    let real = host.real();
    let (found, mut faults) = survey::survey(&look(host));
    let rules = match host.makes_taps_itself() {
        true => real.rules_without_tap().unwrap_or_else(|fault| {
            faults.push(fault);
            Vec::new()
        }),
        false => Vec::new(),
    };
    Survey {
        found,
        rules,
        faults,
    }
}

fn look(host: &Hands) -> Look<'_> {
    let real = host.real();
    Look {
        layout: real.layout(),
        bridge: &real.settings().bridge,
        groups: real.vmms().groups(),
    }
}

/// Compares with the rows, on the loop, and mends what belongs to known VMs at rest.
pub fn judge(survey: Survey, mind: &Mind, host: &Hands, mode: Mode) -> Judgement {
    let mut repaired = Repaired::default();
    let faults = survey.faults.iter();
    repaired
        .repairs
        .extend(faults.map(|fault| unseen(fault.what.clone())));
    let mut orphans: BTreeMap<VmId, Vec<Found>> = BTreeMap::new();
    for found in survey.found {
        match mind.vm(found.vm) {
            None => orphans.entry(found.vm).or_default().push(found),
            Some(record) if mind.is_at_rest(record.id) && !names(record, &found) => {
                let vm = record.id;
                let told = &mut repaired.repairs;
                remove_vm(vm, vec![found], mind.subnet(), host, mode, told);
            }
            Some(_) => {}
        }
    }
    let mut rules = survey.rules;
    rules.retain(|(vm, address)| match mind.vm(*vm) {
        None => true,
        // One that runs has its elements still; its tap is what is said to be gone.
        Some(record) if mind.is_at_rest(*vm) && record.phase == Phase::Stopped => {
            let told = remove_rules(*vm, *address, mind.subnet(), host, mode);
            repaired.repairs.push(told);
            false
        }
        Some(_) => false,
    });
    for record in mind.vms().filter(|record| mind.is_at_rest(record.id)) {
        mend(record, host, mode, &mut repaired.repairs);
        repaired.stuck.extend(stuck(record));
    }
    Judgement {
        orphans,
        rules,
        named: mind.settled_contents(),
        subnet: mind.subnet(),
        repaired,
    }
}

/// Something could not be looked at.
fn unseen(why: String) -> Repair {
    Repair {
        outcome: Outcome::Failed,
        what: "look at this machine".to_owned(),
        why,
    }
}

/// Whether a VM at rest has such an object by its plans.
fn names(record: &VmRecord, found: &Found) -> bool {
    let mut steps = record.disk_plan.iter().chain(&record.run_plan);
    record.phase != Phase::Stopped || steps.any(|step| step.kind() == found.kind)
}

fn stuck(record: &VmRecord) -> Option<StuckVm> {
    let at = match record.stuck? {
        Stuck::Stopping => "stopping",
        Stuck::Deleting => "deleting",
        Stuck::Resetting => "resetting",
        Stuck::Unreadable => "unreadable",
    };
    (record.phase == Phase::Stuck).then(|| StuckVm {
        name: record.spec.name.to_string(),
        at: at.to_owned(),
        reason: record.reason.clone().unwrap_or_default(),
    })
}

/// Puts back what others took from a VM at rest: modes of its folders, and of a running
/// one its tap's place in the bridge and its rules, with bridge, tables and forwarding.
fn mend(record: &VmRecord, host: &Hands, mode: Mode, told: &mut Vec<Repair>) {
    let running = record.phase == Phase::Running;
    let run = record.run_plan.iter().filter(|_| running);
    let disks = record
        .disk_plan
        .iter()
        .filter(|_| record.phase != Phase::Stuck);
    for step in disks.chain(run).filter(|step| is_mendable(step)) {
        let what = format!("{} of vm {}", step.kind().word(), record.spec.name);
        let (outcome, why) = match host.probe(step) {
            Ok(Presence::Present) => continue,
            Ok(Presence::Absent) if step.kind() != StepKind::NetRules => {
                (Outcome::Left, gone(record, running))
            }
            Ok(_) if mode == Mode::Tell => (Outcome::WouldMend, "not as it must be".to_owned()),
            Ok(_) => match host.ensure(step) {
                Ok(()) => (Outcome::Mended, "was not as it must be".to_owned()),
                Err(fault) => (Outcome::Failed, fault.what),
            },
            Err(fault) => (Outcome::Failed, fault.what),
        };
        told.push(Repair { outcome, what, why });
    }
}

fn is_mendable(step: &Step) -> bool {
    matches!(
        step.kind(),
        StepKind::VmDirectory | StepKind::RunDirectory | StepKind::Tap | StepKind::NetRules
    )
}

fn gone(record: &VmRecord, running: bool) -> String {
    let name = &record.spec.name;
    match running {
        true => format!("it is gone; `banger vm restart {name}` makes it anew"),
        false => format!("it is gone with its disks; `banger vm delete {name}` is what is left"),
    }
}

/// Removes what nobody knows of; runs on the blocking pool.
pub fn carry_out(judgement: Judgement, host: &Arc<Hands>, mode: Mode) -> Repaired {
    let Judgement {
        orphans,
        rules,
        named,
        subnet,
        mut repaired,
    } = judgement;
    let told = &mut repaired.repairs;
    for (vm, found) in orphans {
        remove_vm(vm, found, subnet, host, mode, told);
    }
    for (vm, address) in rules {
        told.push(remove_rules(vm, address, subnet, host, mode));
    }
    if let Some(named) = named {
        repaired.contents = unnamed(host, &named, told);
    }
    repaired
}

fn remove_rules(vm: VmId, address: Ipv4Addr, subnet: Subnet, host: &Hands, mode: Mode) -> Repair {
    let step = Step::NetRules {
        vm,
        address,
        subnet,
        outside: Outside::Closed,
        publish: Vec::new(),
    };
    let what = format!("firewall elements of tap {}", vm.tap());
    removed(what, "its tap does not exist", mode, || host.absent(&step))
}

/// In the order of a way down: what uses a thing goes before it.
fn remove_vm(
    vm: VmId,
    mut found: Vec<Found>,
    subnet: Subnet,
    host: &Hands,
    mode: Mode,
    told: &mut Vec<Repair>,
) {
    found.sort_by_key(|one| std::cmp::Reverse(one.kind));
    let steps = make::by_identity(vm, subnet);
    let rules = steps.iter().find(|step| step.kind() == StepKind::NetRules);
    for one in found {
        if let Whose::Ask(why) = one.whose {
            told.push(Repair {
                outcome: Outcome::Left,
                what: one.what,
                why,
            });
            continue;
        }
        let step = steps.iter().find(|step| step.kind() == one.kind);
        let act = || match (one.kind, step) {
            (StepKind::Vmm, _) => survey::end_processes(&look(host), vm),
            // Its firewall elements are kept as long as it exists.
            (StepKind::Tap, Some(tap)) => rules
                .map_or(Ok(()), |rules| host.absent(rules))
                .and_then(|()| host.absent(tap)),
            (_, Some(step)) => host.absent(step),
            (_, None) => Ok(()),
        };
        told.push(removed(one.what, "no running VM has it", mode, act));
    }
}

fn removed(what: String, why: &str, mode: Mode, act: impl FnOnce() -> Result<(), Fault>) -> Repair {
    let outcome = match mode {
        Mode::Tell => Ok(Outcome::WouldRemove),
        Mode::Do => act().map(|()| Outcome::Removed),
    };
    match outcome {
        Ok(outcome) => Repair {
            outcome,
            what,
            why: why.to_owned(),
        },
        Err(fault) => Repair {
            outcome: Outcome::Failed,
            what,
            why: fault.what,
        },
    }
}

/// Contents of images and kernels that no row names, and folders of dead builds; the
/// mind's own sweep removes them, which never meets a pull.
fn unnamed(host: &Hands, (images, kernels): &Named, told: &mut Vec<Repair>) -> Vec<String> {
    let layout = host.real().layout();
    let mut all = Vec::new();
    for (noun, folder, named) in [
        ("image", layout.images(), images),
        ("kernel", layout.kernels(), kernels),
    ] {
        let there = store::list(&folder).unwrap_or_else(|failure| {
            told.push(unseen(failure.to_string()));
            Vec::new()
        });
        let unnamed = there.into_iter().filter(|content| !named.contains(content));
        all.extend(unnamed.map(|content| format!("content {content} of an {noun}")));
        let dead = store::left_over(&folder, store::ASIDE);
        all.extend(
            dead.into_iter()
                .map(|path| format!("folder {}", path.display())),
        );
    }
    all
}
