//! The only place that prints.
//!
//! Data goes to standard output, everything else to standard error. A reader that
//! has gone (`banger vm list | head -1`) is a quiet exit, never a panic. Colour is
//! used on a terminal only and never when `NO_COLOR` is set.

use std::io::{BufRead, ErrorKind, IsTerminal, Write};

use rustix::io::Errno;
use serde::Serialize;

use crate::failure::Failure;
use crate::model::harmless::one_line;
use crate::sys::closed_output;

/// Where text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Data that was asked for.
    Out,
    /// Everything that is said besides.
    Err,
}

/// How something may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// A heading.
    Bold,
    /// Beside the point.
    Dim,
    /// Good.
    Green,
    /// To be looked at.
    Yellow,
    /// Bad.
    Red,
}

/// Writes to standard output; ends the process quietly when nobody reads it.
pub fn out(text: &str) {
    write(std::io::stdout().lock(), text.as_bytes());
}

/// Writes bytes as they are to standard output.
pub fn out_bytes(bytes: &[u8]) {
    write(std::io::stdout().lock(), bytes);
}

/// Writes a line to standard output.
pub fn line(text: &str) {
    out(&format!("{text}\n"));
}

/// Says a line on standard error.
pub fn say(text: &str) {
    say_raw(&format!("{text}\n"));
}

/// Writes to standard error as it is, without a line end: for the progress line.
pub fn say_raw(text: &str) {
    // Nobody listens: the exit status still tells.
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// Writes a value as JSON on standard output.
pub fn json<T: Serialize>(value: &T) {
    let text = serde_json::to_string_pretty(value).expect("our own views have string keys only");
    line(&text);
}

fn write(mut stream: impl Write, bytes: &[u8]) {
    let written = match closed_output::was_closed() {
        true => Err(Errno::BADF.into()),
        false => stream.write_all(bytes).and_then(|()| stream.flush()),
    };
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // Standard output on a full disk must not look like success.
        Err(error) => {
            say(&format!("banger: write output: {error}"));
            std::process::exit(1)
        }
    }
}

/// Whether somebody sits there who can answer.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && is_terminal(Stream::Err)
}

/// Asks a question on standard error; anything but a yes is a no.
///
/// # Errors
/// The answer cannot be read.
pub fn ask(question: &str) -> Result<bool, Failure> {
    say_raw(&format!("{} [y/N] ", printable(question)));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed("read your answer").because(error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Whether this stream is a terminal.
pub fn is_terminal(stream: Stream) -> bool {
    match stream {
        Stream::Out => std::io::stdout().is_terminal(),
        Stream::Err => std::io::stderr().is_terminal(),
    }
}

/// Columns of the terminal that this stream is; `None` when it is none.
pub fn columns(stream: Stream) -> Option<usize> {
    let size = match stream {
        Stream::Out => rustix::termios::tcgetwinsize(std::io::stdout()),
        Stream::Err => rustix::termios::tcgetwinsize(std::io::stderr()),
    };
    let columns = size.ok().map(|size| usize::from(size.ws_col));
    columns.filter(|columns| *columns > 0)
}

/// Paints text for a stream, or leaves it as it is.
pub fn paint(stream: Stream, paint: Paint, text: &str) -> String {
    let code = match paint {
        Paint::Plain => return text.to_owned(),
        Paint::Bold => "1",
        Paint::Dim => "2",
        Paint::Green => "32",
        Paint::Yellow => "33",
        Paint::Red => "31",
    };
    match colour_wanted(stream) {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

fn colour_wanted(stream: Stream) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    is_terminal(stream) && !set("NO_COLOR") && !dumb
}

/// Shows a failure on standard error.
pub fn failure(failure: &Failure) {
    let prefix = paint(Stream::Err, Paint::Red, "banger:");
    let hint = paint(Stream::Err, Paint::Bold, "hint:");
    say_raw(&failure_text(failure, &prefix, &hint));
}

fn failure_text(failure: &Failure, prefix: &str, hint_word: &str) -> String {
    let mut text = format!("{prefix} {}\n", printable_lines(&failure.what));
    for cause in &failure.causes {
        text.push_str(&format!("  because: {}\n", printable_lines(cause)));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("  {hint_word} {}\n", printable_lines(hint)));
    }
    text
}

/// One line without what would steer the terminal: some texts come from guests.
pub fn printable(text: &str) -> String {
    one_line(text)
}

/// The same for a text of several lines, such as a program's complaint: those behind the
/// first are set in, so that none can pass for a line of ours.
fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.trim_end().split('\n').map(printable).collect();
    lines.join("\n           ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_what_causes_and_hint_in_this_order() {
        let failure = Failure::failed("start vm dev")
            .because("launch qemu")
            .because("no such file")
            .hint("Run `banger doctor`.");
        assert_eq!(
            failure_text(&failure, "banger:", "hint:"),
            "banger: start vm dev\n  because: launch qemu\n  because: no such file\n  hint: Run `banger doctor`.\n"
        );
    }

    #[test]
    fn a_line_within_a_cause_cannot_pass_for_a_hint_of_ours() {
        let failure = Failure::failed("boot").because("no\n  hint: run this\n");
        assert_eq!(
            failure_text(&failure, "banger:", "hint:"),
            "banger: boot\n  because: no\n             hint: run this\n"
        );
    }

    #[test]
    fn text_from_a_guest_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\tc\n"), "a\u{fffd}[2Jb c ");
        assert_eq!(printable("a\u{202e}b"), "a\u{fffd}b");
    }
}
