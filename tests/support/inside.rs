//! Tests of the running test binary, run once more inside a guest of ours: for what this
//! machine's kernel lacks and a guest's has (cgroup v2 controllers, device-mapper).
//!
//! ```text
//!  outer test (here)    Inside::bring --> this binary is copied into the guest
//!                       Inside::run   --> `/root/inside --exact NAME` there
//!  inner test (there)   an ordinary test, which skips by name where its host lacks something
//! ```
//!
//! The inner test is run here too, as any other test is; what it does not find here, it
//! finds in the guest. A skipped inner test fails the outer one.
//!
//! A test that takes several boots has parts: run by itself it is the outer one and tells
//! the inner ones by a variable which part is theirs ([`part`]).

use super::Banger;
use super::running::Running;

/// Where the guest has the test binary.
const BINARY: &str = "/root/inside";
/// The binary under test, in a guest: the agent is one of its roles.
const BANGER: &str = "/run/banger/agent";
/// Tells an inner test its part.
const PART: &str = "BANGER_TEST_PART";

/// The part of this test that it is to play; `None` where it was not started by another.
pub fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// A guest that has this test binary.
pub struct Inside<'a> {
    banger: &'a Banger,
    vm: &'a str,
}

impl<'a> Inside<'a> {
    /// Copies this test binary into a running VM.
    #[track_caller]
    pub fn bring(banger: &'a Banger, vm: &'a str) -> Inside<'a> {
        let own = std::env::current_exe().expect("a test knows its binary");
        let bytes = std::fs::read(own).expect("a test can read its binary");
        let script = format!("cat > {BINARY} && chmod 700 {BINARY}");
        let command = ["vm", "exec", vm, "--", "sh", "-c", &script];
        let ran = banger.run_with_input(&command, bytes);
        assert_eq!(ran.code(), Some(0), "copy the tests into {vm}: {ran:?}");
        Inside { banger, vm }
    }

    /// The binary that was copied into this VM before, and is there yet.
    pub fn again(banger: &'a Banger, vm: &'a str) -> Inside<'a> {
        Inside { banger, vm }
    }

    /// Runs the test of exactly this name as root of the guest. It must pass there, and
    /// must have found what it needs. Returns what it printed.
    #[track_caller]
    pub fn run(&self, test: &str) -> String {
        self.run_with(test, "")
    }

    /// Runs one part of the test of this name.
    #[track_caller]
    pub fn run_part(&self, test: &str, part: &str) -> String {
        self.run_with(test, &format!("{PART}={part}"))
    }

    /// Begins one part of the test of this name, and does not wait for its end.
    pub fn start_part(&self, test: &str, part: &str) -> Running {
        let script = script(test, &format!("{PART}={part}"));
        let command = ["vm", "exec", self.vm, "--", "sh", "-c", &script];
        self.banger.start(&command)
    }

    #[track_caller]
    fn run_with(&self, test: &str, variables: &str) -> String {
        let script = script(test, variables);
        let ran = self
            .banger
            .run(&["vm", "exec", self.vm, "--", "sh", "-c", &script]);
        let text = ran.text();
        assert_eq!(ran.code(), Some(0), "{test} in {}: {ran:?}", self.vm);
        assert!(text.contains("1 passed"), "there is no {test}: {text}");
        assert!(!text.contains("skipped: "), "in {}: {text}", self.vm);
        text
    }
}

fn script(test: &str, variables: &str) -> String {
    format!(
        "BANGER_BIN={BANGER} {variables} exec {BINARY} --exact {test} --nocapture --test-threads=1"
    )
}
