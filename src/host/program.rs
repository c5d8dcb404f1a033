//! The few programs of the host that we run to completion: found, bounded in time,
//! their complaint kept.
//!
//! A program runs with a clean environment (no `LD_PRELOAD`, messages in English)
//! and with nothing of ours open. Long-lived processes are not started here.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::plan::step::{Fault, FaultKind};

use super::fault::fault;
use super::pipes::Pipes;

/// Where system programs lie that an ordinary user's PATH leaves out (Debian).
const SYSTEM_DIRECTORIES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The program's file: first on PATH, then in the system's directories.
pub fn find(name: &str) -> Option<PathBuf> {
    directories()
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// PATH with the system's directories behind it, for a program that runs others.
pub fn search_path() -> OsString {
    std::env::join_paths(directories()).unwrap_or_else(|_| SYSTEM_DIRECTORIES.join(":").into())
}

fn directories() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named: Vec<PathBuf> = std::env::split_paths(&path).collect();
    named
        .into_iter()
        .chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
}

/// Where the programs of VMMs are looked for: the configuration first, then PATH and the
/// system's directories, then where cargo installs, then our own set-up's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programs {
    named: BTreeMap<String, PathBuf>,
    tools: PathBuf,
}

impl Programs {
    /// `named` is what the configuration says, by the program's usual name; `tools` is
    /// the folder that the set-up script fills.
    pub fn new(named: BTreeMap<String, PathBuf>, tools: PathBuf) -> Programs {
        Programs { named, tools }
    }

    /// The program's file. One that the configuration names is not looked for elsewhere:
    /// a wrong path is to be seen, not worked around.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        if let Some(named) = self.named.get(name) {
            return Some(named.clone()).filter(|path| is_executable(path));
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let cargo = home.map(|home| home.join(".cargo/bin").join(name));
        find(name)
            .or(cargo.filter(|path| is_executable(path)))
            .or(Some(self.tools.join(name)).filter(|path| is_executable(path)))
    }

    /// The same, with places that come before PATH.
    pub fn find_beside(
        &self,
        name: &str,
        mut places: impl Iterator<Item = PathBuf>,
    ) -> Option<PathBuf> {
        match self.named.contains_key(name) {
            true => self.find(name),
            false => places
                .find(|path| is_executable(path))
                .or_else(|| self.find(name)),
        }
    }

    /// The program's file, or a fault that says how to get it.
    ///
    /// # Errors
    /// It is not installed, or the configuration names a file that is no program.
    pub fn require(&self, name: &str, how: &str) -> Result<PathBuf, Fault> {
        self.find(name).ok_or_else(|| {
            let what = match self.named.get(name) {
                Some(named) => format!(
                    "run {}: the configuration names it for {name}, and it is no program",
                    named.display()
                ),
                None => format!("find the program {name}: it is not installed; {how}"),
            };
            Fault::new(FaultKind::Missing, what)
        })
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The program's file, or a fault that names the package to install.
pub fn require(name: &str, package: &str) -> Result<PathBuf, Fault> {
    find(name).ok_or_else(|| {
        Fault::new(
            FaultKind::Missing,
            format!(
                "find the program {name}: it is not installed; run `apt-get install {package}`"
            ),
        )
    })
}

/// What a program left behind.
#[derive(Debug)]
pub struct Outcome {
    /// Whether its exit status was 0.
    pub success: bool,
    /// What it wrote to standard output, its last MiB.
    pub output: String,
    /// What it wrote to standard error, its last MiB, trimmed.
    pub complaint: String,
}

/// Runs a program with this standard input and waits; it is killed at the deadline.
pub fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
    deadline: Duration,
) -> Result<Outcome, Fault> {
    let attempt = || format!("run {}", program.display());
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", SYSTEM_DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| fault(attempt(), error))?;
    let seen = Pipes::of(&mut child, input).and_then(|pipes| pipes.serve(deadline));
    let Some([output, complaint]) = seen.map_err(|error| fault(attempt(), error))? else {
        // Reaped at once; a program that ignores SIGKILL does not exist.
        let _ = child.kill();
        let _ = child.wait();
        return Err(Fault::new(
            FaultKind::Timeout,
            format!("{}: not done after {} s", attempt(), deadline.as_secs()),
        ));
    };
    let status = child.wait().map_err(|error| fault(attempt(), error))?;
    Ok(Outcome {
        success: status.success(),
        output,
        complaint: complaint.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, Signal};

    use super::*;

    #[test]
    fn a_named_program_is_the_only_one_looked_for_and_tools_come_last() {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("banger-test-tool");
        std::fs::write(&tool, "").unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let programs = Programs::new(BTreeMap::new(), folder.path().to_owned());
        assert_eq!(programs.find("banger-test-tool"), Some(tool));
        let wrong = BTreeMap::from([("sh".to_owned(), folder.path().join("none"))]);
        let programs = Programs::new(wrong, folder.path().to_owned());
        let fault = programs.require("sh", "install it").unwrap_err();
        assert!(fault.what.contains("the configuration names it"), "{fault}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let fault = require("no-such-program-of-ours", "somepackage").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Missing);
        assert!(
            fault.what.contains("apt-get install somepackage"),
            "{fault}"
        );
    }

    #[test]
    fn output_status_and_complaint_are_kept_apart() {
        let shell = find("sh").unwrap();
        let outcome = run(
            &shell,
            ["-c", "cat; echo oops >&2; exit 3"],
            b"in",
            Duration::from_secs(20),
        )
        .unwrap();
        assert!(!outcome.success);
        assert_eq!(outcome.output, "in");
        assert_eq!(outcome.complaint, "oops");
    }

    #[test]
    fn a_program_that_writes_and_reads_more_than_a_pipe_holds_comes_to_its_end() {
        let shell = find("sh").unwrap();
        let script = "head -c 1048576 /dev/zero | tr '\\0' o; head -c 1048576 /dev/zero | tr '\\0' e >&2; wc -c";
        let input = vec![b'i'; 1 << 20];
        let outcome = run(&shell, ["-c", script], &input, Duration::from_secs(60)).unwrap();
        assert!(outcome.success);
        assert_eq!(outcome.complaint.len(), 1 << 20);
        // The last MiB is kept: the count of the input has pushed out as many letters.
        assert_eq!(outcome.output.len(), 1 << 20);
        assert!(outcome.output.starts_with("oo") && outcome.output.ends_with("o1048576\n"));
    }

    #[test]
    fn a_program_that_leaves_a_child_with_its_pipes_is_done_when_it_ends_itself() {
        let shell = find("sh").unwrap();
        let script = "tail -f /dev/null & echo $!";
        let outcome = run(&shell, ["-c", script], b"", Duration::from_secs(60)).unwrap();
        let left = Pid::from_raw(outcome.output.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(left, Signal::KILL).unwrap();
    }

    #[test]
    fn a_program_that_leaves_a_child_that_writes_on_is_done_when_it_ends_itself() {
        let shell = find("sh").unwrap();
        let outcome = run(
            &shell,
            ["-c", "yes & echo started"],
            b"",
            Duration::from_secs(60),
        )
        .unwrap();
        assert!(outcome.success);
    }

    #[test]
    fn a_program_past_its_deadline_is_killed_silent_or_not() {
        let shell = find("sh").unwrap();
        for script in ["exec tail -f /dev/null", "exec yes", "exec yes >&2"] {
            let fault = run(&shell, ["-c", script], b"", Duration::from_millis(50));
            assert_eq!(fault.unwrap_err().kind, FaultKind::Timeout, "{script}");
        }
    }
}
