//! Ends the boot: gives process 1 to the image's systemd, or keeps it.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::power::Off;
use super::record::{self, Journal};
use super::{OUR_RUN, during, first, unit};
use crate::failure::Failure;
use crate::proto::guest::{BootRecord, GuestConfig};

/// Where distributions keep systemd.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// Which process becomes number 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Systemd(&'static str),
    Agent,
}

impl First {
    fn word(self) -> &'static str {
        match self {
            First::Systemd(_) => "systemd",
            First::Agent => "agent",
        }
    }
}

/// Leaves the record for the agent and hands over; comes back only with the reason
/// why it could not.
pub fn hand_over(config: GuestConfig, off: Off, journal: Journal) -> Result<Infallible, Failure> {
    let found = SYSTEMD.into_iter().find(|path| Path::new(path).exists());
    let first = choose(&config.init, found)?;
    let record = BootRecord {
        init: first.word().to_owned(),
        off: off.word().to_owned(),
        env: config.env,
        workdir: config.workdir,
        entrypoint: config.entrypoint,
        phases: journal.phases,
        warnings: journal.warnings,
    };
    match first {
        First::Systemd(program) => {
            record::leave(Path::new(OUR_RUN), &record, &config.token)?;
            unit::install(Path::new("/run"), off)?;
            Err(become_systemd(program))
        }
        First::Agent => first::stay(record, &config.token, off),
    }
}

fn choose(wish: &str, found: Option<&'static str>) -> Result<First, Failure> {
    let refuse = |why: &str| Err(Failure::failed(format!("hand over to {wish:?}")).because(why));
    match (wish, found) {
        ("systemd" | "auto", Some(program)) => Ok(First::Systemd(program)),
        ("agent", _) | ("auto", None) => Ok(First::Agent),
        ("systemd", None) => refuse("the image has no systemd; start it with --init agent"),
        _ => refuse("an init mode is auto, systemd or agent"),
    }
}

fn become_systemd(program: &str) -> Failure {
    let error = Command::new(program)
        .arg0("/sbin/init")
        .env_clear()
        .env("TERM", "linux")
        .exec();
    during(format!("execute {program}"))(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_systemd_where_the_image_has_it() {
        assert_eq!(
            choose("auto", Some(SYSTEMD[0])).unwrap(),
            First::Systemd(SYSTEMD[0])
        );
        assert_eq!(choose("auto", None).unwrap(), First::Agent);
        assert_eq!(choose("agent", Some(SYSTEMD[0])).unwrap(), First::Agent);
    }

    #[test]
    fn systemd_that_is_not_there_is_refused_with_what_to_type() {
        assert!(
            choose("systemd", None)
                .unwrap_err()
                .to_string()
                .contains("--init agent")
        );
        assert!(choose("openrc", None).is_err());
    }
}
