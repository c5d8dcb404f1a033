//! A command in a guest as seen from here: frames on one side, three descriptors and
//! signals on the other, all by one poll loop.
//!
//! ```text
//!  stdin --(as far as credit goes)--> Input… InputEnd ─┐
//!  signals -----------------------> Signal, Resize ────┤ outgoing ──> stream
//!  stdout, stderr <── pending <── Output, ErrorOutput ─┴─ Credit, Exit, Failed <── stream
//! ```
//!
//! Nothing here blocks: a full pipe in one direction never keeps the other from moving,
//! and a signal gets through while output is stuck. The stream is never half-closed;
//! the end of input is a frame. Dropping the stream ends the command in the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::pending::{Pending, Written};
use super::signals::{HANG_UP, INTERRUPT, TERMINATE, WINDOW_CHANGE};
use super::terminal;
use crate::failure::{Failure, FailureKind};
use crate::proto::agent::{
    AGENT_VERSION, AgentCall, AgentFailure, AgentFailureKind, AgentRequest, Exec, Exit,
    INITIAL_CREDIT,
};
use crate::proto::frame::{self, Decoder, Frame, Kind, MAX_DATA, MAX_JSON};

/// Output that may wait for our own readers before we stop reading from the guest.
const MAX_PENDING: usize = 256 * 1024;
/// Input that may wait for the stream before we stop reading our own.
const MAX_OUTGOING: usize = 256 * 1024;
/// A second interrupt within this time ends the client.
const TWICE: Duration = Duration::from_secs(1);
/// With a terminal, Ctrl-C is a byte for the guest. This many in a row, with nothing from the
/// guest since the first, end the client once the guest has been silent for [`SILENCE`].
const UNANSWERED: u32 = 3;
/// See [`UNANSWERED`]. A guest that lives echoes a Ctrl-C or ends something within
/// milliseconds; a program that takes it without a word is given this time.
const SILENCE: Duration = Duration::from_secs(1);
/// What Ctrl-C is on a raw terminal.
const CTRL_C: u8 = 3;
/// How long a command may take to end that was told to by SIGTERM or SIGHUP, before we
/// end without it. The agent then ends it.
const END_GRACE: Duration = Duration::from_secs(5);
/// The status of a client that was ended by interrupts of its own (128 + SIGINT).
const INTERRUPTED: u8 = 130;
/// The status of a client whose reader has gone (128 + SIGPIPE), as docker's has.
const PIPE_BROKEN: u8 = 141;

/// A failure of ours, with the status that the process ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFailure {
    /// 125, or 126 and 127 as shells use them; 2 for a wrong command line.
    pub status: u8,
    /// What to show.
    pub failure: Failure,
}

impl OwnFailure {
    /// A failure found before the daemon is asked: what is wrong on the command line has
    /// the status that it has everywhere, for no command has run that could have it too.
    pub fn unasked(failure: Failure) -> OwnFailure {
        match failure.kind {
            FailureKind::Usage => OwnFailure {
                status: failure.kind.exit_status(),
                failure,
            },
            _ => failure.into(),
        }
    }
}

impl From<Failure> for OwnFailure {
    fn from(failure: Failure) -> OwnFailure {
        OwnFailure {
            status: 125,
            failure,
        }
    }
}

/// What a session is connected to.
#[derive(Debug)]
pub struct Ends {
    /// To the agent.
    pub stream: OwnedFd,
    /// Read as the command's input; `None` means empty.
    pub input: Option<OwnedFd>,
    /// Takes the command's standard output.
    pub output: OwnedFd,
    /// Takes the command's standard error.
    pub error_output: OwnedFd,
    /// Gives signals, one byte each.
    pub signals: OwnedFd,
}

/// Runs a command and gives its status.
///
/// # Errors
/// The command could not be started, or the connection was lost.
pub fn run(ends: Ends, exec: Exec) -> Result<u8, OwnFailure> {
    let failed = |error: Errno| Failure::failed("talk to the guest").because(error);
    rustix::io::ioctl_fionbio(&ends.stream, true).map_err(failed)?;
    let mut session = Session::new(ends, exec)?;
    loop {
        if let Some(status) = session.turn()? {
            return Ok(status);
        }
    }
}

/// The first frame of a stream to an agent.
///
/// # Errors
/// It does not fit: the user's own arguments and environment are all that can be so long.
pub fn call(request: AgentRequest) -> Result<Vec<u8>, Failure> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let host_time_ns = since.map_or(0, |since| since.as_nanos() as u64);
    let call = AgentCall {
        version: AGENT_VERSION,
        host_time_ns,
        request,
    };
    let payload = serde_json::to_vec(&call).expect("our own messages have string keys only");
    if payload.len() > MAX_JSON {
        let what = format!(
            "send arguments and environment to the guest: they take {} bytes, {MAX_JSON} are possible",
            payload.len()
        );
        return Err(Failure::usage(what)
            .hint("Give long input on the command's standard input or in a file."));
    }
    Ok(frame::encoded(Kind::Request, &payload))
}

/// What the agent's failure means to our caller.
pub fn agent_failure(failure: AgentFailure, doing: &str) -> OwnFailure {
    let status = match failure.kind {
        AgentFailureKind::NotFound => 127,
        AgentFailureKind::NotExecutable => 126,
        AgentFailureKind::Workdir
        | AgentFailureKind::Busy
        | AgentFailureKind::Version
        | AgentFailureKind::Malformed
        | AgentFailureKind::Full
        | AgentFailureKind::Unsupported
        | AgentFailureKind::Other => 125,
    };
    let shown = Failure::failed(doing.to_owned()).because(failure.what);
    let failure = match failure.kind {
        AgentFailureKind::Version => shown.hint(
            "The VM was started by another version of banger: `banger vm restart NAME` renews its agent.",
        ),
        AgentFailureKind::Full => {
            shown.hint("Free space in the guest, or make a VM with a larger --disk-size.")
        }
        AgentFailureKind::Busy => shown.hint("Try again when one of them has ended."),
        AgentFailureKind::Workdir => shown.hint("Name an existing directory with --workdir."),
        AgentFailureKind::NotFound
        | AgentFailureKind::NotExecutable
        | AgentFailureKind::Malformed
        | AgentFailureKind::Unsupported
        | AgentFailureKind::Other => shown,
    };
    OwnFailure { status, failure }
}

/// The connection ended before the command did.
pub fn lost(cause: impl std::fmt::Display) -> Failure {
    Failure::failed("the connection to the guest was lost")
        .because(cause)
        .hint("`banger vm list` shows whether it still runs, `banger vm logs NAME --console` its last words.")
}

/// The connection stands, and nothing comes of it.
fn silent() -> OwnFailure {
    let failure = Failure::failed("the guest does not answer: the session was left").hint(
        "`banger vm logs NAME --console` has its last words, `banger vm kill NAME` ends it without asking it.",
    );
    let status = INTERRUPTED;
    OwnFailure { status, failure }
}

/// How often Ctrl-C was typed in a row without any sign of the guest.
#[derive(Debug, Default)]
struct Unanswered {
    since: Option<Instant>,
    count: u32,
}

impl Unanswered {
    /// Something came from the guest.
    fn heard(&mut self) {
        *self = Unanswered::default();
    }

    /// These were typed; whether it is time to go.
    fn typed(&mut self, bytes: &[u8], now: Instant) -> bool {
        for byte in bytes {
            match *byte {
                CTRL_C => self.count += 1,
                _ => self.heard(),
            }
        }
        if self.count == 0 {
            return false;
        }
        let since = *self.since.get_or_insert(now);
        self.count >= UNANSWERED && now.saturating_duration_since(since) >= SILENCE
    }
}

struct Session {
    ends: Ends,
    terminal: bool,
    program: String,
    decoder: Decoder,
    outgoing: Vec<u8>,
    credit: usize,
    input_open: bool,
    output: Pending,
    error_output: Pending,
    ended: Option<u8>,
    interrupted: Option<Instant>,
    unanswered: Unanswered,
    /// When it ends at the latest, and with what, since it was told to.
    ending: Option<(Instant, u8)>,
}

/// What a poll found.
#[derive(Debug, Default, Clone, Copy)]
struct Ready {
    read_stream: bool,
    write_stream: bool,
    input: bool,
    output: bool,
    error_output: bool,
    signals: bool,
}

impl Session {
    fn new(ends: Ends, exec: Exec) -> Result<Session, Failure> {
        let output = Pending::new(ends.output.as_fd());
        let error_output = Pending::new(ends.error_output.as_fd());
        Ok(Session {
            terminal: exec.terminal.is_some(),
            program: exec.argv.first().cloned().unwrap_or("a shell".to_owned()),
            decoder: Decoder::new(),
            outgoing: call(AgentRequest::Exec(exec))?,
            credit: INITIAL_CREDIT as usize,
            input_open: true,
            output,
            error_output,
            ended: None,
            interrupted: None,
            unanswered: Unanswered::default(),
            ending: None,
            ends,
        })
    }

    /// Waits for something and does it; the status once all is over.
    fn turn(&mut self) -> Result<Option<u8>, OwnFailure> {
        if let Some(status) = self.ended
            && self.output.is_empty()
            && self.error_output.is_empty()
        {
            return Ok(Some(status));
        }
        if let Some((_, status)) = self.ending.filter(|(end, _)| *end <= Instant::now()) {
            return Ok(Some(status));
        }
        let ready = self.wait()?;
        if ready.signals
            && let Some(status) = self.take_signals()
        {
            return Ok(Some(status));
        }
        if ready.output && self.output.write(self.ends.output.as_fd())? == Written::ReaderGone
            || ready.error_output
                && self.error_output.write(self.ends.error_output.as_fd())? == Written::ReaderGone
        {
            return Ok(Some(self.ended.unwrap_or(PIPE_BROKEN)));
        }
        // Input before the stream: what is there already, or its end, travels with the
        // request, and a guest is interrupted once.
        if ready.input {
            self.read_input()?;
        }
        if ready.write_stream {
            self.write_stream();
        }
        if ready.read_stream {
            self.read_stream()?;
        }
        Ok(None)
    }

    fn wait(&self) -> Result<Ready, OwnFailure> {
        let running = self.ended.is_none();
        let room = self.output.len() + self.error_output.len() < MAX_PENDING;
        let takes_input =
            running && self.input_open && self.credit > 0 && self.outgoing.len() < MAX_OUTGOING;
        let mut stream = PollFlags::empty();
        stream.set(PollFlags::IN, running && room);
        stream.set(PollFlags::OUT, running && !self.outgoing.is_empty());
        let wanted = [
            (Some(self.ends.stream.as_fd()), stream),
            (
                self.ends.input.as_ref().map(AsFd::as_fd),
                when(takes_input, PollFlags::IN),
            ),
            (
                Some(self.ends.output.as_fd()),
                when(!self.output.is_empty(), PollFlags::OUT),
            ),
            (
                Some(self.ends.error_output.as_fd()),
                when(!self.error_output.is_empty(), PollFlags::OUT),
            ),
            (Some(self.ends.signals.as_fd()), PollFlags::IN),
        ];
        let mut found = poll_all(wanted, self.ending.map(|(end, _)| end))?;
        if self.ends.input.is_none() {
            found[1] = when(takes_input, PollFlags::IN);
        }
        // An error or a hang-up is found by reading or writing.
        let any = |flags: PollFlags, flag: PollFlags| {
            flags.intersects(flag | PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
        };
        Ok(Ready {
            read_stream: running && room && any(found[0], PollFlags::IN),
            write_stream: found[0].intersects(PollFlags::OUT),
            input: any(found[1], PollFlags::IN),
            output: any(found[2], PollFlags::OUT),
            error_output: any(found[3], PollFlags::OUT),
            signals: found[4].intersects(PollFlags::IN),
        })
    }

    /// Forwards signals; the status to end with at a second one that asks for it.
    fn take_signals(&mut self) -> Option<u8> {
        let mut bytes = [0_u8; 16];
        let count = rustix::io::read(&self.ends.signals, &mut bytes).unwrap_or(0);
        for signal in &bytes[..count] {
            match *signal {
                WINDOW_CHANGE if !self.terminal => {}
                WINDOW_CHANGE => self.resize(),
                signal => {
                    if signal == INTERRUPT && self.is_second_interrupt() {
                        return Some(INTERRUPTED);
                    }
                    if matches!(signal, TERMINATE | HANG_UP)
                        && let Some(status) = self.is_to_end(signal)
                    {
                        return Some(status);
                    }
                    frame::encode(Kind::Signal, &[signal], &mut self.outgoing);
                }
            }
        }
        None
    }

    /// Whoever sends these wants us gone, whatever the command makes of them: in a while,
    /// or at once the second time.
    fn is_to_end(&mut self, signal: u8) -> Option<u8> {
        let status = 128 + signal;
        let before = self.ending.replace((Instant::now() + END_GRACE, status));
        (before.is_some() || self.ended.is_some()).then_some(status)
    }

    fn is_second_interrupt(&mut self) -> bool {
        let now = Instant::now();
        let before = self.interrupted.replace(now);
        // A command that has ended only has its output drained: once is enough then.
        self.ended.is_some() || before.is_some_and(|before| now - before < TWICE)
    }

    fn resize(&mut self) {
        if let Some((columns, rows)) = terminal::size() {
            let size = (u32::from(columns) << 16) | u32::from(rows);
            frame::encode(Kind::Resize, &size.to_be_bytes(), &mut self.outgoing);
        }
    }

    fn read_input(&mut self) -> Result<(), OwnFailure> {
        let mut bytes = [0_u8; MAX_DATA];
        let most = self.credit.min(MAX_DATA);
        let read = match &self.ends.input {
            Some(input) => rustix::io::read(input, &mut bytes[..most]),
            None => Ok(0),
        };
        match read {
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal that has gone gives EIO: that is the end of input too.
            Ok(0) | Err(_) => {
                self.input_open = false;
                frame::encode(Kind::InputEnd, &[], &mut self.outgoing);
            }
            Ok(count) => {
                if self.terminal && self.unanswered.typed(&bytes[..count], Instant::now()) {
                    return Err(silent());
                }
                self.credit -= count;
                frame::encode(Kind::Input, &bytes[..count], &mut self.outgoing);
            }
        }
        Ok(())
    }

    fn write_stream(&mut self) {
        match rustix::io::write(&self.ends.stream, &self.outgoing) {
            Ok(count) => {
                self.outgoing.drain(..count);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The agent may have ended the stream after its last frame, which still
            // waits to be read: reading finds out.
            Err(_) => {
                self.outgoing.clear();
                self.input_open = false;
            }
        }
    }

    fn read_stream(&mut self) -> Result<(), OwnFailure> {
        let mut bytes = [0_u8; MAX_DATA];
        match rustix::io::read(&self.ends.stream, &mut bytes) {
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(lost(error).into()),
            Ok(0) => {
                self.decoder.finish().map_err(lost)?;
                return Err(lost("it ended before the command did").into());
            }
            Ok(count) => {
                self.unanswered.heard();
                self.decoder.push(&bytes[..count]);
            }
        }
        while self.ended.is_none() {
            match self.decoder.next_frame().map_err(lost)? {
                Some(frame) => self.take(frame)?,
                None => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> Result<(), OwnFailure> {
        match frame.kind {
            Kind::Output => self.output.push(&frame.payload),
            Kind::ErrorOutput => self.error_output.push(&frame.payload),
            Kind::Credit => {
                let more = frame.number().map_err(lost)? as usize;
                self.credit = self.credit.saturating_add(more);
            }
            Kind::Exit => {
                let exit: Exit = frame.json().map_err(lost)?;
                self.ended = Some(exit.status());
            }
            Kind::Failed => {
                let failure: AgentFailure = frame.json().map_err(lost)?;
                return Err(agent_failure(failure, &format!("run {}", self.program)));
            }
            Kind::Request
            | Kind::Input
            | Kind::InputEnd
            | Kind::Resize
            | Kind::Signal
            | Kind::Reply => {
                let what = format!("the guest sent a {:?} frame in a session", frame.kind);
                return Err(lost(what).into());
            }
        }
        Ok(())
    }
}

fn when(wanted: bool, flags: PollFlags) -> PollFlags {
    match wanted {
        true => flags,
        false => PollFlags::empty(),
    }
}

/// Polls those for which something is wanted; the others are left out, because a
/// hang-up is reported even to those who want nothing, and would spin the loop.
fn poll_all<const N: usize>(
    wanted: [(Option<BorrowedFd<'_>>, PollFlags); N],
    until: Option<Instant>,
) -> Result<[PollFlags; N], OwnFailure> {
    let mut places = Vec::with_capacity(N);
    let mut polled = Vec::with_capacity(N);
    for (place, (descriptor, flags)) in wanted.into_iter().enumerate() {
        if let Some(descriptor) = descriptor
            && !flags.is_empty()
        {
            places.push(place);
            polled.push(PollFd::from_borrowed_fd(descriptor, flags));
        }
    }
    let mut found = [PollFlags::empty(); N];
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.map(|left| Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    match poll(&mut polled, left.as_ref()) {
        Ok(_) => {
            for (place, polled) in places.into_iter().zip(&polled) {
                found[place] = polled.revents();
            }
            Ok(found)
        }
        Err(Errno::INTR) => Ok(found),
        Err(error) => Err(Failure::failed("wait for the guest").because(error).into()),
    }
}

#[cfg(test)]
mod tests;
