//! What is wrong in a store: rows that cannot be read, names and addresses that two VMs
//! have, files that rows name and that are not there, folders that no row names.
//!
//! Pure: rows and the names of folders in, findings out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::model::vm::Phase;
use crate::plan::record::VmRecord;

use super::copy::StoreRows;
use super::rows;

/// The folders that lie in the state directory, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folders {
    /// Of VMs, by id.
    pub vms: BTreeSet<String>,
    /// Of images, by content.
    pub images: BTreeSet<String>,
    /// Of kernels, by content.
    pub kernels: BTreeSet<String>,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What to do about it: a sentence with a command to type.
    pub next: String,
}

impl Finding {
    fn new(what: String, next: impl Into<String>) -> Finding {
        Finding {
            what,
            next: next.into(),
        }
    }
}

/// Looks at all rows, and at what lies beside the store.
pub fn audit(rows: &StoreRows, folders: &Folders) -> Vec<Finding> {
    let mut findings = unreadable(rows);
    let vms: Vec<VmRecord> = rows.vms.iter().filter_map(rows::vm_of).collect();
    findings.extend(shared(&vms));
    for vm in &vms {
        findings.extend(missing(vm, folders));
    }
    findings.extend(missing_contents(rows, folders));
    findings.extend(unnamed(rows, folders));
    findings
}

fn unreadable(rows: &StoreRows) -> Vec<Finding> {
    let export = "`banger store export` shows it as it lies there";
    let mut found = Vec::new();
    for (id, value) in &rows.vms {
        if let Some(why) = rows::vm_unread(id, value) {
            let next = format!("{export}; `banger vm delete {id}` removes all that the VM has.");
            let what = format!("vm {id}: its row cannot be read: {why}");
            found.push(Finding::new(what, next));
        }
    }
    let images = rows.images.iter().map(|row| (Kind::Image, row));
    let kernels = rows.kernels.iter().map(|row| (Kind::Kernel, row));
    for (kind, (name, value)) in images.chain(kernels) {
        let why = match kind {
            Kind::Image => rows::image_unread(name, value),
            Kind::Kernel => rows::kernel_unread(name, value),
        };
        let noun = kind.noun();
        if let Some(why) = why {
            let next = format!("{export}; put a copy of the store back: no daemon starts with it.");
            let what = format!("{noun} {name}: its row cannot be read: {why}");
            found.push(Finding::new(what, next));
        }
    }
    found
}

/// Names and addresses that more than one VM has.
fn shared(vms: &[VmRecord]) -> Vec<Finding> {
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for vm in vms {
        let id = vm.id.to_string();
        let name = format!("name {}", vm.spec.name);
        holders.entry(name).or_default().push(id.clone());
        if let Some(lease) = vm.lease {
            let address = format!("address {}", lease.address);
            holders.entry(address).or_default().push(id);
        }
    }
    let twice = holders.into_iter().filter(|(_, ids)| ids.len() > 1);
    let finding = |(what, ids): (String, Vec<String>)| {
        let next = format!("`banger vm delete {}` removes one of them.", ids[1]);
        Finding::new(
            format!("{what} belongs to several VMs: {}", ids.join(", ")),
            next,
        )
    };
    twice.map(finding).collect()
}

/// What a VM names and does not have.
fn missing(vm: &VmRecord, folders: &Folders) -> Vec<Finding> {
    let name = &vm.spec.name;
    let next = format!("Put it back from a copy, or `banger vm delete {name}`.");
    let mut found = Vec::new();
    let mut lacks = |what: String| found.push(Finding::new(what, next.clone()));
    let (image, kernel) = (&vm.spec.image, &vm.spec.kernel);
    if !folders.images.contains(image.content.as_str()) {
        lacks(format!(
            "vm {name}: its image {} is not there: images/{}",
            image.name, image.content
        ));
    }
    if !folders.kernels.contains(kernel.content.as_str()) {
        lacks(format!(
            "vm {name}: its kernel {} is not there: kernels/{}",
            kernel.name, kernel.content
        ));
    }
    let may_lack = matches!(vm.phase, Phase::Creating | Phase::Deleting | Phase::Stuck);
    if !may_lack && !folders.vms.contains(&vm.id.to_string()) {
        lacks(format!("vm {name}: its disks are not there: vms/{}", vm.id));
    }
    found
}

/// What a content is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder of `images/`.
    Image,
    /// A folder of `kernels/`.
    Kernel,
}

impl Kind {
    /// The word of the commands: `image` or `kernel`.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Kernel => "kernel",
        }
    }
}

/// What every row of an image or a kernel names: its name and its content.
pub fn contents(rows: &StoreRows) -> impl Iterator<Item = (Kind, String, String)> {
    let images = rows.images.iter().filter_map(rows::image_content);
    let kernels = rows.kernels.iter().filter_map(rows::kernel_content);
    let images = images.map(|(name, content)| (Kind::Image, name, content));
    images.chain(kernels.map(|(name, content)| (Kind::Kernel, name, content)))
}

fn missing_contents(rows: &StoreRows, folders: &Folders) -> Vec<Finding> {
    let lost = |(kind, name, content): (Kind, String, String)| {
        let there = match kind {
            Kind::Image => &folders.images,
            Kind::Kernel => &folders.kernels,
        };
        let noun = kind.noun();
        let what = format!("{noun} {name} is not there: {noun}s/{content}");
        let missing = !there.contains(&content);
        missing.then(|| Finding::new(what, format!("`banger {noun} pull {name} --force`")))
    };
    contents(rows).filter_map(lost).collect()
}

/// Folders of VMs that no row names: left over, or the store was lost.
fn unnamed(rows: &StoreRows, folders: &Folders) -> Vec<Finding> {
    let named: BTreeSet<&String> = rows.vms.iter().map(|(id, _)| id).collect();
    let unnamed = folders.vms.iter().filter(|id| !named.contains(id));
    let finding = |id: &String| {
        Finding::new(
            format!("the folder vms/{id} belongs to no VM"),
            "Keep what you need of its disks, then remove it.",
        )
    };
    unnamed.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::record::RowChange;
    use crate::store::fixture::{image, kernel, vm};

    fn row(change: &RowChange) -> (String, Vec<u8>) {
        let (_, key, value) = rows::write(change).unwrap();
        (key, value.unwrap())
    }

    fn sound() -> (StoreRows, Folders) {
        let rows = StoreRows {
            vms: vec![row(&RowChange::PutVm(Box::new(vm())))],
            images: vec![row(&RowChange::PutImage(image()))],
            kernels: vec![row(&RowChange::PutKernel(kernel()))],
        };
        let one = |name: &str| BTreeSet::from([name.to_owned()]);
        let folders = Folders {
            vms: one("0badcafe"),
            images: one("00112233445566aa"),
            kernels: one("00112233445566bb"),
        };
        (rows, folders)
    }

    /// All that was found, as one text.
    fn found(rows: &StoreRows, folders: &Folders) -> String {
        let findings = audit(rows, folders).into_iter();
        let lines = findings.map(|finding| format!("{} -> {}\n", finding.what, finding.next));
        lines.collect()
    }

    #[test]
    fn sound_store_has_no_findings() {
        let (rows, folders) = sound();
        assert_eq!(found(&rows, &folders), "");
    }

    #[test]
    fn rows_that_cannot_be_read_are_named_with_what_to_do() {
        let (mut rows, folders) = sound();
        rows.vms[0].1.truncate(40);
        rows.images[0].1 = b"{}".to_vec();
        rows.kernels[0].1 = b"\xff".to_vec();
        let text = found(&rows, &folders);
        assert!(
            text.contains("vm 0badcafe: its row cannot be read"),
            "{text}"
        );
        assert!(text.contains("banger vm delete 0badcafe"), "{text}");
        assert!(text.contains("image debian-bookworm: its row"), "{text}");
        assert!(text.contains("kernel debian-6.1-cloud: its row"), "{text}");
    }

    #[test]
    fn name_and_address_of_two_vms_are_found() {
        let (mut rows, mut folders) = sound();
        let twin = VmRecord {
            id: crate::model::ids::VmId::from_bits(7),
            ..vm()
        };
        rows.vms.push(row(&RowChange::PutVm(Box::new(twin))));
        folders.vms.insert("00000007".to_owned());
        let text = found(&rows, &folders);
        assert!(text.contains("name dev belongs to several VMs"), "{text}");
        assert!(text.contains("address 172.30.0.2 belongs to"), "{text}");
    }

    #[test]
    fn what_is_named_and_not_there_is_found_and_the_other_way_round() {
        let (mut rows, mut folders) = sound();
        let stopped = VmRecord {
            phase: Phase::Stopped,
            ..vm()
        };
        rows.vms = vec![row(&RowChange::PutVm(Box::new(stopped)))];
        folders.images.clear();
        folders.kernels.clear();
        folders.vms = BTreeSet::from(["0000beef".to_owned()]);
        let text = found(&rows, &folders);
        for words in [
            "vm dev: its image debian-bookworm is not there",
            "vm dev: its kernel debian-6.1-cloud is not there",
            "vm dev: its disks are not there: vms/0badcafe",
            "image debian-bookworm is not there: images/00112233445566aa -> `banger image pull",
            "kernel debian-6.1-cloud is not there",
            "the folder vms/0000beef belongs to no VM",
        ] {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
    }
}
