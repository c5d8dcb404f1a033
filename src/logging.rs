//! Log lines: one shape under the journal, another on a terminal or in a file.
//!
//! ```text
//!  journal   <6>start vm=dev op=4f1c
//!  else      2026-11-23T01:40:48Z INFO start vm=dev op=4f1c
//! ```
//!
//! Texts of guests, VMMs and clients get into lines: whatever they hold, a line is one
//! line of shown characters and bounded. The daemon's own file is bounded by [`rotated`].

mod rotated;

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;

use env_logger::Target;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter};

use crate::model::harmless::steers;
use rotated::Rotated;

/// Longest line, bytes. A failure with all its causes takes some hundred.
const LINE_LIMIT: usize = 4096;

/// Starts logging to standard error. `level` is `debug`, `info`, `warn` or `error`;
/// an unknown word means `info`. Where standard error is the file `own`, that is kept
/// small.
pub fn start(level: &str, own: Option<&Path>) {
    let level = level.parse().unwrap_or(LevelFilter::Info);
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let journal = stream.is_some_and(|stream| is_journal(&stream));
    let target = match own.and_then(Rotated::of_standard_error) {
        Some(rotated) => Target::Pipe(Box::new(rotated)),
        None => Target::Stderr,
    };
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module("banger", level)
        .target(target)
        .format(move |out, record| {
            let text = line(journal, record);
            writeln!(out, "{text}")
        });
    // A second start in one process (tests) keeps the first logger.
    let _ = builder.try_init();
}

/// Whether standard error is what `JOURNAL_STREAM` says, a device and an inode
/// (systemd.exec(5)): a child whose output goes elsewhere inherits the variable too.
fn is_journal(stream: &str) -> bool {
    rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|found| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

fn line(journal: bool, record: &log::Record<'_>) -> String {
    let mut line = Line {
        text: match journal {
            true => format!("<{}>", priority(record.level())),
            false => format!("{:.0} {} ", jiff::Timestamp::now(), record.level()),
        },
        left_out: 0,
    };
    let written = write!(line, "{}", record.args());
    let mut pairs = Pairs(&mut line);
    if written.is_err() || record.key_values().visit(&mut pairs).is_err() {
        line.text.push_str(" (some values could not be written)");
    }
    line.end()
}

/// Priorities of sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Takes any text and becomes one line of bounded length.
struct Line {
    text: String,
    /// Bytes that had no room.
    left_out: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.left_out > 0 || self.text.len() + c.len_utf8() > LINE_LIMIT {
                self.left_out += c.len_utf8();
            } else if steers(c) {
                // A line end would forge a second line.
                self.text.extend(c.escape_default());
            } else {
                self.text.push(c);
            }
        }
        Ok(())
    }
}

impl Line {
    fn end(mut self) -> String {
        if self.left_out > 0 {
            let more = format!("... ({} bytes more)", self.left_out);
            self.text.push_str(&more);
        }
        self.text
    }
}

struct Pairs<'a>(&'a mut Line);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string();
        let spaced = value.contains(|c: char| c == ' ' || steers(c)) || value.is_empty();
        let written = match spaced {
            true => write!(self.0, " {key}={value:?}"),
            false => write!(self.0, " {key}={value}"),
        };
        written.map_err(|_| Error::msg("write to a string"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(args: fmt::Arguments<'_>, pairs: &[(&str, &str)]) -> String {
        let mut record = log::Record::builder();
        let record = record.level(Level::Warn).key_values(&pairs).args(args);
        line(true, &record.build())
    }

    #[test]
    fn journal_lines_carry_priority_pairs_and_no_forged_line() {
        assert_eq!(
            written(
                format_args!("stop\n<0>forged"),
                &[("vm", "dev"), ("why", "a\nb c")]
            ),
            "<4>stop\\n<0>forged vm=dev why=\"a\\nb c\""
        );
    }

    /// Symptom: `banger vm show $'x\e[31m'` coloured the log.
    #[test]
    fn nothing_that_steers_a_terminal_gets_into_a_line() {
        assert_eq!(
            written(format_args!("a\x1b[2J\u{9b}b\u{202e}\r"), &[("op", "\x1b")]),
            "<4>a\\u{1b}[2J\\u{9b}b\\u{202e}\\r op=\"\\u{1b}\""
        );
    }

    #[test]
    fn a_line_is_cut_and_says_what_is_missing() {
        let long = "💥".repeat(1 << 20);
        let line = written(format_args!("{long}"), &[("what", &long)]);
        assert!(line.len() < LINE_LIMIT + 64, "{}", line.len());
        assert!(line.ends_with(" bytes more)"), "{}", &line[4000..]);
    }

    #[test]
    fn a_journal_that_standard_error_is_not_connected_to_is_none() {
        let found = rustix::fs::fstat(rustix::stdio::stderr()).unwrap();
        assert!(is_journal(&format!("{}:{}", found.st_dev, found.st_ino)));
        assert!(!is_journal(&format!(
            "{}:{}",
            found.st_dev,
            found.st_ino + 1
        )));
        assert!(!is_journal("8:12345") && !is_journal(""));
    }
}
