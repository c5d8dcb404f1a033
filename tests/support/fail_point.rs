//! Interrupts the daemon under test at a named place; see src/fail_point.rs.
//!
//! Needs a program with the cargo feature `fail-points`, which `BANGER_FAIL_POINTS_BIN`
//! names (`scripts/build.sh --fail-points` makes it).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::events::{wait_for_file_or_end, wait_for_folder};

/// The program with fail-points, where there is one.
pub fn program() -> Option<PathBuf> {
    std::env::var_os("BANGER_FAIL_POINTS_BIN").map(PathBuf::from)
}

/// The file that says what happens where.
#[derive(Debug, Clone)]
pub struct FailPoint {
    file: PathBuf,
}

impl FailPoint {
    /// `file` is what `BANGER_FAIL_POINT` names; its folder exists.
    pub fn at(file: PathBuf) -> FailPoint {
        FailPoint { file }
    }

    /// The value of `BANGER_FAIL_POINT`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// From now on: `PLACE[#N] ACTION [always]`.
    pub fn arm(&self, line: &str) {
        // A daemon counts by what it reads: the same line again is to be another.
        static ARMED: AtomicU32 = AtomicU32::new(0);
        let line = format!("{line} {}", ARMED.fetch_add(1, Ordering::Relaxed));
        self.clear();
        // Written aside: the daemon may look at any time.
        let aside = self.beside("aside");
        fs::write(&aside, line).expect("a fresh folder takes a file");
        fs::rename(&aside, &self.file).expect("a file can be renamed beside itself");
    }

    /// The file that says that the place was reached.
    pub fn reached(&self) -> PathBuf {
        self.beside("reached")
    }

    /// Waits until the place is reached.
    #[track_caller]
    pub fn wait(&self) {
        let folder = self.file.parent().expect("it lies in a folder");
        wait_for_folder(folder, |_| self.reached().exists());
    }

    /// The same, or until a process ends: whether the place was reached.
    pub fn wait_or_end(&self, pid: u32) -> bool {
        let folder = self.file.parent().expect("it lies in a folder");
        wait_for_file_or_end(folder, &self.reached(), pid)
    }

    /// Ends a `hang`.
    pub fn go(&self) {
        fs::write(self.beside("go"), "").expect("a fresh folder takes a file");
    }

    /// Nothing happens any more.
    pub fn clear(&self) {
        for path in [self.file.clone(), self.reached(), self.beside("go")] {
            fs::remove_file(path).ok();
        }
    }

    /// The places that are reached while `act` runs, in order; those that come again
    /// with their number.
    pub fn traced(&self, act: impl FnOnce()) -> Vec<String> {
        let trace = self.beside("trace");
        fs::write(&trace, "").expect("a fresh folder takes a file");
        act();
        let text = fs::read_to_string(&trace).expect("it was written above");
        fs::remove_file(&trace).expect("it was written above");
        let mut places: Vec<String> = Vec::new();
        for place in text.lines() {
            let earlier = places.iter().filter(|p| p.split('#').next() == Some(place));
            places.push(match earlier.count() {
                0 => place.to_owned(),
                earlier => format!("{place}#{}", earlier + 1),
            });
        }
        places
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut path = self.file.as_os_str().to_owned();
        path.push(".");
        path.push(extension);
        PathBuf::from(path)
    }
}
