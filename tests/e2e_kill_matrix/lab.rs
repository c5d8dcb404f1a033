//! A daemon with fail-points on a small disk of its own, with a bridge of its own.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::fault::Fault;
use crate::operation::{IMAGE, Operation, VM};
use crate::support::Banger;
use crate::support::census::Census;
use crate::support::disk::SmallDisk;
use crate::support::events::ask_until;
use crate::support::fail_point::FailPoint;

/// How long what ends by itself may take to be gone.
const SETTLE: Duration = Duration::from_secs(15);
/// Room of the state directory: disks of VMs, or an image while it is made.
const VM_DISK_MIB: u64 = 96;
const PULL_DISK_MIB: u64 = 4096;

/// See the head of this file. Dropped in this order: the disk last.
pub struct Lab {
    pub banger: Banger,
    pub point: FailPoint,
    pub disk: SmallDisk,
    operation: Operation,
    /// The VM that was there last: what is left of it has its id.
    last: RefCell<Option<String>>,
    /// The host with nothing of a VM, or without what is pulled.
    pub baseline: Option<Census>,
    /// The host with a VM that was started once and is stopped.
    pub stopped: Option<Census>,
}

impl Lab {
    /// `None` without a program that has fail-points.
    pub fn new(operation: Operation) -> Option<Lab> {
        let room = match operation.has_vm() {
            true => VM_DISK_MIB,
            false => PULL_DISK_MIB,
        };
        let disk = SmallDisk::mount(room);
        let (mut banger, point) = Banger::with_fail_point(&[IMAGE], &disk)?;
        // A guest whose disk is full waits for room and never calls.
        banger.set("BANGER_READY_DEADLINE_MS", "40000");
        let mut lab = Lab {
            banger,
            point,
            disk,
            operation,
            last: RefCell::default(),
            baseline: None,
            stopped: None,
        };
        let network = format!(
            "[network]\nbridge = \"{}\"\nsubnet = \"172.28.{}.0/24\"\n",
            lab.bridge(),
            std::process::id() % 250
        );
        fs::write(lab.banger.config(), network).expect("the room takes a file");
        match operation.has_vm() {
            true => lab.warm_up(),
            false => lab.make_room_for(operation),
        }
        lab.baseline = Some(lab.census());
        Some(lab)
    }

    /// What the first VM leaves for all: bridge, tables, caches.
    fn warm_up(&mut self) {
        self.set_up(Operation::Stop);
        self.banger.ok(&Operation::Stop.command());
        self.stopped = Some(self.census());
        self.banger.ok(&["vm", "delete", VM]);
    }

    /// Makes what an operation needs before it.
    pub fn set_up(&self, operation: Operation) {
        for command in operation.before() {
            self.banger.ok(&command);
        }
    }

    /// Takes away what is to be pulled, so that it is made on our disk.
    fn make_room_for(&self, operation: Operation) {
        let folder = match operation {
            Operation::Pull => "kernels",
            _ => "images",
        };
        let link = self.disk.path().join(folder);
        fs::remove_file(&link).expect("the lab linked it");
        fs::create_dir(&link).expect("a fresh disk takes a folder");
        self.forget(operation);
    }

    /// Deletes what a pull has brought.
    pub fn forget(&self, operation: Operation) {
        let mut command = operation.command();
        let name = command.pop().expect("the name is last");
        self.banger.ok(&[command[0], "delete", name]);
    }

    /// Whether what a pull brings is there.
    pub fn has(&self, operation: Operation) -> bool {
        let command = operation.command();
        let name = command.last().expect("the name is last");
        self.banger.run(&[command[0], "show", name]).code() == Some(0)
    }

    /// The name of the bridge: ours alone on this machine.
    pub fn bridge(&self) -> String {
        format!("bkm{}", std::process::id() % 1_000_000)
    }

    /// The VM's id, from the folders that are named after it.
    pub fn vm_id(&self) -> Option<String> {
        let state = self.banger.state();
        let folders = [state.as_path(), self.banger.runtime()].map(|root| root.join("vms"));
        let mut entries = folders.iter().filter_map(|vms| vms.read_dir().ok());
        let first = entries.find_map(|mut vms| vms.next()?.ok())?;
        first.file_name().into_string().ok()
    }

    /// The VM's control group, if it exists.
    pub fn control_group(&self, id: &str) -> Option<PathBuf> {
        let groups = crate::support::census::control_groups();
        let ending = format!("/banger/{id}");
        groups
            .into_iter()
            .find(|path| path.ends_with(&ending))
            .map(PathBuf::from)
    }

    /// Asks until the VM rests; its phase, and why it is in it.
    pub fn rest(&self) -> Option<(String, String)> {
        let look = || {
            let list = self.list();
            let vm = list.as_array().and_then(|vms| vms.first().cloned())?;
            let text = |key: &str| vm[key].as_str().unwrap_or_default().to_owned();
            Some((text("phase"), text("reason")))
        };
        ask_until(look, |seen| {
            let rests = ["running", "stopped", "stuck"];
            seen.as_ref()
                .is_none_or(|(phase, _)| rests.contains(&phase.as_str()))
        })
    }

    /// All VMs, by the daemon that is there or the one that comes after it: a command may
    /// meet one that is just ending, and is told so.
    fn list(&self) -> serde_json::Value {
        let answered = ask_until(
            || self.banger.run(&["vm", "list", "--json"]),
            |ran| ran.code() != Some(3),
        );
        serde_json::from_slice(&answered.stdout).unwrap_or_else(|_| panic!("{answered:?}"))
    }

    /// What is on the host, of ours alone, with names that do not change from VM to VM.
    pub fn census(&self) -> Census {
        let mut last = self.last.borrow_mut();
        *last = self.vm_id().or(last.take());
        let id = last.clone().unwrap_or_else(|| "none".to_owned());
        let state = self.banger.state().display().to_string();
        let list = self.list();
        let leases = list.as_array().into_iter().flatten();
        let leases = leases.map(|vm| format!("lease of {}", vm["name"]));
        Census::take(&self.banger)
            .with(leases)
            .keep(|line| is_ours(line, &id, &state))
            .keep(|line| {
                // Pulls make no network, and use that of the machine, where others do.
                let network = ["link ", "setting ", "nft "]
                    .iter()
                    .any(|kind| line.starts_with(kind));
                self.operation.has_vm() || !network
            })
            .rename(&id, "ID")
    }

    /// What differs from `expected` once everything has settled. What the fault itself
    /// took away and nothing brings back is no difference.
    pub fn differs(&self, expected: Option<&Census>, fault: Fault) -> Vec<String> {
        let expected = expected.expect("it was taken when the lab was set up");
        let end = Instant::now() + SETTLE;
        loop {
            let mut changes = expected.changes(&self.census());
            changes.retain(|change| !fault.took(change));
            if changes.is_empty() || Instant::now() > end {
                return changes;
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What a failed test armed would meet the deletion of its VM, too.
        self.point.clear();
        self.disk.free();
    }
}

/// Other daemons on this machine have control groups and loop devices too; logs of a VM
/// stay with it.
fn is_ours(line: &str, id: &str, state: &str) -> bool {
    let last = line.rsplit('/').next().unwrap_or_default();
    let is_id = last.len() == 8 && last.bytes().all(|byte| byte.is_ascii_hexdigit());
    match line.split(' ').next() {
        Some("cgroup") => !is_id || last == id,
        Some("loop") => line.contains(state),
        Some("mount") => {
            line.contains(state) || !(line.contains("/bd-") || line.contains("/rooms/"))
        }
        // The lock of a name that was pulled stays, see src/image/store.rs.
        _ => !line.ends_with(".log") && !line.contains(" .pull-"),
    }
}
