//! The one place where the parts are put together: settings, this machine's facts,
//! the host, the jobs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::jobs::Jobs;
use crate::config::Config;
use crate::host::bridge::Bridge;
use crate::host::facts::{self, Finding, Look};
use crate::host::layout::Layout;
use crate::host::program::Programs;
use crate::host::{RealHost, Settings};
use crate::image::catalog::{Catalog, catalog};
use crate::plan::facts::{Fitness, HostFacts};
use crate::proto::reply;
use crate::vmm::fitness;

/// Overrides how long a guest may take to answer, milliseconds; for trials and tests
/// of guests that never do.
const READY_DEADLINE: &str = "BANGER_READY_DEADLINE_MS";

/// The parts.
pub struct Wired {
    /// Carries out steps.
    pub host: Arc<RealHost>,
    /// Pulls and sweeps.
    pub jobs: Jobs,
    /// For the mind.
    pub plan_facts: HostFacts,
    /// What could be pulled.
    pub catalog: Catalog,
}

/// Puts them together.
pub fn wire_up(layout: &Layout, config: &Config) -> Wired {
    let programs = programs(layout, config);
    let settings = Settings {
        bridge: config.bridge(),
        programs: programs.clone(),
        ..Settings::default()
    };
    let catalog = catalog();
    let plan_facts = plan_facts(layout, config, &programs, &catalog);
    Wired {
        host: Arc::new(RealHost::new(layout.clone(), settings)),
        jobs: Jobs::new(layout.clone()),
        plan_facts,
        catalog,
    }
}

/// The program's file name for each key of the configuration.
const PROGRAMS: [(&str, &str); 3] = [
    ("firecracker", "firecracker"),
    ("qemu", "qemu-system-x86_64"),
    ("vhost_device_vsock", "vhost-device-vsock"),
];

fn programs(layout: &Layout, config: &Config) -> Programs {
    let named = PROGRAMS
        .iter()
        .filter_map(|(key, file)| Some(((*file).to_owned(), config.program(key)?)));
    Programs::new(named.collect::<BTreeMap<_, _>>(), layout.tools())
}

fn plan_facts(
    layout: &Layout,
    config: &Config,
    programs: &Programs,
    catalog: &Catalog,
) -> HostFacts {
    let kvm = fitness::judge(
        Path::new("/proc/self/exe"),
        &layout.cache.join("kvm-fitness"),
    );
    let bridge = Bridge {
        name: &config.bridge(),
        subnet: config.subnet(),
    };
    HostFacts {
        kvm: match kvm {
            fitness::Fitness::Fit(_) => Fitness::Fit,
            fitness::Fitness::Unfit(why) => Fitness::Unfit(why),
        },
        firecracker: installed(programs, &["firecracker"]),
        qemu: installed(programs, &["qemu-system-x86_64", "vhost-device-vsock"]),
        taps: facts::taps(&bridge).map_or_else(Fitness::Unfit, |()| Fitness::Fit),
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
        ready_deadline_ms: std::env::var(READY_DEADLINE)
            .ok()
            .and_then(|text| text.parse().ok()),
    }
}

fn installed(programs: &Programs, names: &[&str]) -> Fitness {
    match names.iter().find(|name| programs.find(name).is_none()) {
        None => Fitness::Fit,
        Some(missing) => Fitness::Unfit(format!("{missing} is not installed")),
    }
}

/// The facts for people. Runs programs for their versions, so off the loop.
pub fn facts_for_people(host: &RealHost, plan: &HostFacts) -> reply::HostFacts {
    let settings = host.settings();
    let look = Look {
        layout: host.layout(),
        bridge: Bridge {
            name: &settings.bridge,
            subnet: plan.subnet,
        },
        programs: &settings.programs,
    };
    let kvm = match &plan.kvm {
        Fitness::Fit => fact("kvm", true, "runs ordinary guests".to_owned()),
        Fitness::Unfit(why) => fact("kvm", false, why.clone()),
    };
    let found = facts::findings(&look).into_iter();
    let found = found.map(|Finding { name, ok, detail }| fact(name, ok, detail));
    let (vmm, vmm_reason) = match plan.choose_vmm(crate::model::vm::VmmRequest::Auto) {
        Ok(choice) => (Some(choice.kind.to_string()), choice.reason),
        Err(failure) => (None, failure.to_string()),
    };
    reply::HostFacts {
        facts: std::iter::once(kvm).chain(found).collect(),
        vmm,
        vmm_reason,
    }
}

fn fact(name: &str, ok: bool, detail: String) -> reply::Fact {
    reply::Fact {
        name: name.to_owned(),
        ok,
        detail,
    }
}
