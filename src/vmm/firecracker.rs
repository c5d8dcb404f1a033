//! Firecracker: its arguments, and its half of the seam over its API.
//!
//! The process starts empty and is told its machine piece by piece; the guest starts
//! with an action. Its drives appear in the guest in the order they are told.

pub mod api;
mod http;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::identity::Identity;
use crate::host::launch::Inherited;
use crate::host::process::Marker;
use crate::host::program::Programs;
use crate::model::ids::VmId;
use crate::plan::step::Fault;

use super::machine::{Access, Disk, GUEST_CID, Net, Parts};
use super::{ControlSocket, Deadline, GuestState, Vmm};
use api::{Action, Api, InstanceState, Request, VmState};

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
        vec![
            "--id".into(),
            parts.vm.to_string().into(),
            "--api-sock".into(),
            parts.control.as_os_str().into(),
            // From the first line on, so that standard output is the guest's console.
            "--log-path".into(),
            parts.log_pipe.as_os_str().into(),
            "--level".into(),
            "Warn".into(),
        ]
    }

    fn files(&self, _parts: &Parts) -> Vec<Inherited> {
        Vec::new()
    }

    /// It opens disks and devices by their paths, through folders that are closed to the
    /// VM's user: without its jailer it is root, without capabilities.
    fn identity(&self, _parts: &Parts, user: Identity) -> Identity {
        Identity { uid: 0, ..user }
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
            InstanceState::Paused => api.set_state(VmState::Resumed),
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
}

/// Everything that Firecracker is told about a machine, in order.
pub fn requests(parts: &Parts) -> Vec<Request> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut requests = vec![
        Request::Logger(api::Logger {
            log_path: text(&parts.log_pipe),
            level: api::LogLevel::Warning,
            show_level: true,
        }),
        Request::Machine(api::MachineConfiguration {
            vcpu_count: parts.vcpu,
            mem_size_mib: parts.memory.whole_mib(),
        }),
        Request::BootSource(api::BootSource {
            kernel_image_path: text(&parts.kernel),
            initrd_path: text(&parts.initrd),
            boot_args: parts.boot_args.clone(),
        }),
    ];
    let limiter = api::RateLimiter::of_disk(&parts.limits);
    requests.extend(parts.disks.iter().map(|disk| drive(disk, limiter)));
    // The user-mode network is QEMU's own: `plan` gives such a guest none.
    if let Net::Tap { name, mac } = &parts.net {
        requests.push(Request::NetworkInterface(api::NetworkInterface {
            iface_id: "net".to_owned(),
            host_dev_name: name.clone(),
            guest_mac: mac.to_string(),
            rx_rate_limiter: api::RateLimiter::of_net(&parts.limits),
            tx_rate_limiter: api::RateLimiter::of_net(&parts.limits),
        }));
    }
    requests.push(Request::Entropy(api::EntropyDevice {}));
    requests.push(balloon());
    requests.push(Request::Vsock(api::Vsock {
        guest_cid: GUEST_CID,
        uds_path: text(&parts.vsock),
    }));
    requests
}

/// Of size zero: through it the guest tells which of its pages are free.
fn balloon() -> Request {
    Request::Balloon(api::Balloon {
        amount_mib: 0,
        deflate_on_oom: true,
        free_page_reporting: true,
    })
}

fn drive(disk: &Disk, rate_limiter: Option<api::RateLimiter>) -> Request {
    Request::Drive(api::Drive {
        drive_id: disk.name.to_owned(),
        path_on_host: disk.path.to_string_lossy().into_owned(),
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
