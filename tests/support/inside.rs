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

use super::Banger;

/// Where the guest has the test binary.
const BINARY: &str = "/root/inside";
/// The binary under test, in a guest: the agent is one of its roles.
const BANGER: &str = "/run/banger/agent";

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

    /// Runs the test of exactly this name as root of the guest. It must pass there, and
    /// must have found what it needs. Returns what it printed.
    #[track_caller]
    pub fn run(&self, test: &str) -> String {
        let script = format!(
            "BANGER_BIN={BANGER} exec {BINARY} --exact {test} --nocapture --test-threads=1"
        );
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
