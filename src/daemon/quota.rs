//! What one VM may make the daemon log: its guest calls as often as it likes, its VMM
//! tells what it likes, and neither is to bury the lines about the others.

use std::time::{Duration, Instant};

use log::Level;

use crate::model::ids::VmId;

/// Lines in each span, and the span. An honest boot takes two or three.
const LINES: u32 = 20;
const SPAN: Duration = Duration::from_secs(60);

/// One source of lines about one VM.
#[derive(Debug, Default)]
pub struct Quota {
    begun: Option<Instant>,
    said: u32,
    left_out: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// After so many that were not.
    Said {
        left_out: u64,
    },
    /// And it is the last for now.
    Last,
    LeftOut,
}

impl Quota {
    /// Logs a line about a VM, if it is not one too many; what is left out is told.
    pub fn log(&mut self, vm: VmId, level: Level, text: &str) {
        match self.turn(Instant::now()) {
            Turn::Said { left_out: 0 } => log::log!(level, vm:%; "{text}"),
            Turn::Said { left_out } => {
                log::warn!(vm:%; "{left_out} lines were left out");
                log::log!(level, vm:%; "{text}");
            }
            Turn::Last => {
                log::log!(level, vm:%; "{text}");
                log::warn!(vm:%; "it gives cause for too many lines: what follows is left out for a minute");
            }
            Turn::LeftOut => {}
        }
    }

    fn turn(&mut self, now: Instant) -> Turn {
        let running = self.begun.filter(|begun| now.duration_since(*begun) < SPAN);
        if running.is_none() {
            self.begun = Some(now);
            self.said = 0;
        }
        self.said = self.said.saturating_add(1);
        match self.said {
            0..LINES => Turn::Said {
                left_out: std::mem::take(&mut self.left_out),
            },
            LINES => Turn::Last,
            _ => {
                self.left_out += 1;
                Turn::LeftOut
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_quota_are_left_out_and_told() {
        let mut quota = Quota::default();
        let begun = Instant::now();
        let mut turns = |count: u32, at: Duration| -> Vec<Turn> {
            (0..count).map(|_| quota.turn(begun + at)).collect()
        };
        let first = turns(LINES + 5, Duration::ZERO);
        let (said, rest) = first.split_at(LINES as usize - 1);
        assert!(said.iter().all(|turn| *turn == Turn::Said { left_out: 0 }));
        assert_eq!(rest[0], Turn::Last);
        assert!(rest[1..].iter().all(|turn| *turn == Turn::LeftOut));
        assert_eq!(turns(1, SPAN / 2), [Turn::LeftOut]);
        let later = turns(2, SPAN);
        assert_eq!(
            later,
            [Turn::Said { left_out: 6 }, Turn::Said { left_out: 0 }]
        );
    }
}
