//! What systemd is told about the agent, under /run so that the image stays as it is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::init::AGENT_BINARY;
use super::power::Off;
use super::{config, during};
use crate::failure::Failure;

const NAME: &str = "banger-agent.service";

/// Writes the agent's unit and what wants it.
///
/// # Errors
/// Names the file that could not be written.
pub fn install(folder: &Path, off: Off) -> Result<(), Failure> {
    config::write_file(&folder.join(NAME), text().as_bytes(), 0o644)?;
    let wants = folder.join("sysinit.target.wants");
    fs::create_dir_all(&wants).map_err(during(format!("make {}", wants.display())))?;
    let link = wants.join(NAME);
    symlink(format!("../{NAME}"), &link).map_err(during(format!("make {}", link.display())))?;
    match off {
        Off::PowerOff => Ok(()),
        Off::Reboot => reset_instead(folder),
    }
}

/// Commands outlive the agent (`KillMode=process`), may make control groups of their
/// own (`Delegate`), and one that runs out of memory does not end the others
/// (`OOMPolicy`). It begins as early as systemd can, and is stopped with the rest.
fn text() -> String {
    format!(
        "[Unit]\n\
         Description=banger guest agent\n\
         DefaultDependencies=no\n\
         Conflicts=shutdown.target\n\
         Before=sysinit.target shutdown.target\n\
         After=systemd-tmpfiles-setup.service\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         ExecStart=@{AGENT_BINARY} banger-vsock-agent\n\
         Restart=always\n\
         KillMode=process\n\
         Delegate=yes\n\
         OOMPolicy=continue\n\
         TasksMax=infinity\n\
         LimitCORE=infinity\n\
         StandardInput=null\n"
    )
}

/// A `poweroff` typed in the guest must end the VMM too: where only a reset does, the
/// last step of systemd's power-off becomes one.
fn reset_instead(folder: &Path) -> Result<(), Failure> {
    let path = folder.join("systemd-poweroff.service.d/banger.conf");
    config::write_file(&path, b"[Unit]\nSuccessAction=reboot-force\n", 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_wanted_by_sysinit() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), Off::PowerOff).unwrap();
        let wanted = dir.path().join("sysinit.target.wants/banger-agent.service");
        assert!(
            fs::read_to_string(wanted)
                .unwrap()
                .contains("@/run/banger/agent banger-vsock-agent")
        );
        assert!(!dir.path().join("systemd-poweroff.service.d").exists());
    }

    #[test]
    fn where_only_a_reset_ends_the_vmm_power_off_becomes_one() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), Off::Reboot).unwrap();
        assert!(
            dir.path()
                .join("systemd-poweroff.service.d/banger.conf")
                .exists()
        );
    }
}
