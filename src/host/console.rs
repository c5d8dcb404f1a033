//! Keeps what a guest writes to its serial console, and keeps it small: a guest may
//! write as much as it likes, and this machine's disk is not its own.
//!
//! ```text
//!  VMM --standard output--> pipe --> banger role console-log FILE --> FILE
//! ```
//!
//! A process of its own, because the VMM outlives the daemon and neither VMM can bound
//! its output. It ends with the VMM: nobody holds the pipe's other end any more.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use crate::failure::Failure;

use super::process::Marker;

/// A log that grows beyond this loses its older part.
const LIMIT: u64 = 1 << 20;
/// What is kept then.
const KEPT: u64 = LIMIT / 4;
/// Stands where something was dropped.
const GAP: &[u8] = b"\n[banger: older lines were dropped]\n";

/// The words by which the process is started.
pub fn arguments(log: &Path) -> Vec<OsString> {
    vec!["role".into(), "console-log".into(), log.into()]
}

/// The words of its command line that only this log's process has.
pub fn marker(log: &Path) -> Marker {
    Marker::new(arguments(log))
}

/// The role `console-log`: copies standard input to the file, begun anew.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let [path] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    let path = Path::new(path);
    match Log::begin(path).and_then(|log| log.keep(io::stdin().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::failed(format!("write {}", path.display())).because(error);
            // There is nobody left to tell if this fails too.
            let _ = writeln!(io::stderr(), "console-log: {failure}");
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

struct Log {
    file: File,
    length: u64,
}

impl Log {
    fn begin(path: &Path) -> io::Result<Log> {
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true);
        let file = options.mode(0o600).open(path)?;
        Ok(Log { file, length: 0 })
    }

    /// Until the input ends. A full disk loses output and nothing else: a guest must not
    /// stop because its console is not read.
    fn keep(mut self, mut input: impl Read) -> io::Result<()> {
        let mut part = [0; 16 * 1024];
        let mut trouble = Ok(());
        loop {
            match input.read(&mut part) {
                Ok(0) => return trouble,
                Ok(length) => trouble = trouble.and(self.append(&part[..length])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        match self.length > LIMIT {
            true => self.drop_older(),
            false => Ok(()),
        }
    }

    fn drop_older(&mut self) -> io::Result<()> {
        let mut kept = Vec::new();
        self.file.seek(SeekFrom::Start(self.length - KEPT))?;
        (&self.file).take(KEPT).read_to_end(&mut kept)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(GAP)?;
        self.file.write_all(&kept)?;
        self.length = GAP.len() as u64 + kept.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(input: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        fs::write(&path, "of an earlier run").unwrap();
        Log::begin(&path).unwrap().keep(input).unwrap();
        fs::read(&path).unwrap()
    }

    #[test]
    fn little_output_is_kept_whole_and_an_earlier_run_is_not() {
        assert_eq!(kept(b"one\ntwo\n"), b"one\ntwo\n");
        assert_eq!(kept(b""), b"");
    }

    #[test]
    fn much_output_keeps_its_end_and_says_that_something_is_missing() {
        let mut input = vec![b'x'; 10 << 20];
        input.extend(b"the last line\n");
        let kept = kept(&input);
        assert!(kept.len() as u64 <= LIMIT);
        assert!(kept.starts_with(GAP));
        assert!(kept.ends_with(b"the last line\n"));
    }
}
