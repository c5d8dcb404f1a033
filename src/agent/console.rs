//! One line on the guest's console, for whoever reads `banger vm logs --console`.
//!
//! Goes to the kernel's log with the level of an error, so that `quiet` shows it and
//! `dmesg` keeps it; where there is no /dev/kmsg yet, to standard error, which the
//! kernel opened on the console for process 1.

use std::fs::OpenOptions;
use std::io::Write;

/// Writes the line. A console that cannot be written leaves nobody to tell.
pub fn say(line: &str) {
    let line = line.replace('\n', " ");
    let kernel_log = OpenOptions::new().write(true).open("/dev/kmsg");
    // The kernel takes one record per write and gives it this level (KERN_ERR).
    let written =
        kernel_log.and_then(|mut log| log.write_all(format!("<3>banger: {line}\n").as_bytes()));
    if written.is_err() {
        let _nobody_to_tell = std::io::stderr().write_all(format!("banger: {line}\n").as_bytes());
    }
}
