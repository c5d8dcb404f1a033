//! `banger vm show`.

use argh::{ArgsInfo, FromArgs};

use super::context::Context;
use super::list::phase_paint;
use super::render::{self, Paint, Stream, paint, printable};
use super::words::{ago, lasting, size, stuck_advice};
use crate::failure::Failure;
use crate::proto::limits::Limits;
use crate::proto::reply::VmView;

/// Show everything about a sandbox.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "show",
    example = "banger vm show dev",
    example = "banger vm show dev --json | jq -r .address"
)]
pub struct VmShow {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// name or id of the sandbox, or the beginning of its id
    #[argh(positional)]
    pub name: String,
}

impl VmShow {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let vm = context.vm(&self.name)?;
        if self.json {
            render::json(&vm);
        } else {
            render::out(&text(&vm, context.now()));
        }
        Ok(0)
    }
}

fn text(vm: &VmView, now: u64) -> String {
    let mut text = String::new();
    for (name, value) in rows(vm, now) {
        let label = paint(Stream::Out, Paint::Dim, &format!("{name:<12}"));
        let value = printable(&value);
        let value = match name {
            "state" => paint(Stream::Out, phase_paint(&vm.phase), &value),
            _ => value,
        };
        text.push_str(&format!("{label} {value}\n"));
    }
    text
}

fn because(value: &str, reason: Option<&String>) -> String {
    match reason {
        Some(reason) => format!("{value} ({reason})"),
        None => value.to_owned(),
    }
}

/// A root that is lost says so where everybody looks first.
fn state(vm: &VmView) -> String {
    let store = vm.root_store.as_ref();
    let lost = store.filter(|store| store.state != "active");
    let lost = lost.and_then(|store| store.warning.as_ref());
    because(&vm.phase, vm.reason.as_ref().or(lost))
}

/// What it was made with, what it is to keep and keeps of it, what the host gives for it.
fn memory(vm: &VmView) -> String {
    let told = [
        ("target", vm.balloon.memory_target),
        ("now", vm.balloon.memory_actual),
        ("on the host", vm.balloon.memory_resident),
    ];
    let told = told
        .into_iter()
        .filter_map(|(word, bytes)| Some(format!("{word} {}", size(bytes?))));
    let told: Vec<String> = told.collect();
    because(
        &size(vm.memory),
        (!told.is_empty()).then(|| told.join(", ")).as_ref(),
    )
}

fn root(vm: &VmView) -> String {
    let text = format!("{} ({})", size(vm.root_disk), vm.root_mode);
    match &vm.root_store {
        None => text,
        Some(store) => format!(
            "{text}, changes take {} of {}",
            size(store.used),
            size(store.total)
        ),
    }
}

fn disk_limit(limits: &Limits) -> Option<String> {
    let iops = limits.disk_iops.map(|iops| format!("{iops} requests/s"));
    let rate = limits
        .disk_bandwidth
        .map(|rate| format!("{}/s", size(rate)));
    let both: Vec<String> = iops.into_iter().chain(rate).collect();
    (!both.is_empty()).then(|| format!("{} for each disk", both.join(", ")))
}

fn limits(vm: &VmView) -> impl Iterator<Item = (&'static str, String)> {
    let each_way = |rate| format!("{}/s each way", size(rate));
    let weight = |weight: u16| because(&weight.to_string(), vm.limits_note.as_ref());
    let all = [
        ("disk limit", disk_limit(&vm.limits)),
        ("net limit", vm.limits.net_bandwidth.map(each_way)),
        ("cpu weight", vm.limits.cpu_weight.map(weight)),
        ("limits", vm.limits_missing.clone()),
    ];
    all.into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
}

fn rows(vm: &VmView, now: u64) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("name", vm.name.clone()),
        ("id", vm.id.clone()),
        ("state", state(vm)),
        ("image", format!("{} ({})", vm.image, vm.image_content)),
        ("kernel", vm.kernel.clone()),
        ("vcpu", vm.vcpu.to_string()),
        ("memory", memory(vm)),
        ("root disk", root(vm)),
        ("work disk", size(vm.work_disk)),
        ("on the host", size(vm.allocated)),
        ("network", because(&vm.net, vm.net_reason.as_ref())),
    ];
    let mut optional = |name, value: Option<String>| {
        rows.extend(value.map(|value| (name, value)));
    };
    optional("address", vm.address.clone());
    optional(
        "ports",
        (!vm.publish.is_empty()).then(|| vm.publish.join(", ")),
    );
    let vmm = vm
        .vmm
        .as_ref()
        .map(|vmm| because(vmm, vm.vmm_reason.as_ref()));
    optional("vmm", vmm);
    let confinement = vm
        .confinement
        .as_ref()
        .map(|word| because(word, vm.confinement_reason.as_ref()));
    optional("confined by", confinement);
    optional(
        "next",
        (vm.phase == "stuck").then(|| stuck_advice(&vm.name, vm.retry.as_deref())),
    );
    optional("pid", vm.pid.map(|pid| pid.to_string()));
    optional("init", Some(vm.init.clone()));
    optional("workdir", vm.workdir.clone());
    optional("created", Some(ago(now, vm.created_at)));
    if vm.phase == "running" {
        optional("up", vm.started_at.map(|at| lasting(now, at)));
    }
    let phase = |(name, end): &(String, u64)| format!("{name} {end} ms");
    let phases: Vec<String> = vm.boot_phases.iter().map(phase).collect();
    optional("boot", (!phases.is_empty()).then(|| phases.join(", ")));
    rows.extend(limits(vm));
    let store = vm.root_store.as_ref();
    let root = store.and_then(|store| store.warning.as_ref());
    for warning in root.into_iter().chain(&vm.warnings) {
        rows.push(("warning", warning.clone()));
    }
    if vm.delete_on_disconnect {
        rows.push(("note", "deleted when its `vm run --rm` ends".to_owned()));
    }
    rows
}
