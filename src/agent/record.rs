//! What a boot leaves behind: its phases, its warnings, and the record that `/init`
//! hands to the agent through a file in /run.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use super::during;
use crate::failure::Failure;
use crate::proto::guest::BootRecord;

const FILE: &str = "boot.json";
/// Until the host has been told that the agent listens.
const TOKEN_FILE: &str = "token";

/// The phases of this boot and what was skipped in it.
#[derive(Debug, Default)]
pub struct Journal {
    /// Name and end of each phase, milliseconds since the kernel started.
    pub phases: Vec<(String, u64)>,
    /// What was skipped, in words for people.
    pub warnings: Vec<String>,
}

impl Journal {
    /// Notes that a phase ends now.
    pub fn mark(&mut self, phase: &str) {
        self.phases.push((phase.to_owned(), uptime_ms()));
    }

    /// Notes something that was skipped and goes on.
    pub fn skip(&mut self, failure: &Failure) {
        self.warnings.push(failure.to_string());
    }

    /// Notes the failure of a step that a boot can do without.
    pub fn tolerate(&mut self, step: Result<(), Failure>) {
        if let Err(failure) = step {
            self.skip(&failure);
        }
    }
}

/// Milliseconds since the kernel started, time asleep included.
pub fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Leaves the record for the agent, and the token that the host will believe it by.
/// `directory` is made, readable by root only: the environment may hold secrets.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn leave(directory: &Path, record: &BootRecord, token: &str) -> Result<(), Failure> {
    let text = serde_json::to_vec(record).map_err(during("write the boot record"))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(during(format!("make {}", directory.display())))?;
    write_for_root(&directory.join(TOKEN_FILE), token.as_bytes())?;
    write_for_root(&directory.join(FILE), &text)
}

fn write_for_root(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let attempt = || during::<io::Error>(format!("write {}", path.display()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(attempt())?;
    file.write_all(content).map_err(attempt())
}

/// The token, unless it has done its work.
///
/// # Errors
/// The file cannot be read.
pub fn token(directory: &Path) -> Result<Option<String>, Failure> {
    let path = directory.join(TOKEN_FILE);
    match fs::read_to_string(&path) {
        Ok(token) => Ok(Some(token)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(during(format!("read {}", path.display()))(error)),
    }
}

/// The host believes nobody by it any more.
///
/// # Errors
/// The file cannot be removed.
pub fn forget_token(directory: &Path) -> Result<(), Failure> {
    let path = directory.join(TOKEN_FILE);
    fs::remove_file(&path).map_err(during(format!("remove {}", path.display())))
}

/// Reads what `/init` left.
///
/// # Errors
/// The file is missing or is not one of this version.
pub fn find(directory: &Path) -> Result<BootRecord, Failure> {
    let path = directory.join(FILE);
    let attempt = format!("read {}", path.display());
    let text = fs::read(&path).map_err(during(attempt.clone()))?;
    serde_json::from_slice(&text).map_err(during(attempt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_left_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let record = BootRecord {
            init: "agent".to_owned(),
            off: "reboot".to_owned(),
            env: vec![("A".to_owned(), "b c".to_owned())],
            workdir: None,
            entrypoint: Vec::new(),
            phases: vec![("init".to_owned(), 3)],
            warnings: vec!["x".to_owned()],
        };
        let room = dir.path().join("banger");
        leave(&room, &record, "00ff").unwrap();
        assert_eq!(find(&room).unwrap(), record);
        assert_eq!(token(&room).unwrap().as_deref(), Some("00ff"));
    }

    #[test]
    fn token_that_was_forgotten_is_none() {
        let dir = tempfile::tempdir().unwrap();
        write_for_root(&dir.path().join(TOKEN_FILE), b"00ff").unwrap();
        forget_token(dir.path()).unwrap();
        assert_eq!(token(dir.path()).unwrap(), None);
    }
}
