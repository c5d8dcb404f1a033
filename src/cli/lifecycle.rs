//! `banger vm start|stop|restart|kill|delete|reset`: one request for each VM, all at
//! once, the outcome in the order given.

use argh::{ArgsInfo, FromArgs};

use super::context::Context;
use super::render;
use super::resolve::resolve_all;
use crate::failure::Failure;
use crate::proto::reply::{Reply, VmView};
use crate::proto::request::Request;

macro_rules! lifecycle {
    ($(#[$doc:meta])* $type:ident, $name:tt, $past:tt, $already:expr, [$($example:tt),*], $request:expr) => {
        $(#[$doc])*
        #[derive(Debug, FromArgs, ArgsInfo)]
        #[argh(
            subcommand,
            name = $name,
            note = "Several are handled at the same time; those that are known are handled though others are not.",
            $(example = $example),*
        )]
        pub struct $type {
            /// print nothing but failures
            #[argh(switch, short = 'q')]
            pub quiet: bool,
            /// name or id of a sandbox, or the beginning of its id
            #[argh(positional, arg_name = "name")]
            pub names: Vec<String>,
        }

        impl $type {
            /// Carries it out.
            pub fn run(self, context: &Context) -> Result<u8, Failure> {
                let said = Said { past: $past, already: $already };
                let said = if self.quiet { None } else { Some(said) };
                carry_out(context, $name, &self.names, said, $request)
            }
        }
    };
}

lifecycle! {
    /// Start sandboxes at rest; done when they are usable.
    VmStart, "start", "started", Some(("running", "runs already")),
    ["banger vm start dev", "banger vm start dev other"],
    |vm| Request::VmStart { vm }
}

lifecycle! {
    /// Power sandboxes off. What they have written is kept.
    VmStop, "stop", "stopped", Some(("stopped", "is stopped already")),
    ["banger vm stop dev", "banger vm list --quiet | xargs -r banger vm stop"],
    |vm| Request::VmStop { vm }
}

lifecycle! {
    /// Stop sandboxes and start them again.
    VmRestart, "restart", "restarted", None,
    ["banger vm restart dev"],
    |vm| Request::VmRestart { vm }
}

lifecycle! {
    /// End sandboxes without asking them: what they have not written yet is lost.
    VmKill, "kill", "killed", Some(("stopped", "is stopped already")),
    ["banger vm kill dev"],
    |vm| Request::VmKill { vm }
}

lifecycle! {
    /// Give sandboxes at rest a fresh root file system from their image; /root is kept.
    VmReset, "reset", "reset", None,
    ["banger vm stop dev && banger vm reset dev"],
    |vm| Request::VmReset { vm }
}

/// Delete sandboxes with all that is in them, running or not. On a terminal it asks before it deletes one that runs.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "delete",
    note = "Several are handled at the same time; those that are known are handled though others are not.",
    example = "banger vm delete dev",
    example = "banger vm rm --force dev other"
)]
pub struct VmDelete {
    /// do not ask
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// print nothing but failures
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// name or id of a sandbox, or the beginning of its id
    #[argh(positional, arg_name = "name")]
    pub names: Vec<String>,
}

impl VmDelete {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        if !self.force && !self.names.is_empty() && render::can_ask() {
            let vms = context.vms()?;
            let running: Vec<String> = resolve_all(&self.names, &vms)
                .into_iter()
                .flatten()
                .filter(|vm| vm.phase == "running")
                .map(|vm| vm.name.clone())
                .collect();
            let question = format!("Delete what runs: {}?", running.join(", "));
            if !running.is_empty() && !render::ask(&question)? {
                render::say("nothing deleted");
                return Ok(0);
            }
        }
        let said = Said {
            past: "deleted",
            already: None,
        };
        let done = if self.quiet { None } else { Some(said) };
        let request = |vm| Request::VmDelete { vm, force: true };
        carry_out(context, "delete", &self.names, done, request)
    }
}

/// What is said of a VM when its request is done.
#[derive(Debug, Clone, Copy)]
struct Said {
    past: &'static str,
    /// The phase in which there was nothing to do, and what is said then.
    already: Option<(&'static str, &'static str)>,
}

impl Said {
    fn of(self, before: &VmView) -> &'static str {
        match self.already {
            Some((phase, text)) if before.phase == phase => text,
            Some(_) | None => self.past,
        }
    }
}

fn carry_out(
    context: &Context,
    command: &str,
    names: &[String],
    said: Option<Said>,
    request: impl Fn(String) -> Request,
) -> Result<u8, Failure> {
    if names.is_empty() {
        return Err(
            Failure::usage(format!("`banger vm {command}` needs NAME")).hint(format!(
                "`banger vm list` shows the names, `banger vm {command} --help` more."
            )),
        );
    }
    let vms = context.vms()?;
    let targets = resolve_all(names, &vms);
    let requests = targets.iter().map(|target| {
        let id = target.as_ref().ok().map(|vm| vm.id.clone());
        id.map(&request)
    });
    let outcomes = context.ask_all(requests.collect());
    let mut status = 0;
    for (target, outcome) in targets.into_iter().zip(outcomes) {
        let outcome = target.and_then(|vm| finished(vm, outcome));
        match (outcome, said) {
            (Ok(vm), Some(said)) => render::line(&format!("{} {}", vm.name, said.of(vm))),
            (Ok(_), None) => {}
            (Err(failure), _) => {
                render::failure(&failure);
                status = if status == 0 {
                    failure.kind.exit_status()
                } else {
                    status
                };
            }
        }
    }
    Ok(status)
}

fn finished(vm: &VmView, outcome: Option<Result<Reply, Failure>>) -> Result<&VmView, Failure> {
    outcome.expect("every resolved VM was asked for")?;
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    #[test]
    fn what_was_so_already_is_said_and_what_was_not_is_not() {
        let stopped = samples::vm("0a1b2c3d", "dev");
        let stop = Said {
            past: "stopped",
            already: Some(("stopped", "is stopped already")),
        };
        assert_eq!(stop.of(&stopped), "is stopped already");
        let running = VmView {
            phase: "running".to_owned(),
            ..stopped
        };
        assert_eq!(stop.of(&running), "stopped");
    }
}
