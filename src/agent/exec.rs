//! One running command and its stream, in one thread and one loop that waits for
//! whichever of its descriptors is ready.
//!
//! ```text
//!  converse: frames in -> input, signal, resize;  output -> frames out
//!     | the command itself has ended        | the peer is gone or talks nonsense
//!     v                                     v
//!  conclude: what the pipes hold by now,    abandon: SIGHUP, then SIGKILL
//!            Exit, wait for the peer's close
//! ```
//!
//! The end is the command's own: a background child that keeps the pipes open does
//! not hold it up. Input is taken by credit, so that a command which does not read
//! cannot keep a signal or a resize from arriving.

use std::collections::VecDeque;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::child::{self, Child};
use super::command;
use super::stream::{FrameStream, StreamError};
use crate::proto::agent::{AgentFailure, Exec, INITIAL_CREDIT};
use crate::proto::frame::{Frame, FrameError, Kind, MAX_DATA};

/// Output that may wait for the peer before the command has to.
const BACKLOG: usize = 256 * 1024;
/// Credit is given back in parts of this size, not for each byte typed.
const CREDIT_PART: u32 = INITIAL_CREDIT / 4;
/// What a command whose client has vanished gets after SIGHUP before SIGKILL.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// What every command of this guest starts with.
#[derive(Debug, Clone, Copy)]
pub struct Defaults<'a> {
    /// The VM's environment.
    pub env: &'a [(String, String)],
    /// Where to start, as long as it exists; else in root's home.
    pub directory: Option<&'a str>,
}

/// Runs a command to its end, or to the end of its client.
pub fn run(mut stream: FrameStream, exec: &Exec, defaults: Defaults<'_>) {
    match begin(exec, defaults) {
        Ok(child) => Session::new(stream, child).run(),
        Err(failure) => {
            stream.queue_json(Kind::Failed, &failure);
            stream.finish();
        }
    }
}

fn begin(exec: &Exec, defaults: Defaults<'_>) -> Result<Child, AgentFailure> {
    let term = exec
        .terminal
        .as_ref()
        .map(|terminal| terminal.term.as_str());
    let environment = command::environment(&[defaults.env, &exec.env], term);
    let directory = command::directory(exec.workdir.as_deref(), defaults.directory)?;
    let launch = command::find(&exec.argv, &environment)?;
    let arguments = exec.argv.get(1..).unwrap_or_default();
    child::start(
        &launch,
        arguments,
        &environment,
        &directory,
        exec.terminal.as_ref(),
    )
}

struct Session {
    stream: FrameStream,
    child: Child,
    /// Input received and not yet taken by the command.
    input: VecDeque<u8>,
    input_ended: bool,
    /// Bytes of input that the peer may still send.
    allowance: u32,
    /// Bytes taken since credit was last given.
    taken: u32,
    part: Vec<u8>,
}

/// What a wait ended with.
struct Ready {
    stream: bool,
    ended: bool,
    outputs: Vec<bool>,
}

impl Session {
    fn new(stream: FrameStream, child: Child) -> Session {
        Session {
            stream,
            child,
            input: VecDeque::new(),
            input_ended: false,
            allowance: INITIAL_CREDIT,
            taken: 0,
            part: vec![0; MAX_DATA],
        }
    }

    fn run(mut self) {
        match self.converse() {
            Ok(()) => self.conclude(),
            Err(_) => self.abandon(),
        }
    }

    /// Until the command has ended.
    fn converse(&mut self) -> Result<(), StreamError> {
        loop {
            while let Some(frame) = self.stream.ready_frame()? {
                self.obey(&frame)?;
            }
            self.feed();
            self.stream.transmit()?;
            let ready = self.wait()?;
            if ready.stream && !self.stream.receive()? {
                return Err(StreamError::Closed);
            }
            self.pump(&ready.outputs);
            if ready.ended {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<Ready, StreamError> {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, self.stream.backlog() > 0);
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.stream.fd(), wanted),
            PollFd::new(&self.child.pidfd, PollFlags::IN),
        ];
        let pumps = self.stream.backlog() < BACKLOG;
        let outputs = self.child.outputs.iter().filter(|_| pumps);
        fds.extend(outputs.map(|output| PollFd::new(&output.fd, PollFlags::IN)));
        // Only while there is something to write: a closed pipe is always "ready".
        let input = self.child.input.iter().filter(|_| !self.input.is_empty());
        fds.extend(input.map(|input| PollFd::new(input, PollFlags::OUT)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(StreamError::Io(error.into())),
        }
        let is_ready = |fd: &PollFd<'_>| !(fd.revents() - PollFlags::OUT).is_empty();
        let count = if pumps { self.child.outputs.len() } else { 0 };
        Ok(Ready {
            stream: is_ready(&fds[0]),
            ended: is_ready(&fds[1]),
            outputs: fds[2..2 + count].iter().map(is_ready).collect(),
        })
    }

    fn obey(&mut self, frame: &Frame) -> Result<(), StreamError> {
        match frame.kind {
            Kind::Input if !self.input_ended => self.take_input(&frame.payload)?,
            Kind::InputEnd if !self.input_ended => {
                self.input_ended = true;
                self.input.extend(self.child.end_byte());
            }
            Kind::Resize => {
                let (columns, rows) = frame.size()?;
                self.child.resize(columns, rows);
            }
            Kind::Signal => self.signal(frame)?,
            other => return Err(StreamError::OutOfTurn(other)),
        }
        Ok(())
    }

    fn take_input(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let left = self.allowance.checked_sub(bytes.len() as u32);
        self.allowance = left.ok_or_else(|| FrameError::Malformed {
            kind: Kind::Input,
            why: "more bytes than there was credit for".to_owned(),
        })?;
        self.input.extend(bytes);
        Ok(())
    }

    fn signal(&self, frame: &Frame) -> Result<(), FrameError> {
        let malformed = |why| FrameError::Malformed {
            kind: Kind::Signal,
            why,
        };
        let number = frame.payload.first().copied();
        let number = number.ok_or_else(|| malformed("no number".to_owned()))?;
        self.child
            .signal(number)
            .map_err(|failure| malformed(failure.what))
    }

    /// Gives the command its input; what nobody reads any more is thrown away, so that
    /// the client is not held up by a command that has closed its input.
    fn feed(&mut self) {
        while let Some(fd) = self.child.input.as_ref().filter(|_| !self.input.is_empty()) {
            match rustix::io::write(fd, self.input.as_slices().0) {
                Ok(count) => {
                    self.input.drain(..count);
                    self.taken += count as u32;
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.child.input = None,
            }
        }
        if self.child.input.is_none() {
            self.taken += self.input.len() as u32;
            self.input.clear();
        }
        if self.input_ended && self.input.is_empty() && self.child.end_byte().is_none() {
            self.child.input = None;
        }
        if self.taken >= CREDIT_PART && !self.input_ended {
            self.stream.queue(Kind::Credit, &self.taken.to_be_bytes());
            self.allowance += self.taken;
            self.taken = 0;
        }
    }

    /// Moves one part of each output that is ready; drops those that have ended.
    fn pump(&mut self, ready: &[bool]) {
        let mut index = 0;
        let (stream, part) = (&mut self.stream, &mut self.part);
        self.child.outputs.retain(|output| {
            let is_ready = ready.get(index).copied().unwrap_or(false);
            index += 1;
            if !is_ready {
                return true;
            }
            match rustix::io::read(&output.fd, &mut part[..]) {
                Ok(0) => false,
                Ok(count) => {
                    stream.queue(output.kind, &part[..count]);
                    true
                }
                Err(Errno::AGAIN | Errno::INTR) => true,
                // EIO of a terminal: nobody has its other end any more.
                Err(_) => false,
            }
        });
    }

    fn conclude(mut self) {
        let exit = self
            .child
            .wait()
            .expect("only this thread waits for its child");
        self.drain();
        self.child.let_go();
        self.stream.queue_json(Kind::Exit, &exit);
        // A client that reads slowly gets everything; one that is gone ends this.
        if self.stream.flush(None).is_ok() {
            self.stream.finish();
        }
    }

    /// Reads what the outputs hold at this moment and no more.
    fn drain(&mut self) {
        let held = self.child.held();
        for (output, mut left) in self.child.outputs.iter().zip(held) {
            while left > 0 {
                match rustix::io::read(&output.fd, &mut self.part[..]) {
                    Ok(0) => break,
                    Ok(count) => {
                        self.stream.queue(output.kind, &self.part[..count]);
                        left = left.saturating_sub(count as u64);
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn abandon(mut self) {
        self.child.hang_up();
        self.child.let_go();
        let grace = Timespec::try_from(HANGUP_GRACE).expect("seconds fit a timespec");
        let ended = poll(
            &mut [PollFd::new(&self.child.pidfd, PollFlags::IN)],
            Some(&grace),
        );
        if !matches!(ended, Ok(1)) {
            self.child.signal_own_group(Signal::KILL);
        }
        self.child
            .wait()
            .expect("only this thread waits for its child");
    }
}
