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
pub fn install(run: &Path, off: Off) -> Result<(), Failure> {
    let folder = run.join("systemd/system");
    config::write_file(&folder.join(NAME), text().as_bytes(), 0o644)?;
    let wants = folder.join("sysinit.target.wants");
    fs::create_dir_all(&wants).map_err(during(format!("make {}", wants.display())))?;
    let link = wants.join(NAME);
    symlink(format!("../{NAME}"), &link).map_err(during(format!("make {}", link.display())))?;
    mask_generators(&folder.with_file_name("system-generators"))?;
    keep_temporary_files(&run.join("tmpfiles.d"))?;
    match off {
        Off::PowerOff => Ok(()),
        Off::Reboot => reset_instead(&folder),
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

/// Programs that systemd would start first, one after another, to look for what a guest
/// of ours never has: encrypted or verified disks, partitions to discover, a suspended
/// system, a login on the console. A file of the image's own under /etc still wins.
const GENERATORS: [&str; 9] = [
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-system-update-generator",
    "systemd-veritysetup-generator",
];

/// Each of them costs a boot under emulation tens of milliseconds (systemd.generator(7)
/// has the link to /dev/null as the way to leave one out).
fn mask_generators(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(during(format!("make {}", folder.display())))?;
    GENERATORS.iter().try_for_each(|name| {
        let link = folder.join(name);
        symlink("/dev/null", &link).map_err(during(format!("make {}", link.display())))
    })
}

/// Commands may run before systemd has set up everything, and a VM that is started
/// again keeps every file: /tmp is aged as systemd's own default has it, and not
/// emptied at each boot as Debian's.
fn keep_temporary_files(folder: &Path) -> Result<(), Failure> {
    let text = "q /tmp 1777 root root 10d\nq /var/tmp 1777 root root 30d\n";
    config::write_file(&folder.join("tmp.conf"), text.as_bytes(), 0o644)
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
        let wanted = dir
            .path()
            .join("systemd/system/sysinit.target.wants/banger-agent.service");
        assert!(
            fs::read_to_string(wanted)
                .unwrap()
                .contains("@/run/banger/agent banger-vsock-agent")
        );
        assert!(
            !dir.path()
                .join("systemd/system/systemd-poweroff.service.d")
                .exists()
        );
    }

    #[test]
    fn where_only_a_reset_ends_the_vmm_power_off_becomes_one() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), Off::Reboot).unwrap();
        assert!(
            dir.path()
                .join("systemd/system/systemd-poweroff.service.d/banger.conf")
                .exists()
        );
    }
}
