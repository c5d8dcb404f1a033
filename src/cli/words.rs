//! Numbers as people say them. Pure.

/// Bytes with at most three digits: `512M`, `1.5G`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let number = match value >= 9.95 {
        true => format!("{value:.0}"),
        false => format!("{value:.1}"),
    };
    format!("{}{}", number.trim_end_matches(".0"), units[unit])
}

/// A span of seconds, coarsely: `12s`, `5 min`, `3 h`, `2 days`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{seconds}s"),
        100..=5_999 => format!("{} min", seconds / 60),
        6_000..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How long ago something was, both in seconds since the epoch. A clock that was set back
/// makes it lie ahead, which is said rather than passed off as now.
pub fn ago(now: u64, then: u64) -> String {
    match now.checked_sub(then) {
        Some(0..=4) => "just now".to_owned(),
        Some(seconds) => format!("{} ago", span(seconds)),
        None => ahead(then - now),
    }
}

/// How long something lasts that began `then`; see [`ago`].
pub fn lasting(now: u64, then: u64) -> String {
    match now.checked_sub(then) {
        Some(seconds) => span(seconds),
        None => ahead(then - now),
    }
}

fn ahead(seconds: u64) -> String {
    match seconds {
        0..=4 => "just now".to_owned(),
        _ => format!("{} ahead of the clock", span(seconds)),
    }
}

/// Whether the files of an image or a kernel are whole.
pub fn state(damage: Option<&str>) -> String {
    match damage {
        Some(damage) => format!("damaged: {damage}"),
        None => "whole".to_owned(),
    }
}

/// What to type about a sandbox that is stuck; `retry` is the command that tries again.
pub fn stuck_advice(name: &str, retry: Option<&str>) -> String {
    match retry.unwrap_or("stop") {
        "delete" => format!("`banger vm delete {name}` tries again."),
        retry => format!(
            "`banger vm {retry} {name}` tries again, `banger vm delete {name}` removes all of it."
        ),
    }
}

/// `1 file`, `2 files`.
pub fn count(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_three_digits() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1K"),
            (1536, "1.5K"),
            (512 << 20, "512M"),
            (2 << 30, "2G"),
            ((1 << 30) - 1, "1G"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn spans_name_the_largest_fitting_unit() {
        assert_eq!(ago(9, 9), "just now");
        assert_eq!(ago(60, 1), "59s ago");
        assert_eq!(ago(7200, 0), "2 h ago");
    }

    #[test]
    fn clock_that_was_set_back_is_said() {
        assert_eq!(ago(0, 4), "just now");
        assert_eq!(ago(0, 7200), "2 h ahead of the clock");
        assert_eq!(lasting(7200, 0), "2 h");
        assert_eq!(lasting(0, 7200), "2 h ahead of the clock");
        assert_eq!(lasting(0, u64::MAX), ago(0, u64::MAX));
        assert_eq!(span(200_000), "2 days");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(0, "file"), "0 files");
    }
}
