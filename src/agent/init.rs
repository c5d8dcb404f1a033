//! Process 1 of the initrd: the whole boot, in its order.
//!
//! ```text
//!  /proc /sys /dev /run -> command line -> modules -> host dialled, answers with the configuration
//!                                  \-> disks mounted as they appear, joined as the root
//!  switch root -> configuration, network -> hand over (handover.rs)
//! ```
//!
//! It never hangs and never dies silently: what stops it is said on the console and
//! to the host, then the machine is switched off.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::thread;

use rustix::mount::{MountFlags, mount, mount_bind};

use super::cmdline;
use super::modules::Modules;
use super::power::{self, Off};
use super::record::Journal;
use super::root::{self, Disks};
use super::{OUR_RUN, config, console, dial, during, handover, net, template};
use crate::failure::Failure;
use crate::proto::guest::GuestConfig;

/// Where the agent's binary is found once the root is the image's.
pub const AGENT_BINARY: &str = "/run/banger/agent";

/// What giving up takes.
#[derive(Default)]
struct Known {
    /// How this machine is switched off.
    off: Off,
    /// What the host believes us by, once it has said so.
    token: Option<String>,
}

/// Boots, or says why not and switches off.
pub fn main() -> ! {
    let mut known = Known::default();
    let Err(failure) = boot(&mut known);
    give_up(&failure.to_string(), known)
}

/// Says why on the console and to the host, then switches off.
fn give_up(what: &str, known: Known) -> ! {
    console::say(&format!("this guest cannot go on and switches off: {what}"));
    if let Err(failure) = dial::failed(what.to_owned(), known.token) {
        console::say(&failure.to_string());
    }
    let failure = power::switch_off(known.off);
    console::say(&failure.to_string());
    // Nothing is left to do; ending process 1 panics the kernel, which the VMM sees.
    std::process::exit(1)
}

fn boot(known: &mut Known) -> Result<Infallible, Failure> {
    let mut journal = Journal::default();
    journal.mark("kernel");
    mount_kernel_folders()?;
    let words = cmdline::read()?;
    known.off = words.off;
    let mut modules = Modules::listed()?;
    if words.template {
        modules.load_without_devices()?;
        template::pause(&mut journal)?;
    }
    let disks = Disks::begin(&words)?;
    modules.load()?;
    journal.mark("modules");
    let config = with_root_joined(disks, &mut journal)?;
    known.token = Some(config.token.clone());
    match (config::seed(&config.seed), words.template) {
        (Err(failure), true) => return Err(failure),
        (seeded, _) => journal.tolerate(seeded),
    }
    leave_initrd()?;
    root::switch()?;
    journal.mark("root");
    config::apply(&config, &mut journal);
    net::up(config.interface.as_ref(), &mut journal);
    journal.mark("configured");
    handover::hand_over(config, words.off, journal)
}

/// The host answers while the disks are mounted.
fn with_root_joined(disks: Disks, journal: &mut Journal) -> Result<GuestConfig, Failure> {
    let release = kernel_release();
    let asked = release.clone();
    let answer = thread::spawn(move || dial::hello(asked));
    disks.join(&release, journal)?;
    journal.mark("disks");
    let config = answer.join().expect("a panic ends the process")?;
    journal.mark("host answered");
    Ok(config)
}

/// `uname -r`.
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn mount_kernel_folders() -> Result<(), Failure> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("proc", "/proc", safe | MountFlags::NOEXEC, None)?;
    mount_at("sysfs", "/sys", safe | MountFlags::NOEXEC, None)?;
    mount_at("devtmpfs", "/dev", MountFlags::NOSUID, None)?;
    // Not NOEXEC: the agent's binary is executed from here.
    mount_at("tmpfs", "/run", safe, Some(c"mode=0755"))
}

/// Mounts a file system that has no device, making its folder where missing.
///
/// # Errors
/// Names the folder.
pub fn mount_at(
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: Option<&std::ffi::CStr>,
) -> Result<(), Failure> {
    let attempt = format!("mount {kind} at {target}");
    fs::create_dir_all(target).map_err(during(attempt.clone()))?;
    mount(kind, target, kind, flags, options).map_err(during(attempt))
}

/// Keeps our binary reachable, as a mount in /run rather than a copy, and gives the
/// memory of the modules' files back.
fn leave_initrd() -> Result<(), Failure> {
    let attempt = || during::<std::io::Error>(format!("keep /init as {AGENT_BINARY}"));
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(OUR_RUN)
        .map_err(attempt())?;
    fs::File::create_new(AGENT_BINARY).map_err(attempt())?;
    mount_bind("/init", Path::new(AGENT_BINARY))
        .map_err(during(format!("keep /init as {AGENT_BINARY}")))?;
    match fs::remove_dir_all("/modules") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(during("remove /modules of the initrd")(error))
        }
        _ => Ok(()),
    }
}
