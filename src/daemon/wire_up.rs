//! The one place where the parts are put together: settings, this machine's facts,
//! the host, the jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dns::{self, Dns, Place};
use super::hands::{self, Hands};
use super::jobs::Jobs;
use super::with_hint;
use crate::config::Config;
use crate::failure::Failure;
use crate::host::bridge::Bridge;
use crate::host::cgroup;
use crate::host::facts::{self, Finding, Look};
use crate::host::jail;
use crate::host::layout::Layout;
use crate::host::program::Programs;
use crate::host::published;
use crate::host::{RealHost, Settings, dm, reflink, tap_limit};
use crate::image::catalog::{Catalog, catalog};
use crate::plan::facts::{Fitness, HostFacts, Installed};
use crate::plan::step::FaultKind;
use crate::proto::helper::SOCKET;
use crate::proto::reply;
use crate::vmm::fitness;

/// Overrides how long a guest may take to answer, milliseconds; for trials and tests
/// of guests that never do.
const READY_DEADLINE: &str = "BANGER_READY_DEADLINE_MS";

/// Names Firecracker's jailer, over the configuration.
const JAILER: &str = "BANGER_JAILER";

/// The parts.
pub struct Wired {
    /// Carries out steps.
    pub host: Arc<Hands>,
    /// Pulls and sweeps.
    pub jobs: Jobs,
    /// For the mind.
    pub plan_facts: HostFacts,
    /// What could be pulled.
    pub catalog: Catalog,
    /// The guests' resolver, where guests can have taps.
    pub resolver: Option<Dns>,
}

/// Puts them together.
pub fn wire_up(layout: &Layout, config: &Config) -> Wired {
    let programs = programs(layout, config);
    let settings = Settings {
        bridge: config.bridge(),
        programs: programs.clone(),
        templates: config.templates(),
        ..Settings::default()
    };
    let catalog = catalog();
    let mut plan_facts = plan_facts(layout, config, &programs, &catalog);
    let own_taps = plan_facts.taps.is_fit();
    let helper = helper_socket().filter(|_| !own_taps);
    let resolver = match &helper {
        None if own_taps => logged(Dns::bind(&Place::of(plan_facts.subnet))),
        None => None,
        Some(socket) => resolver_by_helper(socket, &mut plan_facts),
    };
    let helper = helper.filter(|_| plan_facts.taps.is_fit());
    let real = RealHost::new(layout.clone(), settings);
    Wired {
        host: Arc::new(Hands::new(real, helper)),
        resolver,
        jobs: Jobs::new(layout.clone()),
        plan_facts,
        catalog,
    }
}

/// The root helper's socket, where there is one.
fn helper_socket() -> Option<PathBuf> {
    let named = std::env::var_os(hands::VARIABLE).map(PathBuf::from);
    named
        .or_else(|| Some(PathBuf::from(SOCKET)))
        .filter(|socket| socket.exists())
}

/// Asks the helper for the resolver's sockets. That it answers at all means that it makes
/// our taps; a refusal says why there are none.
fn resolver_by_helper(socket: &Path, facts: &mut HostFacts) -> Option<Dns> {
    let place = Place::of(facts.subnet);
    match hands::resolver(socket, facts.subnet) {
        Ok(sockets) => {
            facts.taps = Fitness::Fit;
            logged(Dns::of_sockets(&place, sockets))
        }
        Err(fault) if fault.kind == FaultKind::Other => {
            facts.taps = Fitness::Fit;
            let hint = dns::if_taken(place.subnet.gateway());
            log::warn!("guests have no resolver: {fault}. {hint}");
            None
        }
        Err(fault) => {
            facts.taps = Fitness::Unfit(fault.what);
            None
        }
    }
}

/// A guest without a resolver still runs: why it has none is in the log.
fn logged(resolver: Result<Dns, Failure>) -> Option<Dns> {
    resolver
        .inspect_err(|failure| log::warn!("guests have no resolver: {}", with_hint(failure)))
        .ok()
}

/// The program's file name for each key of the configuration.
const PROGRAMS: [(&str, &str); 4] = [
    ("firecracker", "firecracker"),
    ("jailer", "jailer"),
    ("qemu", "qemu-system-x86_64"),
    ("vhost_device_vsock", "vhost-device-vsock"),
];

fn programs(layout: &Layout, config: &Config) -> Programs {
    let named = PROGRAMS
        .iter()
        .filter_map(|(key, file)| Some(((*file).to_owned(), config.program(key)?)));
    let jailer = std::env::var_os(JAILER).map(|path| ("jailer".to_owned(), path.into()));
    let named = named.chain(jailer);
    Programs::new(named.collect::<BTreeMap<_, _>>(), layout.tools())
}

fn plan_facts(
    layout: &Layout,
    config: &Config,
    programs: &Programs,
    catalog: &Catalog,
) -> HostFacts {
    let bridge = Bridge {
        name: &config.bridge(),
        subnet: config.subnet(),
    };
    HostFacts {
        kvm: kvm(layout),
        installed: installed(programs),
        taps: fit(facts::taps(&bridge)),
        reflink: fit(reflink::fitness(&layout.state)),
        device_mapper: fit(dm::fitness()),
        tap_limits: fit(tap_limit::fitness(&config.bridge())),
        cpu_weight: fit(cgroup::cpu_weights()),
        limits: fit(cgroup::limits()),
        first_port: published::first_for_everybody(),
        subnet: config.subnet(),
        memory: facts::memory(),
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

fn kvm(layout: &Layout) -> Fitness {
    let kept = layout.cache.join("kvm-fitness");
    match fitness::judge(Path::new("/proc/self/exe"), &kept) {
        fitness::Fitness::Fit(_) => Fitness::Fit,
        fitness::Fitness::Unfit(why) => Fitness::Unfit(why),
    }
}

fn fit(tried: Result<(), String>) -> Fitness {
    tried.map_or_else(Fitness::Unfit, |()| Fitness::Fit)
}

/// Which programs of VMMs are there at this moment: some looks at files.
pub fn installed(programs: &Programs) -> Installed {
    Installed {
        firecracker: all_found(programs, &["firecracker"]),
        jailer: fit(jail::fitness(programs).map(drop)),
        qemu: all_found(programs, &["qemu-system-x86_64", "vhost-device-vsock"]),
    }
}

fn all_found(programs: &Programs, names: &[&str]) -> Fitness {
    match names.iter().find(|name| programs.find(name).is_none()) {
        None => Fitness::Fit,
        Some(missing) => Fitness::Unfit(format!("{missing} is not installed")),
    }
}

/// What this machine offers, found out by this process: for `banger doctor` where no
/// daemon can be started. Holds nothing afterwards.
pub fn look(layout: &Layout, config: &Config) -> reply::HostFacts {
    let programs = programs(layout, config);
    let mut plan = plan_facts(layout, config, &programs, &catalog());
    if let Some(socket) = helper_socket().filter(|_| !plan.taps.is_fit()) {
        drop(resolver_by_helper(&socket, &mut plan));
    }
    let bridge = Bridge {
        name: &config.bridge(),
        subnet: plan.subnet,
    };
    let look = Look {
        layout,
        bridge,
        programs: &programs,
    };
    told(&look, &plan)
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
    told(&look, plan)
}

fn told(look: &Look<'_>, plan: &HostFacts) -> reply::HostFacts {
    let kvm = match &plan.kvm {
        Fitness::Fit => fact("kvm", true, "runs ordinary guests".to_owned()),
        Fitness::Unfit(why) => fact("kvm", false, why.clone()),
    };
    let found = facts::findings(look).into_iter();
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
