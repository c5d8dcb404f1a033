//! A client of QEMU's monitor protocol: JSON objects, one a line, on a Unix socket
//! (QEMU's docs/interop/qmp-spec.txt, 7.2).
//!
//! ```text
//!  <- {"QMP": {...}}                    greeting
//!  -> {"execute": "qmp_capabilities"}
//!  <- {"return": {}}                    from here commands are taken
//!  <- {"event": ...}                    at any time; skipped, unless one is waited for
//! ```
//!
//! QEMU speaks to one client at a time, so a connection lives as long as a question, or as
//! the move of a machine.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::host::fault::fault;
use crate::host::socket;
use crate::plan::step::{Fault, FaultKind};
use crate::sys::descriptors::send_with;

use super::Deadline;

/// Longest line that is believed, in bytes.
const LINE_LIMIT: u64 = 1 << 20;

/// A connection that has been greeted.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    deadline: Deadline,
}

/// What QEMU says its guest does (`RunState` in QEMU's qapi/run-state.json).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Started with `-S`, has not run yet.
    Prelaunch,
    /// Waiting for a migration to come in.
    Inmigrate,
    /// Runs.
    Running,
    /// Stopped by a monitor.
    Paused,
    /// Asleep.
    Suspended,
    /// Stopped by a debugger.
    Debug,
    /// Powered off or reset; QEMU ends.
    Shutdown,
    /// Its kernel panicked.
    GuestPanicked,
    /// QEMU cannot go on with it.
    InternalError,
    /// A disk failed.
    IoError,
    /// Any other, such as the states of a migration.
    #[serde(other)]
    Other,
}

/// What QEMU is told. Names and arguments are those of its qapi/ (7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "execute", content = "arguments", rename_all = "snake_case")]
pub enum Command<'a> {
    /// Ends the negotiation.
    QmpCapabilities,
    /// Lets the guest run.
    Cont,
    /// Stops its processors.
    Stop,
    /// What does the guest do?
    #[serde(rename = "query-status")]
    QueryStatus,
    /// Makes a disk longer, whose file may be so long already.
    BlockResize {
        /// The drive's name.
        device: &'a str,
        /// Bytes.
        size: u64,
    },
    /// Has the balloon leave so much to the guest.
    Balloon {
        /// Bytes.
        value: u64,
    },
    /// What does the balloon leave to the guest?
    #[serde(rename = "query-balloon")]
    QueryBalloon,
    /// How a machine is moved to or from another process.
    #[serde(rename = "migrate-set-capabilities")]
    MigrateSetCapabilities {
        /// Those that are to change.
        capabilities: &'a [Capability],
    },
    /// Keeps the descriptor that comes along, under a name.
    #[serde(rename = "getfd")]
    GetFd {
        /// For `fd:NAME`.
        fdname: &'a str,
    },
    /// Writes the machine to somewhere.
    Migrate {
        /// Where.
        uri: &'a str,
    },
    /// Takes a machine over, which QEMU was started to wait for.
    #[serde(rename = "migrate-incoming")]
    MigrateIncoming {
        /// Where it comes from.
        uri: &'a str,
    },
    /// How far is that?
    #[serde(rename = "query-migrate")]
    QueryMigrate,
    /// What is a property of an object?
    #[serde(rename = "qom-get")]
    QomGet {
        /// The object.
        path: &'a str,
        /// Its property.
        property: &'a str,
    },
    /// Plugs a device in.
    DeviceAdd {
        /// Its kind.
        driver: &'a str,
        /// Its name.
        id: &'a str,
        /// Where.
        bus: &'a str,
        /// The character device that it speaks to its back end by.
        chardev: &'a str,
        /// Whether it offers event indices: `on` or `off`.
        event_idx: &'a str,
    },
}

/// A way of moving a machine, on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capability {
    capability: &'static str,
    state: bool,
}

impl Capability {
    /// This one, on.
    pub fn on(capability: &'static str) -> Capability {
        Capability {
            capability,
            state: true,
        }
    }
}

/// How far a machine has been moved (`MigrationStatus` in QEMU's qapi/migration.json).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Migration {
    /// It is there.
    Completed,
    /// It never will be.
    Failed,
    /// In between, or not begun.
    #[serde(other)]
    UnderWay,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<T> {
    #[serde(rename = "QMP")]
    Greeting(IgnoredAny),
    Return(T),
    Error(Refusal),
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "event")]
    _name: String,
}

#[derive(Deserialize)]
struct Status {
    status: RunState,
}

#[derive(Deserialize)]
struct Moved {
    /// Not there before the first step.
    status: Option<Migration>,
    #[serde(rename = "error-desc")]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Balloon {
    actual: u64,
}

impl Qmp {
    /// Connects, is greeted and leaves negotiation.
    ///
    /// # Errors
    /// Nobody listens; QEMU ends (kind `Exited`) or does not answer in time.
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Qmp, Fault> {
        let attempt = format!("call QEMU at {}", path.display());
        let stream = socket::connect(path).map_err(|error| fault(&attempt, error))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            deadline,
        };
        match qmp.read::<IgnoredAny>(&attempt)? {
            Line::Greeting(_) => {}
            Line::Return(_) | Line::Error(_) => {
                return Err(Fault::new(
                    FaultKind::Other,
                    format!("{attempt}: no greeting"),
                ));
            }
        }
        qmp.execute(Command::QmpCapabilities)?;
        Ok(qmp)
    }

    /// Gives what follows another time limit.
    pub fn extend(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Carries a command out whose answer says nothing.
    pub fn execute(&mut self, command: Command<'_>) -> Result<(), Fault> {
        self.ask::<IgnoredAny>(command).map(drop)
    }

    /// What the guest does.
    pub fn status(&mut self) -> Result<RunState, Fault> {
        self.ask::<Status>(Command::QueryStatus)
            .map(|status| status.status)
    }

    /// What the balloon leaves to the guest, bytes.
    pub fn balloon(&mut self) -> Result<u64, Fault> {
        self.ask::<Balloon>(Command::QueryBalloon)
            .map(|balloon| balloon.actual)
    }

    /// Waits until the machine has been moved.
    ///
    /// # Errors
    /// QEMU failed; its words.
    pub fn await_migration(&mut self) -> Result<(), Fault> {
        loop {
            let moved = self.ask::<Moved>(Command::QueryMigrate)?;
            match moved.status.unwrap_or(Migration::UnderWay) {
                Migration::Completed => return Ok(()),
                Migration::Failed => {
                    let why = moved
                        .error
                        .unwrap_or_else(|| "it does not say why".to_owned());
                    let what = format!("move a machine to or from a file: QEMU failed: {why}");
                    return Err(Fault::new(FaultKind::Other, what));
                }
                Migration::UnderWay => self.await_event()?,
            }
        }
    }

    /// Whether there is a device that was given this name.
    pub fn has_device(&mut self, id: &str) -> Result<bool, Fault> {
        let path = format!("/machine/peripheral/{id}");
        let asked = self.execute(Command::QomGet {
            path: &path,
            property: "type",
        });
        match asked {
            Err(fault) if fault.kind == FaultKind::Missing => Ok(false),
            asked => asked.map(|()| true),
        }
    }

    /// Hands a descriptor over, for `fd:NAME`.
    pub fn give_descriptor(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<(), Fault> {
        let command = Command::GetFd { fdname: name };
        self.ask_with::<IgnoredAny>(command, Some(file)).map(drop)
    }

    /// Waits until QEMU tells that something has happened. What happened before the last
    /// answer is in that answer; it is not told again.
    pub fn await_event(&mut self) -> Result<(), Fault> {
        let attempt = "wait for QEMU";
        let line = self.read_line(attempt)?;
        match serde_json::from_slice::<Event>(&line) {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::new(FaultKind::Other, format!("{attempt}: {error}"))),
        }
    }

    fn ask<T: for<'de> Deserialize<'de>>(&mut self, command: Command<'_>) -> Result<T, Fault> {
        self.ask_with(command, None)
    }

    fn ask_with<T: for<'de> Deserialize<'de>>(
        &mut self,
        command: Command<'_>,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<T, Fault> {
        let attempt = format!("tell QEMU to {}", command.word());
        let mut line = serde_json::to_vec(&command).expect("texts and numbers are JSON");
        line.push(b'\n');
        let left = self.deadline.left(&attempt)?;
        let stream = self.stream.get_mut();
        stream
            .set_write_timeout(Some(left))
            .and_then(|()| {
                let sent = send_with(&*stream, &line, file)?;
                stream.write_all(&line[sent..])
            })
            .map_err(|error| io_fault(&attempt, error))?;
        match self.read(&attempt)? {
            Line::Return(value) => Ok(value),
            Line::Error(refusal) => Err(refusal.fault(&attempt)),
            Line::Greeting(_) => Err(Fault::new(FaultKind::Other, format!("{attempt}: greeted"))),
        }
    }

    /// The next line that is no event.
    fn read<T: for<'de> Deserialize<'de>>(&mut self, attempt: &str) -> Result<Line<T>, Fault> {
        loop {
            let line = self.read_line(attempt)?;
            if serde_json::from_slice::<Event>(&line).is_ok() {
                continue;
            }
            return serde_json::from_slice(&line)
                .map_err(|error| Fault::new(FaultKind::Other, format!("{attempt}: {error}")));
        }
    }

    fn read_line(&mut self, attempt: &str) -> Result<Vec<u8>, Fault> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let left = self.deadline.left(attempt)?;
            let room = LINE_LIMIT - line.len() as u64;
            self.stream
                .get_ref()
                .set_read_timeout(Some(left))
                .map_err(|error| io_fault(attempt, error))?;
            match self.stream.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(0) => {
                    let end = io_fault(attempt, ErrorKind::UnexpectedEof.into());
                    return Err(end);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io_fault(attempt, error)),
            }
        }
        Ok(line)
    }
}

impl Command<'_> {
    fn word(&self) -> &'static str {
        match self {
            Command::QmpCapabilities => "qmp_capabilities",
            Command::Cont => "cont",
            Command::Stop => "stop",
            Command::QueryStatus => "query-status",
            Command::BlockResize { .. } => "block_resize",
            Command::Balloon { .. } => "balloon",
            Command::QueryBalloon => "query-balloon",
            Command::MigrateSetCapabilities { .. } => "migrate-set-capabilities",
            Command::GetFd { .. } => "getfd",
            Command::Migrate { .. } => "migrate",
            Command::MigrateIncoming { .. } => "migrate-incoming",
            Command::QueryMigrate => "query-migrate",
            Command::QomGet { .. } => "qom-get",
            Command::DeviceAdd { .. } => "device_add",
        }
    }
}

impl Refusal {
    fn fault(&self, attempt: &str) -> Fault {
        let kind = match self.class.as_str() {
            // The device that a command is about is not there.
            "DeviceNotActive" | "DeviceNotFound" => FaultKind::Missing,
            _ => FaultKind::Other,
        };
        Fault::new(kind, format!("{attempt}: {}", self.desc))
    }
}

/// A connection that breaks means that QEMU has ended: it never closes one by itself.
fn io_fault(attempt: &str, error: std::io::Error) -> Fault {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Fault::new(FaultKind::Exited, format!("{attempt}: QEMU has ended"))
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Fault::new(FaultKind::Timeout, format!("{attempt}: no answer in time"))
        }
        _ => fault(attempt, error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    /// A client of a peer that says this and then, if told so, hangs up.
    fn hearing(lines: &str, hang_up: bool) -> Result<RunState, Fault> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let limit =
                    Deadline::after(Duration::from_millis(if hang_up { 20_000 } else { 50 }));
                Qmp::connect(&path, limit)?.status()
            });
            let (mut peer, _) = listener.accept().unwrap();
            // On a loaded machine the client may have given up by now: what it made of
            // what it heard is what counts.
            let _ = peer.write_all(lines.as_bytes());
            if hang_up {
                let _ = peer.shutdown(std::net::Shutdown::Write);
            }
            client.join().unwrap()
        })
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    #[test]
    fn events_between_answers_are_skipped() {
        let lines = format!(
            "{GREETING}{{\"return\": {{}}}}\n\
             {{\"event\": \"RESUME\", \"timestamp\": {{}}}}\n\
             {{\"return\": {{\"status\": \"prelaunch\", \"running\": false}}}}\n"
        );
        assert_eq!(hearing(&lines, true).unwrap(), RunState::Prelaunch);
    }

    #[test]
    fn a_refusal_carries_qemus_words() {
        let lines = format!(
            "{GREETING}{{\"return\": {{}}}}\n\
             {{\"error\": {{\"class\": \"GenericError\", \"desc\": \"not today\"}}}}\n"
        );
        let fault = hearing(&lines, true).unwrap_err();
        assert_eq!(fault.what, "tell QEMU to query-status: not today");
    }

    #[test]
    fn a_device_that_is_missing_is_told_from_any_other_refusal() {
        let refused = |class: &str| {
            let refusal = Refusal {
                class: class.to_owned(),
                desc: "No balloon device has been activated".to_owned(),
            };
            refusal.fault("tell QEMU to balloon").kind
        };
        assert_eq!(refused("DeviceNotActive"), FaultKind::Missing);
        assert_eq!(refused("GenericError"), FaultKind::Other);
    }

    #[test]
    fn commands_are_written_as_qemu_reads_them() {
        let text = |command| serde_json::to_string(&command).unwrap();
        assert_eq!(text(Command::Cont), r#"{"execute":"cont"}"#);
        let resize = Command::BlockResize {
            device: "work",
            size: 1 << 30,
        };
        let resized =
            r#"{"execute":"block_resize","arguments":{"device":"work","size":1073741824}}"#;
        assert_eq!(text(resize), resized);
        let balloon = r#"{"execute":"balloon","arguments":{"value":134217728}}"#;
        assert_eq!(text(Command::Balloon { value: 128 << 20 }), balloon);
        let capabilities = [Capability::on("events")];
        let set = Command::MigrateSetCapabilities {
            capabilities: &capabilities,
        };
        let able = r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":true}]}}"#;
        assert_eq!(text(set), able);
        let incoming = Command::MigrateIncoming { uri: "fd:5" };
        let from = r#"{"execute":"migrate-incoming","arguments":{"uri":"fd:5"}}"#;
        assert_eq!(text(incoming), from);
        let given = Command::GetFd { fdname: "state" };
        assert_eq!(
            text(given),
            r#"{"execute":"getfd","arguments":{"fdname":"state"}}"#
        );
        for command in [
            Command::QmpCapabilities,
            Command::Stop,
            Command::QueryStatus,
            Command::QueryBalloon,
            Command::QueryMigrate,
        ] {
            let word = format!(r#"{{"execute":"{}"}}"#, command.word());
            assert_eq!(text(command), word);
        }
    }

    #[test]
    fn a_hang_up_is_an_exit_and_silence_a_timeout() {
        assert_eq!(hearing("", true).unwrap_err().kind, FaultKind::Exited);
        assert_eq!(hearing("", false).unwrap_err().kind, FaultKind::Timeout);
        assert_eq!(
            hearing("garbage\n", true).unwrap_err().kind,
            FaultKind::Other
        );
    }
}
