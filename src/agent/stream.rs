//! Frames over a descriptor: a vsock stream in a guest, a socket pair in tests.
//!
//! The descriptor is non-blocking; whoever wants to wait does so here, with a limit.
//! Nothing here half-closes: after its last frame the agent waits for the peer to
//! close ([`FrameStream::finish`]), since a close drops what is still in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};

use crate::proto::frame::{Decoder, Frame, FrameError, Kind, encode, encoded_json};

/// How long a peer may take to close after the last frame, or to take in one.
const LINGER: Duration = Duration::from_secs(10);
/// Bytes read from a stream at once.
const PART: usize = 64 * 1024;

/// Why a stream is over before its conversation is.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer closed.
    #[error("the other side closed the stream")]
    Closed,
    /// The peer sent what is no frame of ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent a frame that has no meaning at this point.
    #[error("a {0:?} frame out of turn")]
    OutOfTurn(Kind),
    /// The peer was silent for too long.
    #[error("the other side was silent for too long")]
    Silent,
    /// The descriptor failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A stream of frames in both directions.
#[derive(Debug)]
pub struct FrameStream {
    fd: OwnedFd,
    decoder: Decoder,
    outgoing: VecDeque<u8>,
    part: Vec<u8>,
}

impl FrameStream {
    /// Takes the descriptor over and makes it non-blocking.
    ///
    /// # Errors
    /// It cannot be made so.
    pub fn new(fd: OwnedFd) -> io::Result<FrameStream> {
        ioctl_fionbio(&fd, true)?;
        Ok(FrameStream {
            fd,
            decoder: Decoder::new(),
            outgoing: VecDeque::new(),
            part: vec![0; PART],
        })
    }

    /// The descriptor, to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes queued and not yet taken by the kernel.
    pub fn backlog(&self) -> usize {
        self.outgoing.len()
    }

    /// Queues a frame.
    pub fn queue(&mut self, kind: Kind, payload: &[u8]) {
        let mut bytes = Vec::with_capacity(payload.len() + 8);
        encode(kind, payload, &mut bytes);
        self.outgoing.extend(bytes);
    }

    /// Queues a frame that holds JSON.
    pub fn queue_json<T: serde::Serialize>(&mut self, kind: Kind, value: &T) {
        self.outgoing.extend(encoded_json(kind, value));
    }

    /// A frame that is here already.
    ///
    /// # Errors
    /// The bytes are no frame.
    pub fn ready_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.decoder.next_frame()
    }

    /// Takes in what the peer sent, without waiting; false when it has closed.
    ///
    /// # Errors
    /// The descriptor failed.
    pub fn receive(&mut self) -> io::Result<bool> {
        match rustix::io::read(&self.fd, &mut self.part[..]) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.decoder.push(&self.part[..count]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what the kernel takes of the queue, without waiting.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn transmit(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match rustix::io::write(&self.fd, front) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for the next frame; `None` as limit waits as long as the peer lives.
    ///
    /// # Errors
    /// The peer closed, was silent past the limit, or sent no frame.
    pub fn next_frame(&mut self, limit: Option<Duration>) -> Result<Frame, StreamError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(frame) = self.ready_frame()? {
                return Ok(frame);
            }
            wait(&self.fd, PollFlags::IN, deadline)?;
            if !self.receive()? {
                self.decoder.finish()?;
                return Err(StreamError::Closed);
            }
        }
    }

    /// Waits until the queue has gone out; `None` waits as long as the peer lives.
    ///
    /// # Errors
    /// The peer is gone, or took nothing for the limit.
    pub fn flush(&mut self, limit: Option<Duration>) -> Result<(), StreamError> {
        self.transmit()?;
        while !self.outgoing.is_empty() {
            wait(
                &self.fd,
                PollFlags::OUT,
                limit.map(|limit| Instant::now() + limit),
            )?;
            self.transmit()?;
        }
        Ok(())
    }

    /// Sends what is queued, then waits for the peer to close, whatever it still
    /// sends. A peer that does neither in time is dropped.
    pub fn finish(mut self) {
        self.finish_within(LINGER);
    }

    /// The same with a limit of the caller's, the stream staying open until dropped.
    pub fn finish_within(&mut self, limit: Duration) {
        if self.flush(Some(limit)).is_err() {
            return;
        }
        let deadline = Instant::now() + limit;
        while wait(&self.fd, PollFlags::IN, Some(deadline)).is_ok() {
            match rustix::io::read(&self.fd, &mut self.part[..]) {
                Ok(0) => return,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Waits for one descriptor until the deadline.
fn wait(fd: &OwnedFd, flags: PollFlags, deadline: Option<Instant>) -> Result<(), StreamError> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec::try_from(left).expect("limits are in seconds"));
        match poll(&mut [PollFd::new(fd, flags)], timeout.as_ref()) {
            Ok(0) => return Err(StreamError::Silent),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(StreamError::Io(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (FrameStream, FrameStream) {
        let (one, other) = UnixStream::pair().unwrap();
        (
            FrameStream::new(one.into()).unwrap(),
            FrameStream::new(other.into()).unwrap(),
        )
    }

    #[test]
    fn a_queued_frame_arrives_whole() {
        let (mut one, mut other) = pair();
        one.queue(Kind::Output, &[7; 50_000]);
        one.flush(None).unwrap();
        let frame = other.next_frame(None).unwrap();
        assert_eq!((frame.kind, frame.payload.len()), (Kind::Output, 50_000));
    }

    #[test]
    fn a_silent_peer_is_given_up_after_the_limit() {
        let (mut one, _other) = pair();
        let error = one.next_frame(Some(Duration::from_millis(5))).unwrap_err();
        assert!(matches!(error, StreamError::Silent));
    }

    #[test]
    fn a_peer_that_closes_inside_a_frame_is_an_error() {
        let (mut one, other) = pair();
        rustix::io::write(&other.fd, &[Kind::Input as u8, 0, 0]).unwrap();
        drop(other);
        let error = one.next_frame(None).unwrap_err();
        assert!(matches!(
            error,
            StreamError::Frame(FrameError::Truncated { .. })
        ));
    }
}
