//! `banger daemon status|stop`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::context::{Context, unexpected};
use super::render;
use super::words::span;
use crate::failure::{Failure, FailureKind};
use crate::proto::reply::Reply;
use crate::proto::request::Request;

/// How long a daemon may take to finish its steps; it gives itself ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Show the daemon: where it listens, where it logs, what it owns. Never starts one.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "status",
    example = "banger daemon status",
    example = "banger daemon status --json | jq .pid"
)]
pub struct DaemonStatus {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl DaemonStatus {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let status = match context.ask_running(Request::Status {})? {
            Reply::Status(status) => status,
            other => return Err(unexpected("status", &other)),
        };
        if self.json {
            render::json(&status);
            return Ok(0);
        }
        context.show(&[
            ("version", status.version),
            ("pid", status.pid.to_string()),
            ("socket", status.socket),
            ("log", status.log),
            ("up", span(status.uptime_s)),
            ("vms", format!("{}, {} running", status.vms, status.running)),
        ]);
        Ok(0)
    }
}

/// End the daemon. Sandboxes stay up; the next command starts a daemon that takes them over.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "stop", example = "banger daemon stop")]
pub struct DaemonStop {}

impl DaemonStop {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let status = match context.ask_running(Request::Status {}) {
            Ok(Reply::Status(status)) => status,
            Ok(other) => return Err(unexpected("status", &other)),
            Err(failure) if failure.kind == FailureKind::Unreachable => {
                render::say("bangerd does not run");
                return Ok(0);
            }
            Err(failure) => return Err(failure),
        };
        // Opened while it surely runs, so that the number means this process.
        let process = i32::try_from(status.pid)
            .ok()
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let asked = context.ask_running(Request::Shutdown {});
        match (asked, process) {
            // One that is quick to go may not get its answer out: its end is the answer.
            (Ok(_), Some(process)) => wait_for_end(&process)?,
            (Err(failure), Some(process)) if failure.kind == FailureKind::Unreachable => {
                wait_for_end(&process)?;
            }
            (asked, _) => drop(asked?),
        }
        render::line("bangerd stopped");
        Ok(0)
    }
}

/// Waits until the daemon has saved and gone: the next command must not meet it.
fn wait_for_end(process: &OwnedFd) -> Result<(), Failure> {
    match ends_within(process, STOP_LIMIT) {
        Ok(false) => Err(
            Failure::failed("stop bangerd: it is still finishing what it had begun")
                .hint("`banger daemon status` names its log."),
        ),
        Ok(true) => Ok(()),
        Err(error) => Err(Failure::failed("wait for bangerd to end").because(error)),
    }
}

/// Whether a process, by its pidfd, ends in this time.
pub fn ends_within(process: &OwnedFd, limit: Duration) -> rustix::io::Result<bool> {
    let limit = Timespec::try_from(limit).expect("a minute fits");
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit))).map(|ready| ready > 0)
}
