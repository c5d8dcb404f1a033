//! `bangerd-root remove-network`: takes away what VMs share on this machine, which no
//! stop and no deletion removes: the firewall tables, the bridge, the forwarding that we
//! switched on. For whoever removes banger; it refuses while a VM has a tap.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{CONFIG, nowhere};
use crate::config::Config;
use crate::failure::{Failure, FailureKind};
use crate::host::{RealHost, Settings};

/// Carries it out.
///
/// # Errors
/// Not root, a VM has a tap, or something of it cannot be removed.
pub fn run(arguments: &[OsString]) -> Result<(), Failure> {
    let config = Config::read(&config_path(arguments)?)?;
    let bridge = config.bridge();
    refuse_in_use(&bridge, Path::new("/sys/class/net"))?;
    let settings = Settings {
        bridge: bridge.clone(),
        ..Settings::default()
    };
    let host = RealHost::new(nowhere(), settings);
    host.remove_network().map_err(|fault| {
        Failure::failed(format!("remove the network of bridge {bridge}")).because(fault)
    })?;
    log::info!(bridge = bridge.as_str(); "network removed");
    Ok(())
}

fn config_path(arguments: &[OsString]) -> Result<PathBuf, Failure> {
    match arguments {
        [] => Ok(PathBuf::from(CONFIG)),
        [option, path] if option == "--config" => Ok(PathBuf::from(path)),
        _ => Err(Failure::usage("read the options of remove-network")
            .hint("Type `bangerd-root remove-network [--config PATH]`.")),
    }
}

/// A bridge's ports are listed in its folder `brif` of sysfs; none, no bridge.
fn refuse_in_use(bridge: &str, interfaces: &Path) -> Result<(), Failure> {
    let what = format!("remove bridge {bridge}");
    let ports = match std::fs::read_dir(interfaces.join(bridge).join("brif")) {
        Ok(ports) => ports.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(Failure::failed(what).because(error)),
    };
    match ports {
        0 => Ok(()),
        ports => Err(Failure::new(FailureKind::Busy, what)
            .because(format!("{ports} interfaces are attached to it"))
            .hint("Stop the VMs first: `banger vm stop`.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_with_a_tap_is_refused_and_one_without_or_none_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let ports = folder.path().join("banger0/brif");
        refuse_in_use("banger0", folder.path()).unwrap();
        std::fs::create_dir_all(&ports).unwrap();
        refuse_in_use("banger0", folder.path()).unwrap();
        std::fs::create_dir(ports.join("bgr-00000001")).unwrap();
        let failure = refuse_in_use("banger0", folder.path()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Busy);
    }

    #[test]
    fn only_the_configuration_can_be_named() {
        let read =
            |words: &[&str]| config_path(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(read(&[]).unwrap(), PathBuf::from(CONFIG));
        assert_eq!(read(&["--config", "/c"]).unwrap(), PathBuf::from("/c"));
        assert_eq!(
            read(&["--force", "1"]).unwrap_err().kind,
            FailureKind::Usage
        );
    }
}
