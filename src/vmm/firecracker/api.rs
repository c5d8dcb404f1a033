//! The part of Firecracker's API (version 1.14) that we speak, as types.
//!
//! Names and shapes are those of its API definition; a test holds every body against
//! that definition and refuses fields it does not know.

use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::model::limits::Limits;
use crate::plan::step::{Fault, FaultKind};

use super::super::Deadline;
use super::http::{Connection, Response};

/// Something that is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `/logger`
    Logger(Logger),
    /// `/machine-config`
    Machine(MachineConfiguration),
    /// `/boot-source`
    BootSource(BootSource),
    /// `/drives/{drive_id}`
    Drive(Drive),
    /// `/network-interfaces/{iface_id}`
    NetworkInterface(NetworkInterface),
    /// `/entropy`
    Entropy(EntropyDevice),
    /// `/balloon`
    Balloon(Balloon),
    /// `/vsock`
    Vsock(Vsock),
    /// `/actions`
    Action(Action),
}

/// Where Firecracker writes its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// An existing file.
    pub log_path: String,
    /// The least level that is written.
    pub level: LogLevel,
    /// Whether each line says its level.
    pub show_level: bool,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// What went wrong and what may.
    Warning,
}

/// Processors and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineConfiguration {
    /// 1 to 32.
    pub vcpu_count: u8,
    /// MiB.
    pub mem_size_mib: u64,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// An uncompressed kernel.
    pub kernel_image_path: String,
    /// Its initial RAM disk.
    pub initrd_path: String,
    /// Its command line.
    pub boot_args: String,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Its name in the API.
    pub drive_id: String,
    /// The file.
    pub path_on_host: String,
    /// Whether the guest may only read.
    pub is_read_only: bool,
    /// Whether the kernel is told to mount it as root.
    pub is_root_device: bool,
    /// Whether the guest's flushes are carried out.
    pub cache_type: CacheType,
    /// What it is held to, by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// What a guest's flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum CacheType {
    /// Nothing.
    Unsafe,
    /// Brings what was written to the host's disk.
    Writeback,
}

/// A network device on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Its name in the API.
    pub iface_id: String,
    /// The tap.
    pub host_dev_name: String,
    /// The guest's Ethernet address.
    pub guest_mac: String,
    /// What goes to the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What comes from the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// How much a device may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    /// Tokens are bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A bucket that is full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    /// Tokens in it.
    pub size: u64,
    /// Milliseconds in which it fills.
    pub refill_time: u64,
}

impl TokenBucket {
    /// So many in a second; a second's worth at once.
    fn per_second(size: u64) -> TokenBucket {
        TokenBucket {
            size,
            refill_time: 1000,
        }
    }
}

impl RateLimiter {
    /// What each disk is held to.
    pub fn of_disk(limits: &Limits) -> Option<RateLimiter> {
        let ops = limits.disk_iops.map(u64::from).map(TokenBucket::per_second);
        let bandwidth = limits
            .disk_bandwidth
            .map(|rate| TokenBucket::per_second(rate.0));
        (ops.is_some() || bandwidth.is_some()).then_some(RateLimiter { bandwidth, ops })
    }

    /// What each direction of the network device is held to.
    pub fn of_net(limits: &Limits) -> Option<RateLimiter> {
        let rate = limits.net_bandwidth?;
        Some(RateLimiter {
            bandwidth: Some(TokenBucket::per_second(rate.0)),
            ops: None,
        })
    }
}

/// A source of random bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntropyDevice {}

/// What takes memory from the guest and gives it back to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balloon {
    /// Its size.
    pub amount_mib: u64,
    /// Whether a guest under pressure may take from it.
    pub deflate_on_oom: bool,
    /// Whether the guest tells which pages are free.
    pub free_page_reporting: bool,
    /// How often the guest counts its pages; not 0, so that what the balloon holds is told
    /// at all.
    pub stats_polling_interval_s: u32,
}

/// A balloon of another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BalloonUpdate {
    /// Its size.
    pub amount_mib: u64,
}

/// What a balloon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct BalloonStats {
    /// What it holds, MiB.
    pub actual_mib: u64,
}

/// A disk whose file is looked at anew: its length may be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriveUpdate {
    /// Its name in the API.
    pub drive_id: String,
    /// The file.
    pub path_on_host: String,
}

/// Something that is changed on a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patch {
    /// `/vm`
    State(VmState),
    /// `/balloon`
    Balloon(BalloonUpdate),
    /// `/drives/{drive_id}`
    Drive(DriveUpdate),
}

impl Patch {
    /// The path that it is sent to.
    pub fn path(&self) -> String {
        match self {
            Patch::State(_) => "/vm".to_owned(),
            Patch::Balloon(_) => "/balloon".to_owned(),
            Patch::Drive(drive) => format!("/drives/{}", drive.drive_id),
        }
    }

    /// What is sent there, as JSON.
    pub fn body(&self) -> Vec<u8> {
        match self {
            Patch::State(body) => json(body),
            Patch::Balloon(body) => json(body),
            Patch::Drive(body) => json(body),
        }
    }
}

/// The guest's vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// At least 3.
    pub guest_cid: u32,
    /// The host's side; calls of the guest arrive at `<uds_path>_<port>`.
    pub uds_path: String,
}

/// Something to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Boots the guest.
    InstanceStart,
}

/// The state that a running machine is brought into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum VmState {
    /// Its processors run on.
    Resumed,
}

/// The state that Firecracker reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// Not booted yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its processors run.
    Running,
    /// Its processors are stopped.
    Paused,
}

/// What Firecracker has been told, as far as we look.
#[derive(Debug, Deserialize)]
pub struct Told {
    /// The disks.
    #[serde(default)]
    pub drives: Vec<IgnoredAny>,
    /// The vsock.
    pub vsock: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Instance {
    state: InstanceState,
}

#[derive(Deserialize)]
struct Refusal {
    fault_message: String,
}

impl Request {
    /// The path that it is put to.
    pub fn path(&self) -> String {
        match self {
            Request::Logger(_) => "/logger".to_owned(),
            Request::Machine(_) => "/machine-config".to_owned(),
            Request::BootSource(_) => "/boot-source".to_owned(),
            Request::Drive(drive) => format!("/drives/{}", drive.drive_id),
            Request::NetworkInterface(device) => format!("/network-interfaces/{}", device.iface_id),
            Request::Entropy(_) => "/entropy".to_owned(),
            Request::Balloon(_) => "/balloon".to_owned(),
            Request::Vsock(_) => "/vsock".to_owned(),
            Request::Action(_) => "/actions".to_owned(),
        }
    }

    /// What is put there, as JSON.
    pub fn body(&self) -> Vec<u8> {
        match self {
            Request::Logger(body) => json(body),
            Request::Machine(body) => json(body),
            Request::BootSource(body) => json(body),
            Request::Drive(body) => json(body),
            Request::NetworkInterface(body) => json(body),
            Request::Entropy(body) => json(body),
            Request::Balloon(body) => json(body),
            Request::Vsock(body) => json(body),
            Request::Action(body) => json(body),
        }
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("structs of texts and numbers are JSON")
}

/// A connection to one Firecracker.
#[derive(Debug)]
pub struct Api {
    connection: Connection,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Api, Fault> {
        let connection = Connection::open(path, deadline)?;
        Ok(Api { connection })
    }

    /// Puts something.
    ///
    /// # Errors
    /// Firecracker refuses it, has ended (kind `Exited`) or does not answer in time.
    pub fn put(&mut self, request: &Request) -> Result<(), Fault> {
        self.exchange("PUT", &request.path(), &request.body())
            .map(drop)
    }

    /// Changes something of a machine that runs.
    ///
    /// # Errors
    /// As of [`Api::put`].
    pub fn patch(&mut self, patch: &Patch) -> Result<(), Fault> {
        self.exchange("PATCH", &patch.path(), &patch.body())
            .map(drop)
    }

    /// Whether there is a balloon.
    ///
    /// # Errors
    /// There is none (kind `Missing`), or Firecracker has ended.
    pub fn find_balloon(&mut self) -> Result<(), Fault> {
        let found = self.exchange("GET", "/balloon", b"").map(drop);
        found.map_err(|fault| match fault.kind {
            // A machine without one refuses to tell of it.
            FaultKind::Other => Fault {
                kind: FaultKind::Missing,
                ..fault
            },
            _ => fault,
        })
    }

    /// What the balloon does.
    pub fn balloon_stats(&mut self) -> Result<BalloonStats, Fault> {
        self.get("/balloon/statistics")
    }

    /// What the guest does.
    pub fn state(&mut self) -> Result<InstanceState, Fault> {
        self.get::<Instance>("/").map(|instance| instance.state)
    }

    /// What Firecracker has been told.
    pub fn machine(&mut self) -> Result<Told, Fault> {
        self.get("/vm/config")
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Fault> {
        let response = self.exchange("GET", path, b"")?;
        serde_json::from_slice(&response.body).map_err(|error| {
            Fault::new(
                FaultKind::Other,
                format!("ask firecracker GET {path}: {error}"),
            )
        })
    }

    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Response, Fault> {
        let response = self.connection.exchange(method, path, body)?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let reason = match serde_json::from_slice::<Refusal>(&response.body) {
            Ok(refusal) => refusal.fault_message,
            Err(_) => format!("status {}", response.status),
        };
        Err(Fault::new(
            FaultKind::Other,
            format!("ask firecracker {method} {path}: {reason}"),
        ))
    }
}
