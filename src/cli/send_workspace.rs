//! Sends a workspace into a guest: a tar stream as `Input` frames, as far as the
//! agent's credit goes, then `InputEnd`, then its reply.

use std::fs::File;
use std::io::{self, Read, Write};

use super::context::Context;
use super::progress::Stages;
use super::session::{OwnFailure, agent_failure, call, lost};
use crate::failure::Failure;
use crate::proto::agent::{AgentFailure, AgentRequest, INITIAL_CREDIT, Unpack, Unpacked};
use crate::proto::frame::{self, Decoder, Frame, Kind, MAX_DATA};
use crate::proto::reply::Progress;
use crate::workspace::inspect::Workspace;
use crate::workspace::pack::{self, Staged};

/// Where a workspace lies in a guest.
pub const REPOSITORY: &str = "/root/repo";

/// Sends the staged workspace, and waits until it is unpacked.
///
/// # Errors
/// A file cannot be read any more, or the guest could not take it.
pub fn send(
    context: &Context,
    vm: &str,
    workspace: &Workspace,
    staged: &Staged,
    stages: &mut Stages,
) -> Result<Unpacked, OwnFailure> {
    stages.stage("copy the workspace");
    let dialed = context.dial(vm)?;
    let request = AgentRequest::Unpack(Unpack {
        path: REPOSITORY.to_owned(),
    });
    let mut sink = Sink::open(File::from(dialed), request)?;
    let mut archive = Counting {
        sink: &mut sink,
        stages,
        sent: 0,
    };
    let written = pack::write(workspace, staged, &mut archive);
    if let Some(failure) = sink.failure.take() {
        return Err(failure);
    }
    written?;
    let unpacked = sink.finish()?;
    stages.clear();
    Ok(unpacked)
}

/// Shows how much is sent.
struct Counting<'a, 'b> {
    sink: &'a mut Sink,
    stages: &'b mut Stages,
    sent: u64,
}

impl Write for Counting<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.sent += count as u64;
        self.stages.show(&Progress {
            stage: "copy the workspace".to_owned(),
            detail: String::new(),
            current: Some(self.sent),
            total: None,
        });
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream into an agent that takes as much as its credit allows.
struct Sink {
    stream: File,
    decoder: Decoder,
    credit: usize,
    /// Why the agent takes no more; told apart from our own trouble with the files. The
    /// first one: whoever writes through buffers goes on writing when these are dropped.
    failure: Option<OwnFailure>,
}

impl Sink {
    fn open(mut stream: File, request: AgentRequest) -> Result<Sink, Failure> {
        stream.write_all(&call(request)?).map_err(lost)?;
        Ok(Sink {
            stream,
            decoder: Decoder::new(),
            credit: INITIAL_CREDIT as usize,
            failure: None,
        })
    }

    fn next(&mut self) -> Result<Frame, Failure> {
        let mut bytes = [0_u8; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(lost)? {
                return Ok(frame);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(lost("it ended before the workspace was unpacked")),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Takes frames until one that is no credit, or until there is credit.
    fn wait_for_credit(&mut self) -> Result<(), OwnFailure> {
        while self.credit == 0 {
            let frame = self.next()?;
            self.take(frame)?;
        }
        Ok(())
    }

    /// The reply, if this frame is one.
    fn take(&mut self, frame: Frame) -> Result<Option<Unpacked>, OwnFailure> {
        match frame.kind {
            Kind::Credit => {
                self.credit += frame.number().map_err(lost)? as usize;
                Ok(None)
            }
            Kind::Reply => Ok(Some(frame.json().map_err(lost)?)),
            Kind::Failed => {
                let failure: AgentFailure = frame.json().map_err(lost)?;
                Err(agent_failure(failure, "unpack the workspace in the guest"))
            }
            kind => Err(lost(format!("the guest sent a {kind:?} frame")).into()),
        }
    }

    fn finish(mut self) -> Result<Unpacked, OwnFailure> {
        let end = frame::encoded(Kind::InputEnd, &[]);
        // Where the agent has failed already, its reason waits to be read.
        drop(self.stream.write_all(&end));
        loop {
            let frame = self.next()?;
            if let Some(unpacked) = self.take(frame)? {
                return Ok(unpacked);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, OwnFailure> {
        self.wait_for_credit()?;
        let count = bytes.len().min(MAX_DATA).min(self.credit);
        let frame = frame::encoded(Kind::Input, &bytes[..count]);
        if let Err(error) = self.stream.write_all(&frame) {
            // The agent closes after its `Failed` frame: read why.
            return Err(loop {
                match self.next().map_err(OwnFailure::from) {
                    Ok(frame) => match self.take(frame) {
                        Ok(_) => {}
                        Err(failure) => break failure,
                    },
                    Err(_) => break lost(error).into(),
                }
            });
        }
        self.credit -= count;
        Ok(count)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let full = || io::Error::other("the guest takes no more");
        if self.failure.is_some() {
            return Err(full());
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        self.send(bytes).map_err(|failure| {
            self.failure = Some(failure);
            full()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::agent::{AgentCall, AgentFailureKind};
    use crate::workspace::depth::Depth;
    use crate::workspace::git;
    use crate::workspace::inspect::{Untracked, inspect};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// An agent that reads one byte of input at a time of credit, then `end`s.
    fn agent(mut stream: UnixStream, end: impl Fn(u64) -> Option<Vec<u8>>) -> u64 {
        let mut decoder = Decoder::new();
        let mut bytes = [0_u8; 8192];
        let mut received = 0;
        loop {
            while let Some(frame) = decoder.next_frame().unwrap() {
                match frame.kind {
                    Kind::Request => drop(frame.json::<AgentCall>().unwrap()),
                    Kind::Input => {
                        received += frame.payload.len() as u64;
                        let credit = (frame.payload.len() as u32).to_be_bytes();
                        stream
                            .write_all(&frame::encoded(Kind::Credit, &credit))
                            .unwrap();
                    }
                    _ => {}
                }
                let ended = frame.kind == Kind::InputEnd;
                if let Some(last) = end(received).filter(|_| ended || received > 1 << 20) {
                    stream.write_all(&last).unwrap();
                    return received;
                }
            }
            match stream.read(&mut bytes).unwrap() {
                0 => return received,
                count => decoder.push(&bytes[..count]),
            }
        }
    }

    fn open(stream: UnixStream) -> Sink {
        let request = AgentRequest::Unpack(Unpack {
            path: REPOSITORY.to_owned(),
        });
        Sink::open(File::from(OwnedFd::from(stream)), request).unwrap()
    }

    #[test]
    fn four_megabytes_pass_a_quarter_megabyte_of_credit() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reply = |received| {
            let unpacked = Unpacked {
                entries: 1,
                bytes: received,
            };
            (received == 4 << 20).then(|| frame::encoded_json(Kind::Reply, &unpacked))
        };
        let thread = std::thread::spawn(move || agent(theirs, reply));
        let mut sink = open(ours);
        sink.write_all(&vec![7_u8; 4 << 20]).unwrap();
        assert_eq!(sink.finish().unwrap().bytes, 4 << 20);
        assert_eq!(thread.join().unwrap(), 4 << 20);
    }

    fn full(_: u64) -> Option<Vec<u8>> {
        let failure = AgentFailure {
            kind: AgentFailureKind::Full,
            what: "write /root/repo/x: no space left".to_owned(),
        };
        Some(frame::encoded_json(Kind::Failed, &failure))
    }

    /// The archive and its buffer write what they still hold when they are dropped.
    #[test]
    fn a_guest_that_is_full_amid_an_archive_is_reported_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| git::run(folder.path(), arguments).unwrap();
        run(&["init", "--quiet"]);
        std::fs::write(folder.path().join("large"), vec![7_u8; 8 << 20]).unwrap();
        run(&["add", "--all"]);
        let workspace = inspect(folder.path(), Untracked::Leave).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let staged = pack::stage(&workspace, Depth::DEFAULT, cache.path()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || agent(theirs, full));
        let mut sink = open(ours);
        assert!(pack::write(&workspace, &staged, &mut sink).is_err());
        let failure = sink.failure.take().unwrap().failure;
        assert!(failure.hint.unwrap().contains("--disk-size"));
        thread.join().unwrap();
    }

    #[test]
    fn a_full_guest_is_reported_as_such() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || agent(theirs, full));
        let mut sink = open(ours);
        assert!(sink.write_all(&vec![7_u8; 8 << 20]).is_err());
        let failure = sink.failure.take().unwrap();
        assert_eq!(failure.status, 125);
        assert!(failure.failure.hint.unwrap().contains("--disk-size"));
        thread.join().unwrap();
    }
}
