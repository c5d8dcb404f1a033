//! The caller's terminal: its size, and raw mode that is undone however we end.
//!
//! Raw mode is undone when the guard is dropped and by a panic hook, since a panic
//! aborts and drops nothing. The signals that would end the process are caught for
//! as long as a session lasts (see `session`); only SIGKILL leaves a raw terminal.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::proto::agent::Terminal;

/// What the terminal was like before raw mode; for the panic hook.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Whether a terminal is to be allocated in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// When standard input and standard output are both terminals.
    WhenBothAre,
    /// In any case (`-t`).
    Always,
    /// In no case (`-T`).
    Never,
}

impl Allocate {
    /// The terminal to ask the agent for.
    pub fn decide(self) -> Option<Terminal> {
        let both = io::stdin().is_terminal() && io::stdout().is_terminal();
        match self {
            Allocate::Never => None,
            Allocate::WhenBothAre if !both => None,
            Allocate::WhenBothAre | Allocate::Always => Some(describe()),
        }
    }
}

/// Our own terminal as the guest's should be.
fn describe() -> Terminal {
    let (columns, rows) = size().unwrap_or((80, 24));
    let term = std::env::var("TERM").unwrap_or_default();
    Terminal {
        term: match term.is_empty() {
            true => "xterm-256color".to_owned(),
            false => term,
        },
        columns,
        rows,
    }
}

/// Columns and rows of the terminal that standard output, else input, is.
pub fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(io::stdin()));
    let size = size.ok().map(|size| (size.ws_col, size.ws_row));
    size.filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// Raw mode of standard input, until dropped.
#[derive(Debug)]
pub struct RawMode {}

impl RawMode {
    /// Makes standard input raw; `None` when it is no terminal.
    pub fn enter() -> Option<RawMode> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                previous(panic);
            }));
        });
        *SAVED
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(before);
        // The process may be in the background: then the terminal is not ours to change
        // and tcsetattr stops us with SIGTTOU, as it should.
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(RawMode {})
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // try_lock: a panic while the lock is held must not wait for itself.
    let saved = SAVED.try_lock().ok().and_then(|mut saved| saved.take());
    if let Some(before) = saved {
        // Nothing more can be done about a terminal that has gone.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}
