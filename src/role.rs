//! Decides by the name it is called by which role this process plays.
//!
//! Exact names only; anything else is the command line. The role grants nothing:
//! privilege comes from who started the process. `banger role NAME …` plays a role
//! without a link of that name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use crate::host::{console, launcher};
use crate::vmm::fitness;
use crate::{agent, cli, daemon, helper};

/// A role of the one binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The user's command line.
    CommandLine,
    /// The daemon.
    Daemon,
    /// The root helper.
    RootHelper,
    /// The agent inside a guest.
    Agent,
    /// The first process of a guest, in its initrd.
    Init,
    /// Between fork and VMM: joins the control group, then executes it.
    Launch,
    /// Keeps a guest's console output, bounded.
    ConsoleLog,
    /// Runs a tiny guest to see whether KVM is fit; killed at a deadline.
    KvmProbe,
}

impl Role {
    /// The role that an exact name means.
    fn from_name(name: &OsStr) -> Option<Role> {
        match name.as_bytes() {
            b"bangerd" => Some(Role::Daemon),
            b"bangerd-root" => Some(Role::RootHelper),
            b"banger-vsock-agent" => Some(Role::Agent),
            b"launch" => Some(Role::Launch),
            b"console-log" => Some(Role::ConsoleLog),
            b"kvm-probe" => Some(Role::KvmProbe),
            _ => None,
        }
    }
}

/// Plays the role that this process was called for; its exit status.
pub fn run() -> ExitCode {
    let (role, arguments) = decide(std::env::args_os().collect(), std::process::id());
    if let Some(text) = about(role, &arguments) {
        cli::render::out(&text);
        return ExitCode::SUCCESS;
    }
    match role {
        Role::Launch => launcher::run(arguments),
        Role::ConsoleLog => console::run(arguments),
        Role::KvmProbe => fitness::run(),
        Role::Init => agent::init_main(),
        Role::Agent => agent::agent_main(),
        Role::Daemon => daemon::main(&arguments),
        Role::CommandLine => cli::main(arguments, daemon::wire_up::look),
        Role::RootHelper => helper::main(&arguments),
    }
}

/// What a service says of itself when it is asked to, instead of starting.
fn about(role: Role, arguments: &[OsString]) -> Option<String> {
    let help = match role {
        Role::Daemon => DAEMON_HELP,
        Role::RootHelper => ROOT_HELPER_HELP,
        Role::CommandLine
        | Role::Agent
        | Role::Init
        | Role::Launch
        | Role::ConsoleLog
        | Role::KvmProbe => return None,
    };
    let words = arguments.iter().map(|word| word.as_bytes());
    let asks = |wanted: &[&[u8]]| words.clone().any(|word| wanted.contains(&word));
    match (asks(&[b"--help", b"-h"]), asks(&[b"--version", b"-V"])) {
        (true, _) => Some(help.to_owned()),
        (false, true) => Some(format!("{}\n", crate::version::one_line())),
        (false, false) => None,
    }
}

const DAEMON_HELP: &str = "\
bangerd: owns the sandboxes, images and kernels of one user.

Usage: bangerd

The first `banger` command that needs it starts it; a service manager may, too. It takes
its settings from the configuration file, which `banger config show` prints, and its
directories from BANGER_STATE_DIR, BANGER_RUNTIME_DIR and BANGER_CACHE_DIR. SIGTERM or
`banger daemon stop` ends it; sandboxes stay up.
";

const ROOT_HELPER_HELP: &str = "\
bangerd-root: carries out the few steps that need root for one user's bangerd.

Usage: bangerd-root --owner UID [--socket PATH] [--config PATH]
       bangerd-root remove-network [--config PATH]

  --owner    the user whose bangerd is served
  --socket   where to listen
  --config   root's own configuration, of which it takes the bridge and its network
";

/// The role of a process with this command line and process id, and the arguments
/// that are left for the role.
pub fn decide(mut argv: Vec<OsString>, pid: u32) -> (Role, Vec<OsString>) {
    let name = argv.first().map(Path::new).and_then(Path::file_name);
    let name = name.map(OsStr::to_owned).unwrap_or_default();
    if pid == 1 && name == "init" {
        return (Role::Init, argv.split_off(1));
    }
    // Helper names are no link names: they are reached by `role NAME` only.
    let helpers = [Role::Launch, Role::ConsoleLog, Role::KvmProbe];
    let linked = Role::from_name(&name).filter(|role| !helpers.contains(role));
    if let Some(role) = linked {
        let rest = argv.split_off(1);
        return match rest.first().is_some_and(|word| word == "role") {
            true => by_word(rest),
            false => (role, rest),
        };
    }
    let rest = argv.split_off(argv.len().min(1));
    match rest.first().is_some_and(|word| word == "role") {
        true => by_word(rest),
        false => (Role::CommandLine, rest),
    }
}

fn by_word(mut rest: Vec<OsString>) -> (Role, Vec<OsString>) {
    match rest.get(1).and_then(|name| Role::from_name(name)) {
        Some(role) => (role, rest.split_off(2)),
        None => (Role::CommandLine, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(argv: &[&str], pid: u32) -> (Role, Vec<OsString>) {
        decide(argv.iter().map(OsString::from).collect(), pid)
    }

    #[test]
    fn exact_names_decide_and_anything_else_is_the_command_line() {
        assert_eq!(role(&["/usr/bin/bangerd"], 7).0, Role::Daemon);
        assert_eq!(role(&["bangerd-root"], 7).0, Role::RootHelper);
        assert_eq!(role(&["banger-vsock-agent"], 7).0, Role::Agent);
        assert_eq!(role(&["bangerd2", "vm"], 7).0, Role::CommandLine);
        assert_eq!(role(&["launch"], 7).0, Role::CommandLine);
        assert_eq!(role(&[], 7).0, Role::CommandLine);
    }

    #[test]
    fn services_say_what_they_are_and_guests_roles_do_not() {
        let asked = |role, word: &str| about(role, &[OsString::from(word)]);
        let help = asked(Role::Daemon, "--help").unwrap();
        assert!(help.contains("Usage: bangerd\n"), "{help}");
        let help = asked(Role::RootHelper, "-h").unwrap();
        assert!(help.contains("--owner UID"), "{help}");
        let version = asked(Role::Daemon, "--version").unwrap();
        assert_eq!(version.trim_end(), crate::version::one_line());
        assert_eq!(asked(Role::Launch, "--help"), None);
        assert_eq!(about(Role::Daemon, &[]), None);
    }

    #[test]
    fn init_is_process_one_only() {
        assert_eq!(role(&["/init"], 1).0, Role::Init);
        assert_eq!(role(&["/init"], 2).0, Role::CommandLine);
    }

    #[test]
    fn role_word_plays_a_role_and_keeps_its_arguments() {
        let (seen, rest) = role(&["banger", "role", "launch", "--id", "x"], 7);
        assert_eq!(seen, Role::Launch);
        assert_eq!(rest, ["--id", "x"]);
        let (seen, rest) = role(&["banger", "role", "nobody"], 7);
        assert_eq!(seen, Role::CommandLine);
        assert_eq!(rest, ["role", "nobody"]);
    }
}
