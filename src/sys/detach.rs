//! A child in a session of its own: no signal of our terminal reaches it.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command start in a new session (setsid(2)), without a controlling
/// terminal, so that neither Ctrl-C nor a hang-up of the caller's terminal ends it.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    let become_leader = || {
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes one system call; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(become_leader) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_child_leads_its_own_session() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "read -r _ _ _ _ _ session _ </proc/self/stat; echo $session $$",
        ]);
        let output = in_new_session(&mut command).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (session, pid) = text.trim().split_once(' ').unwrap();
        assert_eq!(session, pid);
    }
}
