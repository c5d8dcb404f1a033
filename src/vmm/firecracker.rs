//! Firecracker: its arguments, and its half of the seam over its API.
//!
//! The process starts empty and is told its machine piece by piece; the guest starts
//! with an action. Its drives appear in the guest in the order they are told. Read next:
//! [`jailer`].

pub mod api;
mod http;
pub mod jailer;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::identity::Identity;
use crate::host::launch::Inherited;
use crate::host::process::Marker;
use crate::host::program::Programs;
use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::model::vm::Confinement;
use crate::plan::step::{Fault, LiveSizes};

use super::machine::{
    Access, DISK_FILES, Disk, GUEST_CID, INITRD_FILE, KERNEL_FILE, Net, Parts, WORK_DISK,
    descriptor,
};
use super::{ControlSocket, Deadline, GuestState, Vmm, out_of_reach};
use api::{Action, Api, BalloonUpdate, DriveUpdate, InstanceState, Patch, Request, VmState};

/// The implementation over `firecracker`.
#[derive(Debug)]
pub struct Firecracker;

impl Vmm for Firecracker {
    fn program(&self, programs: &Programs) -> Result<PathBuf, Fault> {
        programs.require(
            "firecracker",
            "put a release of it on PATH, or use `--vmm qemu`",
        )
    }

    fn arguments(&self, parts: &Parts) -> Vec<OsString> {
        let id = ["--id".into(), parts.vm.to_string().into()];
        id.into_iter().chain(options(parts)).collect()
    }

    fn files(&self, parts: &Parts) -> Vec<Inherited> {
        parts.opened()
    }

    fn read_anew<'a>(&self, parts: &'a Parts) -> Vec<&'a Path> {
        let shared = parts.disks_with(Access::ReadOnly);
        [&*parts.kernel, &*parts.initrd]
            .into_iter()
            .chain(shared)
            .collect()
    }

    fn written_anew<'a>(&self, parts: &'a Parts) -> Vec<&'a Path> {
        parts.disks_with(Access::ReadWrite).collect()
    }

    /// It opens KVM and the tap by itself, and opens anew by `/proc/self/fd` what it was
    /// given open. So the files must let the VM's user in; a block device does not, since
    /// its node belongs to the group of all disks of this machine.
    fn identity(&self, parts: &Parts, user: Identity) -> Identity {
        match parts.disks.iter().any(|disk| disk.access == Access::Device) {
            true => Identity { uid: 0, ..user },
            false => user.able_to_open(&[Path::new("/dev/kvm"), Path::new("/dev/net/tun")]),
        }
    }

    fn marker(&self, vm: VmId) -> Marker {
        Marker::new(["--id".to_owned(), vm.to_string()])
    }

    fn control(&self) -> ControlSocket {
        ControlSocket::Made
    }

    fn configure(&self, parts: &Parts, limit: Deadline) -> Result<(), Fault> {
        let mut api = Api::connect(&parts.control, limit)?;
        for request in requests(parts) {
            api.put(&request)?;
        }
        Ok(())
    }

    fn is_configured(&self, parts: &Parts, limit: Deadline) -> Result<bool, Fault> {
        let mut api = Api::connect(&parts.control, limit)?;
        if api.state()? != InstanceState::NotStarted {
            return Ok(true);
        }
        let told = api.machine()?;
        // The order of `requests`: the vsock is the last piece.
        Ok(told.drives.len() == parts.disks.len() && told.vsock.is_some())
    }

    fn boot(&self, control: &Path, limit: Deadline) -> Result<(), Fault> {
        let mut api = Api::connect(control, limit)?;
        match api.state()? {
            InstanceState::NotStarted => api.put(&Request::Action(Action::InstanceStart)),
            InstanceState::Paused => api.patch(&Patch::State(VmState::Resumed)),
            InstanceState::Running => Ok(()),
        }
    }

    fn state(&self, control: &Path, limit: Deadline) -> Result<GuestState, Fault> {
        Ok(match Api::connect(control, limit)?.state()? {
            InstanceState::NotStarted => GuestState::NotStarted,
            InstanceState::Running => GuestState::Running,
            InstanceState::Paused => GuestState::Paused,
        })
    }

    fn adjust(&self, parts: &Parts, sizes: LiveSizes, limit: Deadline) -> Result<(), Fault> {
        let mut api = Api::connect(&parts.control, limit).map_err(out_of_reach)?;
        if sizes.memory_target.is_some() {
            api.find_balloon()?;
        }
        patches(parts, sizes)
            .iter()
            .try_for_each(|patch| api.patch(patch))
    }

    fn memory_left(&self, control: &Path, memory: Bytes, limit: Deadline) -> Result<Bytes, Fault> {
        let held = Api::connect(control, limit)?.balloon_stats()?.actual_mib;
        Ok(Bytes(memory.0.saturating_sub(Bytes::mib(held).0)))
    }
}

/// Everything that gives a running machine these sizes.
fn patches(parts: &Parts, sizes: LiveSizes) -> Vec<Patch> {
    let told = requests(parts)
        .into_iter()
        .find_map(|request| match request {
            Request::Drive(drive) if drive.drive_id == WORK_DISK => Some(drive),
            _ => None,
        });
    let work = told.map(|drive| {
        Patch::Drive(DriveUpdate {
            drive_id: drive.drive_id,
            path_on_host: drive.path_on_host,
        })
    });
    let balloon = sizes.memory_target.map(|target| {
        Patch::Balloon(BalloonUpdate {
            amount_mib: parts.memory.whole_mib().saturating_sub(target.whole_mib()),
        })
    });
    work.into_iter().chain(balloon).collect()
}

/// Its arguments without its identity, which a jailer hands on by itself.
fn options(parts: &Parts) -> [OsString; 6] {
    [
        "--api-sock".into(),
        parts.said.control.as_os_str().into(),
        // From the first line on, so that standard output is the guest's console.
        "--log-path".into(),
        parts.said.log_pipe.as_os_str().into(),
        "--level".into(),
        "Warn".into(),
    ]
}

/// Everything that Firecracker is told about a machine, in order.
pub fn requests(parts: &Parts) -> Vec<Request> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    // What it was given open; in a jail it has nothing open and files have their names.
    let file = |place: usize, path: &Path| match parts.confinement {
        Confinement::Direct => format!("/proc/self/fd/{}", descriptor(place)),
        Confinement::Jailer => text(path),
    };
    let mut requests = vec![
        Request::Logger(api::Logger {
            log_path: text(&parts.said.log_pipe),
            level: api::LogLevel::Warning,
            show_level: true,
        }),
        Request::Machine(api::MachineConfiguration {
            vcpu_count: parts.vcpu,
            mem_size_mib: parts.memory.whole_mib(),
        }),
        Request::BootSource(api::BootSource {
            kernel_image_path: file(KERNEL_FILE, &parts.kernel),
            initrd_path: file(INITRD_FILE, &parts.initrd),
            boot_args: parts.boot_args.clone(),
        }),
    ];
    let limiter = api::RateLimiter::of_disk(&parts.limits);
    let disks = parts.disks.iter().zip(DISK_FILES..);
    requests.extend(disks.map(|(disk, place)| drive(disk, file(place, &disk.path), limiter)));
    requests.extend(network(parts));
    requests.push(Request::Entropy(api::EntropyDevice {}));
    requests.push(balloon());
    requests.push(Request::Vsock(api::Vsock {
        guest_cid: GUEST_CID,
        uds_path: text(&parts.said.vsock),
    }));
    requests
}

/// The user-mode network is QEMU's own: `plan` gives such a guest none.
fn network(parts: &Parts) -> Option<Request> {
    let Net::Tap { name, mac } = &parts.net else {
        return None;
    };
    Some(Request::NetworkInterface(api::NetworkInterface {
        iface_id: "net".to_owned(),
        host_dev_name: name.clone(),
        guest_mac: mac.to_string(),
        rx_rate_limiter: api::RateLimiter::of_net(&parts.limits),
        tx_rate_limiter: api::RateLimiter::of_net(&parts.limits),
    }))
}

/// What the balloon holds is told whenever it is asked; what the guest counts besides, every
/// so often, nobody needs.
const STATS_INTERVAL_S: u32 = 3600;

/// Of size zero: through it the guest tells which of its pages are free.
fn balloon() -> Request {
    Request::Balloon(api::Balloon {
        amount_mib: 0,
        deflate_on_oom: true,
        free_page_reporting: true,
        stats_polling_interval_s: STATS_INTERVAL_S,
    })
}

fn drive(disk: &Disk, path_on_host: String, rate_limiter: Option<api::RateLimiter>) -> Request {
    Request::Drive(api::Drive {
        drive_id: disk.name.to_owned(),
        path_on_host,
        is_read_only: disk.access == Access::ReadOnly,
        // The root is assembled by our /init; a root device would add `root=` to the
        // kernel's command line.
        is_root_device: false,
        // Flushes of the guest reach the host's disk.
        cache_type: match disk.access {
            Access::ReadOnly => api::CacheType::Unsafe,
            Access::ReadWrite | Access::Device => api::CacheType::Writeback,
        },
        rate_limiter,
    })
}

#[cfg(test)]
#[path = "firecracker/contract.rs"]
mod contract;
