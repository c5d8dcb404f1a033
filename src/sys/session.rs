//! Puts a child into a session of its own before it executes its program.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Whether the child's standard input becomes its controlling terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControllingTerminal {
    /// Standard input is a terminal and controls the new session.
    StandardInput,
    /// The session has no terminal.
    None,
}

/// Makes the child the leader of a new session and process group, so that a signal
/// for the group reaches all that it starts and nothing of ours.
pub fn lead_session(command: &mut Command, terminal: ControllingTerminal) {
    let prepare = move || {
        rustix::process::setsid()?;
        if terminal == ControllingTerminal::StandardInput {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made, which are
    // async-signal-safe; nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_leads_its_own_session() {
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "read -r _ _ _ _ group session _ </proc/$$/stat; [ $group = $$ ] && [ $session = $$ ]",
        ]);
        lead_session(&mut command, ControllingTerminal::None);
        assert!(command.status().unwrap().success());
    }
}
