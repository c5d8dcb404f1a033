//! A program's three pipes while it runs: fed and read at the same time, so that it never
//! waits for us with a full pipe, and bounded, so that it cannot fill our memory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdin};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Most of a stream that is kept: its last so many bytes.
pub const KEPT: usize = 1 << 20;

/// The pipes of a running child.
#[derive(Debug)]
pub struct Pipes<'a> {
    /// Readable when the child has ended.
    ended: OwnedFd,
    input: Option<ChildStdin>,
    unsent: &'a [u8],
    /// Standard output and standard error.
    streams: [Stream; 2],
}

/// What a child writes, with the end of it that we read; `None` once it is closed.
#[derive(Debug)]
struct Stream {
    pipe: Option<OwnedFd>,
    seen: Vec<u8>,
}

impl<'a> Pipes<'a> {
    /// Takes the pipes of a child that was started with all three.
    ///
    /// # Errors
    /// The child cannot be watched.
    pub fn of(child: &mut Child, input: &'a [u8]) -> io::Result<Pipes<'a>> {
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let stdin = child.stdin.take().filter(|_| !input.is_empty());
        if let Some(stdin) = &stdin {
            ioctl_fionbio(stdin, true)?;
        }
        Ok(Pipes {
            ended,
            input: stdin,
            unsent: input,
            streams: [
                Stream::of(child.stdout.take().map(OwnedFd::from)),
                Stream::of(child.stderr.take().map(OwnedFd::from)),
            ],
        })
    }

    /// Feeds and reads until the child has ended; what it wrote, or `None` when the
    /// deadline passed first.
    ///
    /// # Errors
    /// A pipe cannot be read.
    pub fn serve(mut self, deadline: Duration) -> io::Result<Option<[String; 2]>> {
        let deadline = Instant::now() + deadline;
        loop {
            let Some(ready) = self.wait(deadline)? else {
                return Ok(None);
            };
            if ready.input {
                self.feed();
            }
            // A grandchild may keep the pipes open and write on: the end of the program
            // itself counts, and what the pipes hold then.
            if ready.ended {
                for stream in &mut self.streams {
                    stream.drain()?;
                }
                return Ok(Some(self.streams.map(Stream::text)));
            }
            for (stream, ready) in self.streams.iter_mut().zip(ready.streams) {
                if ready {
                    stream.read()?;
                }
            }
            // One that always has something for us never lets the wait run out.
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// Waits until something can be done; `None` at the deadline.
    fn wait(&self, deadline: Instant) -> io::Result<Option<Ready>> {
        let mut watched = vec![PollFd::new(&self.ended, PollFlags::IN)];
        let pipes = self.streams.each_ref().map(|stream| stream.pipe.as_ref());
        watched.extend(
            pipes
                .iter()
                .flatten()
                .map(|pipe| PollFd::new(*pipe, PollFlags::IN)),
        );
        let input = self.input.as_ref();
        watched.extend(input.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::OUT)));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut watched, Some(&left)) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut ready = watched.iter().map(|one| !one.revents().is_empty());
        let mut next = |is_watched: bool| is_watched && ready.next() == Some(true);
        Ok(Some(Ready {
            ended: next(true),
            streams: pipes.map(|pipe| next(pipe.is_some())),
            input: next(input.is_some()),
        }))
    }

    /// Writes what the pipe takes and closes it after the last byte. A program that ends
    /// without reading it reports so by its status, so an error here says nothing more.
    fn feed(&mut self) {
        let Some(pipe) = &self.input else { return };
        match rustix::io::write(pipe, self.unsent) {
            Ok(count) => self.unsent = &self.unsent[count..],
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => self.unsent = &[],
        }
        if self.unsent.is_empty() {
            self.input = None;
        }
    }
}

/// What can be done without waiting.
struct Ready {
    ended: bool,
    streams: [bool; 2],
    input: bool,
}

impl Stream {
    fn of(pipe: Option<OwnedFd>) -> Stream {
        let seen = Vec::new();
        Stream { pipe, seen }
    }

    /// Takes what the pipe holds at this moment, at most.
    fn drain(&mut self) -> io::Result<()> {
        let mut left = match &self.pipe {
            Some(pipe) => ioctl_fionread(pipe)?,
            None => 0,
        };
        while left > 0 {
            // The end cannot come first: nobody else reads.
            left = left.saturating_sub(self.read()?);
        }
        Ok(())
    }

    /// Takes what is there, which must be something or the end; how many bytes.
    fn read(&mut self) -> io::Result<u64> {
        let Some(pipe) = &self.pipe else {
            return Ok(0);
        };
        let mut part = [0; 64 * 1024];
        let count = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut part))?;
        if count == 0 {
            self.pipe = None;
        }
        self.seen.extend_from_slice(&part[..count]);
        if self.seen.len() > 2 * KEPT {
            self.keep_the_end();
        }
        Ok(count as u64)
    }

    fn keep_the_end(&mut self) {
        let over = self.seen.len().saturating_sub(KEPT);
        self.seen.drain(..over);
    }

    fn text(mut self) -> String {
        self.keep_the_end();
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
