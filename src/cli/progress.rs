//! Live stages on standard error: one line that is rewritten on a terminal; otherwise, as
//! in a log, a plain line for each stage and a few more within a long one. No clock of
//! its own: a line is written only when the daemon tells of something.

use std::time::{Duration, Instant};

use super::render::{self, Paint, Stream, paint, printable};
use super::words::size;
use crate::proto::reply::Progress;

/// The stage that is no stage but something to know.
const NOTE: &str = "note";
/// At most this often is the line rewritten within one stage.
const REDRAW: Duration = Duration::from_millis(60);

/// A request that takes longer than this is worth a line where there is no terminal.
const SLOW: Duration = Duration::from_secs(3);

/// A stage that lasts has a plain line this often.
const REPEAT: Duration = Duration::from_secs(10);

/// No plain line within a stage comes sooner after another than this.
const PAUSE: Duration = Duration::from_secs(1);

/// What is written where there is no terminal to rewrite a line on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// A line for each stage: it takes minutes, as a pull does.
    EachStage,
    /// A line for the stages of a request that is slow: it usually takes no time.
    WhenSlow,
}

/// Shows the stages of one long request.
#[derive(Debug)]
pub struct Stages {
    live: Option<usize>,
    plain: Plain,
    began: Instant,
    stage: String,
    /// When the last line was written.
    drawn: Option<Instant>,
    /// How many quarters of the stage that line told of.
    quarters: u64,
}

impl Stages {
    /// For the standard error of this process.
    pub fn new() -> Stages {
        Stages::with(Plain::EachStage)
    }

    /// The same, with this much of it where there is no terminal.
    pub fn with(plain: Plain) -> Stages {
        let live = render::is_terminal(Stream::Err);
        Stages {
            live: live.then(|| render::columns(Stream::Err).unwrap_or(80)),
            plain,
            began: Instant::now(),
            stage: String::new(),
            drawn: None,
            quarters: 0,
        }
    }

    /// Shows how far it is. A note stays: it says what was decided for the user.
    pub fn show(&mut self, progress: &Progress) {
        if progress.stage == NOTE {
            self.clear();
            return render::say(&format!("note: {}", printable(&progress.detail)));
        }
        let fresh = progress.stage != self.stage;
        if fresh && (self.live.is_some() || self.is_worth_a_line()) {
            progress.stage.clone_into(&mut self.stage);
        }
        match self.live {
            Some(columns) if fresh || self.drawn.is_none_or(|at| at.elapsed() >= REDRAW) => {
                self.drawn = Some(Instant::now());
                let line = cut(&text(progress), columns.saturating_sub(1));
                let line = paint(Stream::Err, Paint::Dim, &line);
                render::say_raw(&format!("\r\x1b[2K{line}"));
            }
            None if self.is_worth_a_line() && (fresh || self.is_due(progress, Instant::now())) => {
                self.drawn = Some(Instant::now());
                self.quarters = quarters(progress);
                render::say(&text(progress));
            }
            Some(_) | None => {}
        }
    }

    /// Whether a stage that has its line already is to have another one.
    fn is_due(&self, progress: &Progress, now: Instant) -> bool {
        let Some(drawn) = self.drawn else { return true };
        let since = now.saturating_duration_since(drawn);
        since >= REPEAT || since >= PAUSE && quarters(progress) > self.quarters
    }

    fn is_worth_a_line(&self) -> bool {
        self.plain == Plain::EachStage || self.began.elapsed() >= SLOW
    }

    /// Shows a stage of our own.
    pub fn stage(&mut self, stage: &str) {
        self.show(&Progress {
            stage: stage.to_owned(),
            detail: String::new(),
            current: None,
            total: None,
        });
    }

    /// Takes the live line away, so that something else can be written.
    pub fn clear(&mut self) {
        if self.live.is_some() && self.drawn.take().is_some() {
            render::say_raw("\r\x1b[2K");
        }
        self.stage.clear();
    }
}

impl Default for Stages {
    fn default() -> Stages {
        Stages::new()
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.clear();
    }
}

fn text(progress: &Progress) -> String {
    let mut text = progress.stage.clone();
    if let Some(share) = share(progress.current, progress.total) {
        text.push_str(&format!(" {share}"));
    }
    if !progress.detail.is_empty() {
        text.push_str(&format!(": {}", progress.detail));
    }
    printable(&text)
}

fn share(current: Option<u64>, total: Option<u64>) -> Option<String> {
    match (current, total) {
        (Some(current), Some(total)) if total > 0 => {
            let percent = u128::from(current) * 100 / u128::from(total);
            Some(format!("{}%", percent.min(100)))
        }
        (Some(current), _) => Some(size(current)),
        _ => None,
    }
}

/// How many quarters of the whole are done; 0 where the whole is not known.
fn quarters(progress: &Progress) -> u64 {
    match (progress.current, progress.total) {
        (Some(current), Some(total)) if total > 0 => current.saturating_mul(4) / total,
        _ => 0,
    }
}

fn cut(text: &str, columns: usize) -> String {
    match text.chars().count() > columns {
        true => {
            let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
            format!("{kept}…")
        }
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(current: Option<u64>, total: Option<u64>, detail: &str) -> Progress {
        Progress {
            stage: "pull".to_owned(),
            detail: detail.to_owned(),
            current,
            total,
        }
    }

    #[test]
    fn stages_show_share_and_detail_on_one_line() {
        assert_eq!(text(&progress(Some(1), Some(4), "x\ny")), "pull 25%: x y");
        assert_eq!(text(&progress(Some(2048), None, "")), "pull 2K");
        assert_eq!(text(&progress(Some(9), Some(0), "")), "pull 9B");
        assert_eq!(text(&progress(None, None, "")), "pull");
    }

    #[test]
    fn a_request_that_takes_no_time_is_not_worth_a_line() {
        let stages = |plain, ago| Stages {
            live: None,
            plain,
            began: Instant::now().checked_sub(ago).unwrap(),
            stage: String::new(),
            drawn: None,
            quarters: 0,
        };
        assert!(stages(Plain::EachStage, Duration::ZERO).is_worth_a_line());
        assert!(!stages(Plain::WhenSlow, Duration::ZERO).is_worth_a_line());
        assert!(stages(Plain::WhenSlow, SLOW).is_worth_a_line());
    }

    #[test]
    fn a_long_stage_has_a_line_each_quarter_and_every_ten_seconds_and_no_more() {
        let drawn = Instant::now();
        let stages = Stages {
            live: None,
            plain: Plain::EachStage,
            began: drawn,
            stage: "pull".to_owned(),
            drawn: Some(drawn),
            quarters: 1,
        };
        let due = |current, after| {
            let progress = progress(Some(current), Some(100), "");
            stages.is_due(&progress, drawn + Duration::from_millis(after))
        };
        assert!(!due(49, 9_999), "within the same quarter");
        assert!(due(49, 10_000));
        assert!(due(50, 1_000));
        assert!(!due(50, 999), "too soon after the last line");
        let unknown = progress(Some(1), None, "libc6");
        assert!(!stages.is_due(&unknown, drawn + PAUSE));
        assert!(stages.is_due(&unknown, drawn + REPEAT));
    }

    #[test]
    fn a_long_line_is_cut_to_the_terminal() {
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
