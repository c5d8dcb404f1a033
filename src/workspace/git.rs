//! How git is run on this host.
//!
//! The caller's `GIT_*` variables are taken away, because `GIT_DIR` or
//! `GIT_INDEX_FILE` of a surrounding hook would point git at another repository. The
//! user's own configuration stays, so that `safe.directory` is honoured. Hooks and the
//! file-system monitor are off: to look at a repository must run nothing of it.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::failure::Failure;

/// A git command in a directory, not yet run.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"GIT_") {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .args([
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "core.fsmonitor=false",
        ])
        .current_dir(directory)
        .stdin(Stdio::null());
    command
}

/// Runs git and gives what it printed, and whether it succeeded.
///
/// # Errors
/// It could not be run at all.
pub fn try_run<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Result<Output, Failure> {
    let output = command(directory).args(arguments).output();
    output.map_err(|error| {
        let failure = Failure::failed("run git").because(&error);
        match error.kind() {
            ErrorKind::NotFound => failure.hint("Install git: `apt install git`."),
            _ => failure,
        }
    })
}

/// Runs git and gives what it printed.
///
/// # Errors
/// It could not be run or did not succeed; its own words are the cause.
pub fn run<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Result<Vec<u8>, Failure> {
    let output = try_run(directory, arguments)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(failed(directory, arguments, &output)),
    }
}

/// Runs a prepared git command and gives what it printed.
///
/// # Errors
/// As [`run`].
pub fn finish(mut command: Command, what: &str) -> Result<Vec<u8>, Failure> {
    let failure = || Failure::failed(what.to_owned());
    let output = command.output();
    let output = output.map_err(|error| failure().because(error))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(because(failure(), &output.stderr)),
    }
}

fn failed<S: AsRef<OsStr>>(directory: &Path, arguments: &[S], output: &Output) -> Failure {
    let verb = arguments
        .first()
        .map(|verb| verb.as_ref().to_string_lossy());
    let verb = verb.unwrap_or_default();
    let failure = Failure::failed(format!("run git {verb} in {}", directory.display()));
    because(failure, &output.stderr)
}

/// The failure with git's own words as its causes.
pub fn because(failure: Failure, stderr: &[u8]) -> Failure {
    words(stderr)
        .into_iter()
        .fold(failure, |failure, word| failure.because(word))
}

/// The lines in which git says why.
fn words(stderr: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(4).map(str::to_owned).collect()
}

/// One line of output as text, without its end; `None` when empty.
pub fn line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}
