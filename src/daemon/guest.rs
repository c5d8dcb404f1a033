//! The host's half of a guest's calls: waiting for its dial-in, dialling its agent.
//!
//! A guest is not trusted: a frame that is too long, unknown, malformed or out of
//! order ([`Turn`]) closes that one connection and is logged; nothing it sends is believed
//! beyond words for people. One connection is served at a time with a deadline, so
//! that a guest which opens many and says nothing costs one descriptor.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use smol::future::FutureExt;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::{Async, Timer};

use super::turn::Turn;
use crate::failure::{Failure, FailureKind};
use crate::host::socket::{self, Pinned};
use crate::model::harmless::steers;
use crate::plan::step::{Fault, FaultKind};
use crate::proto::agent::{AGENT_VERSION, AgentCall, AgentFailure, AgentRequest};
use crate::proto::frame::{Decoder, Frame, Kind, encoded_json};
use crate::proto::guest::{GuestCall, GuestConfig};

/// How long a guest's call may take once it is connected. A slow guest (TCG under
/// load) needs milliseconds; this is what a hostile one can hold.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Longest line of the vsock back end's handshake, bytes: `OK 4294967295\n`.
const HANDSHAKE_LIMIT: usize = 32;
/// Longest text of a guest that is shown to people, characters.
const WORDS_LIMIT: usize = 400;
/// Most phases or warnings that are kept.
const LIST_LIMIT: usize = 32;

/// What a guest told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestNews {
    /// `/init` has its configuration.
    Configured,
    /// The agent listens.
    Ready {
        /// `systemd` or `agent`.
        init: String,
        /// Name and end of each boot phase, milliseconds since the kernel started.
        phases: Vec<(String, u64)>,
        /// What was skipped, for people.
        warnings: Vec<String>,
    },
    /// `/init` gave up; the text is the guest's.
    Failed(String),
}

/// Binds the socket on which a VM's guest calls, replacing a dead daemon's.
///
/// # Errors
/// The path cannot be bound.
pub fn listen(path: &Path) -> io::Result<Async<UnixListener>> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Async::new(socket::listen(path)?)
}

/// Serves one call of a guest, if it is its `turn`.
///
/// # Errors
/// What the guest did wrong; the connection is closed by then.
pub async fn serve(
    stream: UnixStream,
    turn: &mut Turn,
    config: impl FnOnce() -> GuestConfig,
) -> Result<GuestNews, Failure> {
    let stream =
        Async::new(stream).map_err(|error| Failure::failed("hear a guest").because(error))?;
    let call = async { serve_unbounded(&stream, turn, config).await };
    call.or(async {
        Timer::after(CALL_LIMIT).await;
        Err(Failure::failed("hear a guest").because("it did not finish its call in time"))
    })
    .await
}

async fn serve_unbounded(
    stream: &Async<UnixStream>,
    turn: &mut Turn,
    config: impl FnOnce() -> GuestConfig,
) -> Result<GuestNews, Failure> {
    let frame = read_frame(stream).await?;
    let bad = |why: String| Failure::failed("hear a guest").because(words(&why));
    if frame.kind != Kind::Request {
        return Err(bad(format!("it began with a {:?} frame", frame.kind)));
    }
    let call: GuestCall = frame.json().map_err(|error| bad(error.to_string()))?;
    if let GuestCall::Hello { version, .. } | GuestCall::Ready { version, .. } = &call
        && *version != AGENT_VERSION
    {
        return Err(bad(format!(
            "its agent speaks version {version}, this daemon {AGENT_VERSION}"
        )));
    }
    let answer = turn
        .answer(&call, config)
        .map_err(|why| bad(why.to_owned()))?;
    let news = news(call);
    let mut writer = stream;
    let written = writer.write_all(&answer).await;
    written.map_err(|error| bad(error.to_string()))?;
    // The guest closes once it has the answer; closing first would drop it in flight.
    let mut rest = [0_u8; 64];
    let mut reader = stream;
    match reader.read(&mut rest).await {
        Ok(0) | Err(_) => Ok(news),
        Ok(_) => Err(bad("it went on after its call".to_owned())),
    }
}

fn news(call: GuestCall) -> GuestNews {
    match call {
        GuestCall::Hello { .. } => GuestNews::Configured,
        GuestCall::Failed { what, .. } => GuestNews::Failed(words(&what)),
        GuestCall::Ready {
            init,
            phases,
            warnings,
            ..
        } => ready(init, phases, warnings),
    }
}

fn ready(init: String, phases: Vec<(String, u64)>, warnings: Vec<String>) -> GuestNews {
    GuestNews::Ready {
        init: words(&init),
        phases: phases
            .into_iter()
            .take(LIST_LIMIT)
            .map(|(name, ms)| (words(&name), ms))
            .collect(),
        warnings: warnings
            .iter()
            .take(LIST_LIMIT)
            .map(|text| words(text))
            .collect(),
    }
}

/// A guest's text made fit for a terminal: nothing that steers it, bounded.
pub fn words(text: &str) -> String {
    text.chars()
        .map(|c| if steers(c) { ' ' } else { c })
        .take(WORDS_LIMIT)
        .collect()
}

async fn read_frame(stream: &Async<UnixStream>) -> Result<Frame, Failure> {
    let bad = |why: String| Failure::failed("read a guest's frame").because(words(&why));
    let mut decoder = Decoder::new();
    let mut part = vec![0_u8; 16 * 1024];
    let mut reader = stream;
    loop {
        if let Some(frame) = decoder
            .next_frame()
            .map_err(|error| bad(error.to_string()))?
        {
            return Ok(frame);
        }
        match reader.read(&mut part).await {
            Ok(0) => {
                decoder.finish().map_err(|error| bad(error.to_string()))?;
                return Err(bad("it closed without a word".to_owned()));
            }
            Ok(count) => decoder.push(&part[..count]),
            Err(error) => return Err(bad(error.to_string())),
        }
    }
}

/// Connects to a port of a guest through its vsock back end.
///
/// # Errors
/// The back end is gone, or the guest does not listen there.
pub async fn dial(socket: &Path, port: u32) -> Result<UnixStream, Failure> {
    let attempt = async {
        let stream = Async::new(connect(socket)?)?;
        handshake(&stream, port).await?;
        let stream = stream.into_inner()?;
        // Async made it non-blocking, which whoever gets it would not expect.
        stream.set_nonblocking(false)?;
        Ok(stream)
    };
    let limit = async {
        Timer::after(CALL_LIMIT).await;
        Err(io::Error::from(io::ErrorKind::TimedOut))
    };
    attempt.or(limit).await.map_err(|error: io::Error| {
        Failure::failed(format!("connect to port {port} of the guest")).because(error)
    })
}

/// A Unix socket connects at once or not at all (EAGAIN where its backlog is full), so
/// there is nothing that a reactor would have to be woken up for.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let pinned = Pinned::at(socket)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(pinned.path())?)?;
    Ok(stream.into())
}

/// A running VM whose agent cannot be reached: its back end or its agent has died.
pub fn out_of_reach(name: &str, failure: &Failure) -> Failure {
    Failure::new(failure.kind, format!("reach the agent of vm {name}"))
        .because(failure)
        .hint(format!(
            "It answered before, so it may have too much to do: try again. If it stays so, `banger vm logs {name} --console` may tell why, and `banger vm restart {name}` boots it anew."
        ))
}

/// What keeps a guest from answering though its VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It waits in the middle of a write until there is room.
    Halted,
    /// Its vsock back end serves it no more: it has not outlived a halt.
    CutOff,
}

impl Silence {
    /// What is to be said of such a VM.
    pub fn words(self) -> &'static str {
        match self {
            Silence::Halted => "its guest is halted: the disk of this machine is full",
            Silence::CutOff => {
                "its guest runs and nobody reaches its agent: its vsock back end serves it no more"
            }
        }
    }

    /// The fault of a step that needs its agent.
    pub fn fault(self, attempt: &str) -> Fault {
        let kind = match self {
            Silence::Halted => FaultKind::Full,
            Silence::CutOff => FaultKind::CutOff,
        };
        Fault::new(kind, format!("{attempt}: {}", self.words()))
    }

    /// What a wait for its agent ended with, and why, where that is known: a guest that was
    /// halted in its boot has nothing wrong with its image.
    pub fn explain(known: Option<Silence>, fault: Fault) -> Fault {
        match (fault.kind, known) {
            (FaultKind::Timeout, Some(silence)) => silence.fault(&fault.what),
            _ => fault,
        }
    }

    /// The failure of whatever needs the agent of the VM of this name.
    pub fn failure(self, name: &str) -> Failure {
        let kind = match self {
            Silence::Halted => FailureKind::Storage,
            Silence::CutOff => FailureKind::Failed,
        };
        let hint = match self {
            Silence::Halted => "It goes on by itself once there is room: `banger vm prune`, `banger image delete` and `df` help to make some.".to_owned(),
            Silence::CutOff => format!(
                "`banger vm restart {name}` boots it anew. It writes its files back by itself within half a minute; what it serves over the network it serves until then."
            ),
        };
        Failure::new(kind, format!("reach the agent of vm {name}"))
            .because(self.words())
            .hint(hint)
    }

    /// What is shown with the VM of this name.
    pub fn warning(self, name: &str) -> String {
        match self {
            Silence::Halted => self.words().to_owned(),
            Silence::CutOff => {
                format!("{}: `banger vm restart {name}` boots it anew", self.words())
            }
        }
    }
}

/// `CONNECT <port>\n`, then `OK <number>\n`, read byte by byte: what follows is the guest's.
async fn handshake(stream: &Async<UnixStream>, port: u32) -> io::Result<()> {
    let mut both = stream;
    both.write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut line = Vec::new();
    let mut byte = [0_u8; 1];
    while line.last() != Some(&b'\n') {
        if line.len() >= HANDSHAKE_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an endless handshake",
            ));
        }
        if both.read(&mut byte).await? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "nothing listens there in the guest",
            ));
        }
        line.push(byte[0]);
    }
    match line.starts_with(b"OK ") {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the back end's handshake is not ours",
        )),
    }
}

/// Asks a guest to write back its file systems and power off. Returns once the agent
/// has agreed; the VMM's exit follows.
///
/// # Errors
/// The agent does not answer or refuses.
pub async fn power_off(socket: &Path, host_time_ns: u64) -> Result<(), Failure> {
    let attempt = "ask the guest to power off";
    let answer = ask(socket, host_time_ns, AgentRequest::PowerOff, attempt).await?;
    answer.map_err(|refusal| Failure::failed(attempt).because(words(&refusal.what)))
}

/// Asks the agent for something whose answer says nothing but yes or no.
///
/// # Errors
/// The agent does not answer.
pub async fn ask(
    socket: &Path,
    host_time_ns: u64,
    request: AgentRequest,
    attempt: &str,
) -> Result<Result<(), AgentFailure>, Failure> {
    let stream = dial(socket, crate::proto::agent::AGENT_PORT).await?;
    let stream =
        Async::new(stream).map_err(|error| Failure::failed("call the agent").because(error))?;
    let call = AgentCall {
        version: AGENT_VERSION,
        host_time_ns,
        request,
    };
    let mut writer = &stream;
    let sent = writer.write_all(&encoded_json(Kind::Request, &call)).await;
    sent.map_err(|error| Failure::failed(attempt).because(error))?;
    let answer = read_frame(&stream).or(async {
        Timer::after(CALL_LIMIT).await;
        Err(Failure::failed(attempt).because("no answer in time"))
    });
    let frame = answer.await?;
    let refusal = match frame.kind {
        Kind::Reply => return Ok(Ok(())),
        Kind::Failed => frame.json().map_err(|error| error.to_string()),
        other => Err(format!("it answered with a {other:?} frame")),
    };
    refusal
        .map(Err)
        .map_err(|why| Failure::failed(attempt).because(words(&why)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn config() -> GuestConfig {
        GuestConfig {
            hostname: "dev".to_owned(),
            host_time_ns: 1,
            init: "auto".to_owned(),
            interface: None,
            files: Vec::new(),
            env: Vec::new(),
            workdir: None,
            entrypoint: Vec::new(),
            seed: String::new(),
            machine_id: String::new(),
            token: "00ff".to_owned(),
        }
    }

    #[test]
    fn each_silence_names_its_way_out() {
        let halted = Silence::Halted.failure("dev").hint.unwrap();
        assert!(halted.contains("`banger vm prune`"), "{halted}");
        let cut_off = Silence::CutOff.failure("dev").hint.unwrap();
        assert!(cut_off.contains("`banger vm restart dev`"), "{cut_off}");
        let warning = Silence::CutOff.warning("dev");
        assert!(warning.contains("`banger vm restart dev`"), "{warning}");
        let late = || Fault::new(FaultKind::Timeout, "wait: no answer");
        let explained = Silence::explain(Some(Silence::Halted), late());
        assert_eq!(explained.kind, FaultKind::Full);
        assert!(
            explained
                .what
                .starts_with("wait: no answer: its guest is halted")
        );
        assert_eq!(Silence::explain(None, late()), late());
        assert_eq!(Silence::Halted.fault("stop").kind, FaultKind::Full);
        assert_eq!(Silence::CutOff.fault("stop").kind, FaultKind::CutOff);
    }

    /// Serves what a guest sends, and gives the outcome and the bytes it got back.
    fn hear(bytes: &[u8]) -> (Result<GuestNews, Failure>, Vec<u8>) {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(bytes).unwrap();
        let closer = guest.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut header = [0_u8; 5];
            let mut seen = Vec::new();
            if guest.read_exact(&mut header).is_ok() {
                let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
                seen = vec![0; length];
                guest.read_exact(&mut seen).unwrap();
            }
            closer.shutdown(std::net::Shutdown::Both).ok();
            seen
        });
        let news = smol::block_on(serve(ours, &mut Turn::Hello, config));
        (news, reader.join().unwrap())
    }

    #[test]
    fn hello_is_answered_with_the_configuration() {
        let call = GuestCall::Hello {
            version: AGENT_VERSION,
            kernel_release: "6.1".to_owned(),
        };
        let (news, answer) = hear(&encoded_json(Kind::Request, &call));
        assert_eq!(news.unwrap(), GuestNews::Configured);
        assert_eq!(
            serde_json::from_slice::<GuestConfig>(&answer).unwrap(),
            config()
        );
    }

    #[test]
    fn hostile_bytes_close_the_connection_and_say_why() {
        let giant = [Kind::Request as u8, 0x7f, 0xff, 0xff, 0xff];
        let cases: [(&[u8], &str); 3] = [
            (&giant, "bytes"),
            (&[0x77, 0, 0, 0, 0], "unknown kind"),
            (&[Kind::Input as u8, 0, 0, 0, 0], "began with"),
        ];
        for (bytes, word) in cases {
            let (news, _) = hear(bytes);
            assert!(news.unwrap_err().to_string().contains(word), "{word}");
        }
    }

    #[test]
    fn a_guests_words_cannot_drive_the_terminal() {
        assert_eq!(words("\x1b[2Jboom\n"), " [2Jboom ");
        assert_eq!(words(&"x".repeat(9000)).len(), WORDS_LIMIT);
    }

    #[test]
    fn a_refused_dial_says_the_port() {
        let dir = tempfile::tempdir().unwrap();
        let failure = smol::block_on(dial(&dir.path().join("none"), 1024)).unwrap_err();
        assert!(failure.what.contains("1024"), "{failure}");
        let failure = out_of_reach("dev", &failure);
        assert!(failure.hint.unwrap().contains("vm restart dev`"));
    }
}
