//! The agent's server driven as the host drives it, over a socket pair: real
//! commands, real pipes, real terminals.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::server::{self, Guest};
use super::stream::{FrameStream, StreamError};
use crate::proto::agent::{
    AGENT_VERSION, AgentCall, AgentFailure, AgentFailureKind, AgentRequest, Exec, Exit,
    INITIAL_CREDIT, Terminal, Unpack, Unpacked,
};
use crate::proto::frame::{Frame, Kind, MAX_DATA};
use crate::proto::guest::BootRecord;

/// Long enough for a machine that does much else; nothing waits for it to pass.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

struct Client {
    stream: FrameStream,
    server: JoinHandle<()>,
}

/// What a command gave.
#[derive(Debug, Default)]
struct Outcome {
    output: Vec<u8>,
    error_output: Vec<u8>,
    exit: Option<Exit>,
    failure: Option<AgentFailure>,
}

impl Outcome {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).replace('\r', "")
    }
}

fn guest() -> Guest {
    let record = BootRecord {
        init: "agent".to_owned(),
        off: "poweroff".to_owned(),
        env: vec![("OF_VM".to_owned(), "a b".to_owned())],
        workdir: Some("/usr".to_owned()),
        entrypoint: Vec::new(),
        phases: Vec::new(),
        warnings: Vec::new(),
    };
    Guest::new(record, None)
}

impl Client {
    fn connect() -> Client {
        Client::of(&Arc::new(guest()))
    }

    fn of(guest: &Arc<Guest>) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = Arc::clone(guest);
        let served = FrameStream::new(theirs.into()).unwrap();
        Client {
            stream: FrameStream::new(ours.into()).unwrap(),
            server: thread::spawn(move || server::serve(served, &guest)),
        }
    }

    fn request(request: AgentRequest) -> Client {
        let mut client = Client::connect();
        let call = AgentCall {
            version: AGENT_VERSION,
            host_time_ns: 0,
            request,
        };
        client.stream.queue_json(Kind::Request, &call);
        client.stream.flush(PATIENCE).unwrap();
        client
    }

    fn exec(argv: &[&str]) -> Client {
        Client::request(AgentRequest::Exec(command(argv)))
    }

    fn shell(script: &str) -> Client {
        Client::exec(&["/bin/sh", "-c", script])
    }

    fn on_terminal(script: &str) -> Client {
        let terminal = Some(Terminal {
            term: "xterm-256color".to_owned(),
            columns: 80,
            rows: 24,
        });
        let exec = Exec {
            terminal,
            ..command(&["/bin/sh", "-c", script])
        };
        Client::request(AgentRequest::Exec(exec))
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.stream.queue(kind, payload);
        self.stream.flush(PATIENCE).unwrap();
    }

    fn next(&mut self) -> Frame {
        self.stream.next_frame(PATIENCE).unwrap()
    }

    /// Output up to and including this text.
    fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let frame = self.next();
            assert_eq!(frame.kind, Kind::Output, "{seen:?}");
            seen += &String::from_utf8_lossy(&frame.payload);
        }
        seen
    }

    /// To the end, then closed, as a host does.
    fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while outcome.exit.is_none() && outcome.failure.is_none() {
            let frame = self.next();
            match frame.kind {
                Kind::Output => outcome.output.extend(&frame.payload),
                Kind::ErrorOutput => outcome.error_output.extend(&frame.payload),
                Kind::Exit => outcome.exit = Some(frame.json().unwrap()),
                Kind::Failed => outcome.failure = Some(frame.json().unwrap()),
                Kind::Credit => {}
                other => panic!("a {other:?} frame"),
            }
        }
        drop(self.stream);
        self.server.join().unwrap();
        outcome
    }
}

fn command(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        workdir: None,
        terminal: None,
    }
}

fn failure_of(client: Client) -> AgentFailure {
    client.finish().failure.unwrap()
}

#[test]
fn a_commands_status_and_both_outputs_come_back_apart() {
    let outcome = Client::shell("echo out; echo err >&2; exit 42").finish();
    assert_eq!(outcome.exit, Some(Exit::Code(42)));
    assert_eq!(outcome.output, b"out\n");
    assert_eq!(outcome.error_output, b"err\n");
}

#[test]
fn a_death_by_signal_is_told() {
    let outcome = Client::shell("kill -KILL $$").finish();
    assert_eq!(outcome.exit, Some(Exit::Signal(9)));
}

#[test]
fn arguments_are_never_joined_and_the_environment_is_the_vms() {
    let outcome = Client::exec(&[
        "/bin/sh",
        "-c",
        "echo \"$1|$OF_VM|$HOME|$PWD\"",
        "x",
        "a  b",
    ]);
    assert_eq!(outcome.finish().text(), "a  b|a b|/root|/usr\n");
}

#[test]
fn what_cannot_be_executed_fails_by_kind() {
    let kind = |argv: &[&str]| failure_of(Client::exec(argv)).kind;
    assert_eq!(kind(&["no-such-program"]), AgentFailureKind::NotFound);
    assert_eq!(kind(&["/no/such"]), AgentFailureKind::NotFound);
    assert_eq!(kind(&["/etc/passwd"]), AgentFailureKind::NotExecutable);
    let elsewhere = Exec {
        workdir: Some("/no/such".to_owned()),
        ..command(&["/bin/true"])
    };
    let client = Client::request(AgentRequest::Exec(elsewhere));
    assert_eq!(failure_of(client).kind, AgentFailureKind::Workdir);
}

/// Sends a pattern of this length by credit and gives both digests.
fn echo(length: usize) -> (Vec<u8>, Vec<u8>) {
    let mut client = Client::exec(&["/bin/cat"]);
    let block: Vec<u8> = (0..MAX_DATA).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut sent, mut received) = (Sha256::new(), Sha256::new());
    let (mut left, mut credit) = (length, INITIAL_CREDIT as usize);
    let mut is_ended = false;
    loop {
        let count = left.min(credit).min(MAX_DATA);
        if count > 0 {
            client.stream.queue(Kind::Input, &block[..count]);
            sent.update(&block[..count]);
            (left, credit) = (left - count, credit - count);
        } else if left == 0 && !is_ended {
            client.stream.queue(Kind::InputEnd, &[]);
            is_ended = true;
        }
        client.stream.flush(PATIENCE).unwrap();
        if count > 0 && credit > 0 && left > 0 {
            continue;
        }
        let frame = client.next();
        match frame.kind {
            Kind::Output => received.update(&frame.payload),
            Kind::Credit => credit += frame.number().unwrap() as usize,
            Kind::Exit => break,
            other => panic!("a {other:?} frame"),
        }
    }
    drop(client.stream);
    client.server.join().unwrap();
    (sent.finalize().to_vec(), received.finalize().to_vec())
}

#[test]
fn sixty_four_mebibytes_come_back_as_they_were() {
    let (sent, received) = echo(64 << 20);
    assert_eq!(sent, received);
}

#[test]
fn ten_commands_at_once_do_not_mix() {
    let echoes: Vec<_> = (0..10)
        .map(|number| thread::spawn(move || echo((1 << 20) + number)))
        .collect();
    for echo in echoes {
        let (sent, received) = echo.join().unwrap();
        assert_eq!(sent, received);
    }
}

#[test]
fn a_signal_arrives_though_the_command_reads_no_input() {
    let mut client =
        Client::shell("trap 'echo got; exit 7' INT; echo up; while :; do sleep 100 & wait; done");
    client.read_until("up");
    for _ in 0..INITIAL_CREDIT as usize / MAX_DATA {
        client.send(Kind::Input, &[b'x'; MAX_DATA]);
    }
    client.send(Kind::Signal, &[2]);
    let outcome = client.finish();
    assert_eq!(
        (outcome.text().as_str(), outcome.exit),
        ("got\n", Some(Exit::Code(7)))
    );
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let mut client = Client::shell("sleep 1000 & echo up; wait $!; echo $?");
    client.read_until("up");
    client.send(Kind::Signal, &[15]);
    assert_eq!(client.finish().exit, Some(Exit::Signal(15)));
}

#[test]
fn a_background_child_does_not_hold_up_the_end() {
    let outcome = Client::shell("sleep 30 & echo $!").finish();
    assert_eq!(outcome.exit, Some(Exit::Code(0)));
    let child = outcome.text().trim().parse().unwrap();
    let child = rustix::process::Pid::from_raw(child).unwrap();
    // It is still there: nobody killed it, nor waited for it.
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_background_child_that_writes_for_ever_does_not_hold_up_the_end() {
    let outcome = Client::shell("(while :; do echo noise; done) & echo said").finish();
    assert_eq!(outcome.exit, Some(Exit::Code(0)));
    assert!(outcome.text().contains("said\n"));
}

#[test]
fn input_that_nobody_reads_is_taken_to_its_end() {
    let mut client = Client::shell("exec <&-; echo closed; sleep 1000");
    client.read_until("closed");
    let mut credit = INITIAL_CREDIT as usize;
    for _ in 0..32 {
        while credit < MAX_DATA {
            let frame = client.next();
            assert_eq!(frame.kind, Kind::Credit);
            credit += frame.number().unwrap() as usize;
        }
        client.send(Kind::Input, &[0; MAX_DATA]);
        credit -= MAX_DATA;
    }
    client.send(Kind::Signal, &[9]);
    assert_eq!(client.finish().exit, Some(Exit::Signal(9)));
}

#[test]
fn a_client_that_vanishes_takes_its_command_with_it() {
    let mut client = Client::shell("trap '' HUP; echo $$; exec sleep 1000");
    let pid = client.read_until("\n").trim().parse().unwrap();
    drop(client.stream);
    client.server.join().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    assert!(rustix::process::test_kill_process(pid).is_err());
}

#[test]
fn a_terminal_has_its_size_and_changes_it() {
    let mut client = Client::on_terminal(
        "stty size; trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.1; done",
    );
    assert!(client.read_until("up").contains("24 80"));
    client.send(Kind::Resize, &[0, 132, 0, 50]);
    let outcome = client.finish();
    assert_eq!(outcome.exit, Some(Exit::Code(3)));
    assert!(outcome.text().contains("50 132"), "{}", outcome.text());
}

#[test]
fn a_terminal_controls_its_session_and_knows_utf8() {
    let outcome = Client::on_terminal("stty -a; echo $TERM; echo ok >/dev/tty").finish();
    let text = outcome.text();
    assert!(text.contains(" iutf8"), "{text}");
    assert!(text.contains("xterm-256color\nok\n"), "{text}");
}

#[test]
fn control_c_on_a_terminal_interrupts_the_foreground() {
    let mut client = Client::on_terminal("trap 'exit 9' INT; echo up; while :; do sleep 0.1; done");
    client.read_until("up");
    client.send(Kind::Input, &[3]);
    assert_eq!(client.finish().exit, Some(Exit::Code(9)));
}

#[test]
fn the_end_of_input_ends_a_reader_on_a_terminal() {
    let mut client = Client::on_terminal("cat; echo done");
    client.send(Kind::Input, b"line\n");
    client.send(Kind::InputEnd, &[]);
    let outcome = client.finish();
    assert!(
        outcome.text().ends_with("line\ndone\n"),
        "{}",
        outcome.text()
    );
    assert_eq!(outcome.exit, Some(Exit::Code(0)));
}

#[test]
fn all_output_of_a_terminal_precedes_the_end() {
    let outcome =
        Client::on_terminal("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
            .finish();
    assert!(outcome.text().ends_with("line 4999\n"));
    assert_eq!(outcome.text().lines().count(), 5000);
}

/// Bytes, or frames, that no host of ours sends; each must end its stream only.
#[test]
fn hostile_bytes_end_their_own_stream_only() {
    let guest = Arc::new(guest());
    let cases: [&[u8]; 4] = [
        &[Kind::Request as u8, 0xff, 0xff, 0xff, 0xff],
        &[0x7f, 0, 0, 0, 0],
        &[Kind::Request as u8, 0, 0, 0, 9, b'{'],
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for bytes in cases {
        let client = Client::of(&guest);
        rustix::io::write(client.stream.fd(), bytes).unwrap();
        drop(client.stream);
        client.server.join().unwrap();
    }
    assert_eq!(
        Client::exec(&["/bin/true"]).finish().exit,
        Some(Exit::Code(0))
    );
}

#[test]
fn a_frame_out_of_turn_or_beyond_its_credit_ends_the_command() {
    let cases: [fn(&mut Client); 4] = [
        |client| client.send(Kind::Exit, b"{}"),
        |client| client.send(Kind::Signal, &[200]),
        |client| client.send(Kind::Resize, &[1]),
        |client| {
            // Twice what may be sent: the pipe takes some, and gives credit for it.
            for _ in 0..2 * INITIAL_CREDIT as usize / MAX_DATA {
                client.stream.queue(Kind::Input, &[0; MAX_DATA]);
            }
            let _closed_meanwhile = client.stream.flush(PATIENCE);
        },
    ];
    for misbehave in cases {
        let mut client = Client::shell("exec sleep 1000");
        misbehave(&mut client);
        let end = loop {
            match client.stream.next_frame(PATIENCE) {
                Ok(frame) => assert_eq!(frame.kind, Kind::Credit),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(end, StreamError::Closed | StreamError::Io(_)),
            "{end}"
        );
        client.server.join().unwrap();
    }
}

#[test]
fn requests_of_another_version_and_nonsense_are_refused_by_kind() {
    let refuse = |json: &[u8]| {
        let mut client = Client::connect();
        client.send(Kind::Request, json);
        failure_of(client).kind
    };
    assert_eq!(
        refuse(b"{\"version\":99,\"new\":1}"),
        AgentFailureKind::Version
    );
    assert_eq!(refuse(b"{\"version\":1}"), AgentFailureKind::Malformed);
    assert_eq!(refuse(b"nonsense"), AgentFailureKind::Malformed);
}

#[test]
fn a_machine_that_is_no_guest_is_not_switched_off() {
    let failure = failure_of(Client::request(AgentRequest::PowerOff));
    assert!(failure.what.contains("no guest"), "{}", failure.what);
}

#[test]
fn an_archive_larger_than_the_credit_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let long = "n".repeat(180);
    std::fs::create_dir_all(from.join("a/b")).unwrap();
    std::fs::write(from.join("a/b/big"), vec![7; 600_000]).unwrap();
    std::fs::write(from.join(&long), "x").unwrap();
    std::os::unix::fs::symlink("a/b/big", from.join("link")).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", &from).unwrap();

    let to = dir.path().join("made/to");
    let unpacked = unpack(&archive.into_inner().unwrap(), &to);

    assert_eq!(unpacked.bytes, 600_001);
    assert_eq!(std::fs::read(to.join("link")).unwrap(), vec![7; 600_000]);
    assert_eq!(std::fs::read(to.join(&long)).unwrap(), b"x");
}

fn unpack(mut archive: &[u8], path: &std::path::Path) -> Unpacked {
    let path = path.to_str().unwrap().to_owned();
    let mut client = Client::request(AgentRequest::Unpack(Unpack { path }));
    let mut credit = INITIAL_CREDIT as usize;
    let mut part = vec![0; MAX_DATA];
    loop {
        while credit < MAX_DATA {
            credit += client.next().number().unwrap() as usize;
        }
        let count = archive.read(&mut part).unwrap();
        if count == 0 {
            break;
        }
        client.send(Kind::Input, &part[..count]);
        credit -= count;
    }
    client.send(Kind::InputEnd, &[]);
    loop {
        let frame = client.next();
        match frame.kind {
            Kind::Credit => {}
            Kind::Reply => return frame.json().unwrap(),
            other => panic!("a {other:?} frame"),
        }
    }
}
