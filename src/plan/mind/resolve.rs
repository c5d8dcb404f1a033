//! Finds what a reference means: a name, an id, or the only id that begins so.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ImageName, KernelName, VmId, VmName};
use crate::model::nearest::{did_you_mean, known_vms};
use crate::plan::request::PullKey;

use super::Mind;

impl Mind {
    pub(super) fn resolve(&self, target: &str) -> Result<VmId, Failure> {
        let named = self
            .vms
            .iter()
            .find(|(_, vm)| vm.record.spec.name.as_str() == target);
        if let Some((id, _)) = named {
            return Ok(*id);
        }
        let begins: Vec<(VmId, &VmName)> = self
            .vms
            .iter()
            .filter(|(id, _)| !target.is_empty() && id.to_string().starts_with(target))
            .map(|(id, vm)| (*id, &vm.record.spec.name))
            .collect();
        match begins.as_slice() {
            [(id, _)] => Ok(*id),
            [] => Err(self.unknown_vm(target)),
            several => Err(ambiguous(target, several)),
        }
    }

    fn unknown_vm(&self, target: &str) -> Failure {
        let names = self.vms.values().map(|vm| vm.record.spec.name.as_str());
        let what = format!("find vm {target}: there is none");
        Failure::not_found(what).hint(known_vms(target, names))
    }

    /// The image a name means, whether it is here or must be pulled.
    pub(super) fn resolve_image(&self, text: &str) -> Result<ImageName, Failure> {
        let known = |name: &ImageName| {
            self.images.contains_key(name) || self.facts.catalog_images.contains(name)
        };
        let names = self.images.keys().chain(&self.facts.catalog_images);
        match text.parse::<ImageName>() {
            Ok(name) if known(&name) => Ok(name),
            Ok(_) => Err(unknown("image", text, names.map(ImageName::as_str))),
            Err(error) => Err(Failure::usage(error.to_string()).hint("See `banger image list`.")),
        }
    }

    /// The kernel a name means, whether it is here or must be pulled.
    pub(super) fn resolve_kernel(&self, text: &str) -> Result<KernelName, Failure> {
        let known = |name: &KernelName| {
            self.kernels.contains_key(name) || self.facts.catalog_kernels.contains(name)
        };
        let names = self.kernels.keys().chain(&self.facts.catalog_kernels);
        match text.parse::<KernelName>() {
            Ok(name) if known(&name) => Ok(name),
            Ok(_) => Err(unknown("kernel", text, names.map(KernelName::as_str))),
            Err(error) => Err(Failure::usage(error.to_string()).hint("See `banger kernel list`.")),
        }
    }

    /// Refuses what is in the catalogue only: it must be here.
    pub(super) fn absent_here(key: &PullKey) -> Failure {
        Failure::not_found(format!(
            "find {key}: it is in the catalogue, but not on this machine"
        ))
        .hint(format!("Run `banger {}`.", key.pull_command()))
    }
}

fn unknown<'a>(noun: &str, text: &str, names: impl Iterator<Item = &'a str>) -> Failure {
    let mut known: Vec<&str> = names.collect();
    known.sort_unstable();
    known.dedup();
    let list = format!("See `banger {noun} list`.");
    let hint = match did_you_mean(text, known.iter().copied()) {
        Some(question) => format!("{question} {list}"),
        None => format!("Known: {}. {list}", known.join(", ")),
    };
    Failure::not_found(format!(
        "find {noun} {text}: there is none, nor in the catalogue"
    ))
    .hint(hint)
}

fn ambiguous(target: &str, several: &[(VmId, &VmName)]) -> Failure {
    let list: Vec<String> = several
        .iter()
        .map(|(id, name)| format!("{id} ({name})"))
        .collect();
    let what = format!("find vm {target}: ids of {} VMs begin so", several.len());
    Failure::new(FailureKind::Usage, what).hint(format!("Write more of it: {}.", list.join(", ")))
}
