//! The one place where the parts are put together: settings, this machine's facts,
//! the host, the jobs.

use std::sync::Arc;

use super::actor::Catalogue;
use super::jobs::Jobs;
use crate::config::Config;
use crate::failure::Failure;
use crate::host::layout::Layout;
use crate::host::{RealHost, Settings, program};
use crate::image::catalog::catalog;
use crate::plan::facts::{Fitness, HostFacts};
use crate::proto::reply;
use crate::vmm::fitness;

/// The parts.
pub struct Wired {
    /// Carries out steps.
    pub host: Arc<RealHost>,
    /// Pulls and sweeps.
    pub jobs: Jobs,
    /// For the mind.
    pub plan_facts: HostFacts,
    /// For people.
    pub facts: reply::HostFacts,
    /// What could be pulled.
    pub catalogue: Catalogue,
}

/// Puts them together.
///
/// # Errors
/// A setting that this machine cannot follow.
pub fn wire_up(layout: &Layout, config: &Config) -> Result<Wired, Failure> {
    let settings = Settings {
        bridge: config.bridge(),
        ..Settings::default()
    };
    let own_program = std::path::Path::new("/proc/self/exe");
    let kvm = fitness::judge(own_program, &layout.cache.join("kvm-fitness"));
    let catalog = catalog();
    let plan_facts = HostFacts {
        kvm: match &kvm {
            fitness::Fitness::Fit(_) => Fitness::Fit,
            fitness::Fitness::Unfit(why) => Fitness::Unfit(why.clone()),
        },
        firecracker: installed("firecracker", &[]),
        qemu: installed("qemu-system-x86_64", &["vhost-device-vsock"]),
        taps: Fitness::Unfit("tmp".to_owned()),
        subnet: config.subnet(),
        catalog_images: catalog
            .images
            .iter()
            .map(|entry| entry.name.clone())
            .collect(),
        catalog_kernels: catalog
            .kernels
            .iter()
            .map(|entry| entry.name.clone())
            .collect(),
        ready_deadline_ms: None,
    };
    Ok(Wired {
        host: Arc::new(RealHost::new(layout.clone(), settings)),
        jobs: Jobs::new(layout.clone()),
        plan_facts,
        facts: reply::HostFacts {
            facts: vec![],
            vmm: None,
            vmm_reason: String::new(),
        },
        catalogue: Catalogue {
            images: Vec::new(),
            kernels: Vec::new(),
        },
    })
}

fn installed(name: &str, more: &[&str]) -> Fitness {
    for name in std::iter::once(&name).chain(more) {
        if program::find(name).is_none() {
            return Fitness::Unfit(format!("{name} is not installed"));
        }
    }
    Fitness::Fit
}
