//! Inside a guest: `/init` of the initrd, then the agent. Needs nothing of the image.
//!
//! ```text
//!  kernel -> /init (init.rs): modules, disks, root, configuration
//!              | systemd mode: exec the image's systemd, which starts our unit
//!              | agent mode:   stay process 1 (first.rs), keep the agent running
//!              v
//!            agent (server.rs): one thread per vsock stream, one request per stream
//! ```
//!
//! Reading order: [`init`] tells the whole boot; `cmdline`, `modules`, `device`,
//! `root`, `grow`, `copy`, `dial`, `config`, `place`, `net` and `link` are its pieces;
//! `handover`, `unit` and `first` end it. [`server`] tells what a running guest does: `stream`,
//! `exec` with `command`, `child` and `terminal`, `unpack`, `adjust`, `power`, `clock`.
//!
//! Nothing here starts a program of the image to do its own work, waits by polling,
//! or prints except on the guest's console.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use crate::failure::Failure;

mod adjust;
mod child;
mod clock;
mod cmdline;
mod command;
mod config;
mod console;
mod copy;
mod device;
mod dial;
mod exec;
mod first;
mod grow;
mod handover;
mod init;
mod link;
mod modules;
mod net;
mod place;
mod power;
mod record;
mod root;
pub mod server;
pub mod stream;
mod template;
mod terminal;
#[cfg(test)]
mod trial;
mod unit;
mod unpack;

/// Where our own files of one boot lie in a guest; a mode of 0700 keeps others out.
const OUR_RUN: &str = "/run/banger";

/// Process 1 of a guest, as /init of the initrd. Ends by executing the image's init,
/// or never; a boot that cannot go on tells the host why and powers off.
pub fn init_main() -> ! {
    init::main()
}

/// The agent of a booted guest, role `banger-vsock-agent`. Serves until the guest
/// powers off; returns only where it could not begin.
pub fn agent_main() -> ExitCode {
    match server::main(Path::new(OUR_RUN)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::say(&failure.to_string());
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

/// Names the attempt around a cause: for `map_err`.
fn during<E: Display>(attempt: impl Into<String>) -> impl FnOnce(E) -> Failure {
    move |cause| Failure::failed(attempt).because(cause)
}
