//! What a fail-point does.
//!
//! `BANGER_FAIL_POINT` names a file, which is read at each place and may not exist:
//!
//! ```text
//!  FILE           one line: PLACE[#N] ACTION [always]
//!  FILE.reached   what FILE becomes when its place is reached: it happens once
//!  FILE.go        ends a `hang`
//!  FILE.trace     if it exists, gets a line for every place that is reached
//! ```
//!
//! `#N` is the n-th time since FILE was written. Actions: `exit` (SIGKILL to ourselves),
//! `ebusy`, `enospc` (the place fails so), `hang` (until FILE.go exists). With `always`
//! the file stays, and it happens until the test removes it. Words behind that mean nothing:
//! they make a line another one than the same before it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};

/// Names the file.
const VARIABLE: &str = "BANGER_FAIL_POINT";

/// The line last seen, and how often its place was reached under it.
static SEEN: Mutex<(String, u32)> = Mutex::new((String::new(), 0));

/// What is to happen.
struct Plan<'a> {
    place: &'a str,
    occurrence: u32,
    action: &'a str,
    always: bool,
}

impl Plan<'_> {
    fn parse(line: &str) -> Option<Plan<'_>> {
        let mut words = line.split_whitespace();
        let place = words.next()?;
        let (place, occurrence) = match place.split_once('#') {
            Some((place, number)) => (place, number.parse().ok()?),
            None => (place, 1),
        };
        Some(Plan {
            place,
            occurrence,
            action: words.next()?,
            always: words.next() == Some("always"),
        })
    }
}

/// Does what the file says is to happen at this place.
///
/// # Errors
/// The one that the file asks for.
pub fn hit(place: &str) -> io::Result<()> {
    let Some(file) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        return Ok(());
    };
    trace(&file, place);
    let line = fs::read_to_string(&file).unwrap_or_default();
    match Plan::parse(&line) {
        Some(plan) if plan.place == place && is_due(&line, &plan) => act(&file, &plan),
        _ => Ok(()),
    }
}

fn is_due(line: &str, plan: &Plan) -> bool {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.0 != line {
        *seen = (line.to_owned(), 0);
    }
    seen.1 += 1;
    plan.always || seen.1 == plan.occurrence
}

fn act(file: &Path, plan: &Plan) -> io::Result<()> {
    let reached = beside(file, "reached");
    match plan.always {
        true => fs::copy(file, reached).map(drop)?,
        false => fs::rename(file, reached)?,
    }
    match plan.action {
        "exit" => {
            kill_process(getpid(), Signal::KILL)?;
            Ok(())
        }
        "ebusy" => Err(Errno::BUSY.into()),
        "enospc" => Err(Errno::NOSPC.into()),
        "hang" => wait_for(&beside(file, "go")),
        other => Err(io::Error::other(format!(
            "fail-point: unknown action {other}"
        ))),
    }
}

fn trace(file: &Path, place: &str) {
    if let Ok(mut trace) = OpenOptions::new().append(true).open(beside(file, "trace")) {
        let _full = writeln!(trace, "{place}");
    }
}

fn beside(file: &Path, extension: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".");
    path.push(extension);
    PathBuf::from(path)
}

fn wait_for(path: &Path) -> io::Result<()> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let wanted = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, path.parent().unwrap_or(Path::new("/")), wanted)?;
    let mut buffer = [0; 4096];
    while !path.exists() {
        rustix::io::read(&watch, &mut buffer[..])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_place_occurrence_action_and_whether_it_stays() {
        let plan = Plan::parse("tap.absent.before#3 ebusy always\n").unwrap();
        assert_eq!((plan.place, plan.occurrence), ("tap.absent.before", 3));
        assert_eq!((plan.action, plan.always), ("ebusy", true));
        assert_eq!(Plan::parse("save.before exit").unwrap().occurrence, 1);
        assert!(Plan::parse("").is_none());
    }

    #[test]
    fn a_plan_happens_at_its_occurrence_and_leaves_the_mark() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan");
        let line = "x#2 ebusy";
        fs::write(&file, line).unwrap();
        let plan = Plan::parse(line).unwrap();
        assert_eq!([is_due(line, &plan), is_due(line, &plan)], [false, true]);
        let error = act(&file, &plan).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::BUSY));
        assert!(!file.exists() && beside(&file, "reached").exists());
    }
}
