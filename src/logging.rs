//! Log lines: one shape under the journal, another on a terminal or in a file.
//!
//! ```text
//!  journal   <6>start vm=dev op=4f1c
//!  else      2026-11-23T01:40:48Z INFO start vm=dev op=4f1c
//! ```

use std::fmt::Write as _;
use std::io::Write as _;

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter};

/// Starts logging to standard error. `level` is `debug`, `info`, `warn` or `error`;
/// an unknown word means `info`.
pub fn start(level: &str) {
    let level = level.parse().unwrap_or(LevelFilter::Info);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module("banger", level)
        .format(move |out, record| {
            let text = line(journal, record);
            writeln!(out, "{text}")
        });
    // A second start in one process (tests) keeps the first logger.
    let _ = builder.try_init();
}

fn line(journal: bool, record: &log::Record<'_>) -> String {
    let mut text = match journal {
        true => format!("<{}>", priority(record.level())),
        false => format!("{:.0} {} ", jiff::Timestamp::now(), record.level()),
    };
    // A value with a line break would forge a second line.
    let message = record.args().to_string().replace('\n', "\\n");
    text.push_str(&message);
    let mut pairs = Pairs(&mut text);
    if record.key_values().visit(&mut pairs).is_err() {
        text.push_str(" (some values could not be written)");
    }
    text
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

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string().replace('\n', "\\n");
        let spaced = value.contains(' ') || value.is_empty();
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

    #[test]
    fn journal_lines_carry_priority_pairs_and_no_forged_line() {
        let pairs = [("vm", "dev"), ("why", "a\nb c")];
        let record = log::Record::builder()
            .args(format_args!("stop\n<0>forged"))
            .level(Level::Warn)
            .key_values(&pairs)
            .build();
        assert_eq!(
            line(true, &record),
            "<4>stop\\n<0>forged vm=dev why=\"a\\\\nb c\""
        );
    }
}
