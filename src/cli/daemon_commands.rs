//! `banger daemon status|stop`.

use argh::{ArgsInfo, FromArgs};

use super::context::{Context, unexpected};
use super::render;
use super::words::span;
use crate::failure::{Failure, FailureKind};
use crate::proto::reply::Reply;
use crate::proto::request::Request;

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
        match context.ask_running(Request::Shutdown {}) {
            Ok(_) => render::line("bangerd stopped"),
            Err(failure) if failure.kind == FailureKind::Unreachable => {
                render::say("bangerd does not run");
            }
            Err(failure) => return Err(failure),
        }
        Ok(0)
    }
}
