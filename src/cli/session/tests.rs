//! Sessions with the real agent of a guest on the other side of a socket pair.

use super::*;
use crate::agent::server::{Guest, serve};
use crate::agent::stream::FrameStream;
use crate::proto::guest::BootRecord;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A session with a real agent on the other side of a socket pair.
struct Trial {
    input: Option<File>,
    output: File,
    error_output: File,
    signals: File,
    session: JoinHandle<Result<u8, OwnFailure>>,
    agent: JoinHandle<()>,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        workdir: Some("/".to_owned()),
        terminal: None,
    }
}

fn begin(exec: Exec, agent: impl FnOnce(UnixStream) + Send + 'static) -> Trial {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let agent = std::thread::spawn(move || agent(theirs));
    let ((input_end, input), (output, output_end)) = (pipe(), pipe());
    let ((error_output, error_end), (signals_end, signals)) = (pipe(), pipe());
    let ends = Ends {
        stream: ours.into(),
        input: Some(input_end),
        output: output_end,
        error_output: error_end,
        signals: signals_end,
    };
    Trial {
        input: Some(input.into()),
        output: output.into(),
        error_output: error_output.into(),
        signals: signals.into(),
        session: std::thread::spawn(move || run(ends, exec)),
        agent,
    }
}

fn real_agent(stream: UnixStream) {
    let record = BootRecord {
        init: "agent".to_owned(),
        off: "poweroff".to_owned(),
        env: Vec::new(),
        workdir: None,
        entrypoint: Vec::new(),
        phases: Vec::new(),
        warnings: Vec::new(),
    };
    serve(
        FrameStream::new(stream.into()).unwrap(),
        &Guest::new(record, None),
    );
}

fn sh(script: &str) -> Trial {
    begin(exec(&["sh", "-c", script]), real_agent)
}

impl Trial {
    /// Ends the input, reads everything: status, output, error output. The agent is done
    /// then, too: a command that nobody waits for any more was killed.
    fn finish(mut self) -> (Result<u8, OwnFailure>, Vec<u8>, Vec<u8>) {
        drop(self.input.take());
        let mut errors = self.error_output;
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            errors.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut output = Vec::new();
        self.output.read_to_end(&mut output).unwrap();
        let outcome = self.session.join().unwrap();
        self.agent.join().unwrap();
        (outcome, output, errors.join().unwrap())
    }

    fn wait_for(&mut self, text: &str) {
        let mut seen = vec![0; text.len()];
        self.output.read_exact(&mut seen).unwrap();
        assert_eq!(seen, text.as_bytes());
    }
}

#[test]
fn output_error_output_and_status_are_kept_apart() {
    let (status, output, errors) = sh("printf 'a\\0\\377'; printf b >&2; exit 42").finish();
    assert_eq!(status, Ok(42));
    assert_eq!(output, b"a\0\xff");
    assert_eq!(errors, b"b");
}

#[test]
fn command_that_ignores_the_order_to_end_does_not_keep_us() {
    for (signal, status) in [(15, 143), (1, 129)] {
        let mut trial = sh("trap '' TERM HUP; echo on; while :; do sleep 1; done");
        trial.wait_for("on\n");
        trial.signals.write_all(&[signal]).unwrap();
        assert_eq!(trial.finish().0, Ok(status));
    }
}

#[test]
fn second_order_to_end_is_obeyed_at_once() {
    let mut trial = sh("trap 'echo heard' TERM; echo on; while :; do sleep 1; done");
    trial.wait_for("on\n");
    trial.signals.write_all(&[15]).unwrap();
    trial.wait_for("heard\n");
    trial.signals.write_all(&[15]).unwrap();
    assert_eq!(trial.finish().0, Ok(143));
}

#[test]
fn second_order_to_end_waits_for_nothing() {
    let (stream, _agent) = UnixStream::pair().unwrap();
    let ((signals, sender), (_reader, output)) = (pipe(), pipe());
    let ends = Ends {
        stream: stream.into(),
        input: None,
        output: output.try_clone().unwrap(),
        error_output: output,
        signals,
    };
    let mut session = Session::new(ends, exec(&["true"])).unwrap();
    let mut sender = File::from(sender);
    sender.write_all(&[15]).unwrap();
    assert_eq!(session.take_signals(), None);
    sender.write_all(&[15]).unwrap();
    assert_eq!(session.take_signals(), Some(143));
}

#[test]
fn arguments_that_do_not_fit_are_a_failure_of_ours() {
    let long = "\u{1}".repeat(frame::MAX_JSON / 6);
    let failure = begin(exec(&["echo", &long]), |_| ())
        .finish()
        .0
        .unwrap_err();
    assert_eq!(failure.status, 125);
    assert_eq!(failure.failure.kind, FailureKind::Usage);
    assert!(failure.failure.what.contains("possible"), "{failure:?}");
}

#[test]
fn command_that_obeys_the_order_to_end_has_its_own_status() {
    let mut trial = sh("trap 'exit 9' TERM; echo on; while :; do sleep 1; done");
    trial.wait_for("on\n");
    trial.signals.write_all(&[15]).unwrap();
    assert_eq!(trial.finish().0, Ok(9));
}

#[test]
fn death_by_signal_is_128_and_its_number() {
    assert_eq!(sh("kill -KILL $$").finish().0, Ok(137));
}

#[test]
fn programs_missing_or_not_executable_have_their_own_statuses() {
    let status = |argv: &[&str]| {
        let failure = begin(exec(argv), real_agent).finish().0.unwrap_err();
        assert!(!failure.failure.causes.is_empty());
        failure.status
    };
    assert_eq!(status(&["no-such-program-anywhere"]), 127);
    assert_eq!(status(&["/etc/passwd"]), 126);
}

#[test]
fn a_missing_directory_is_a_failure_of_ours() {
    let mut wanted = exec(&["true"]);
    wanted.workdir = Some("/no/such".to_owned());
    let failure = begin(wanted, real_agent).finish().0.unwrap_err();
    assert_eq!(failure.status, 125);
    assert!(failure.failure.hint.unwrap().contains("--workdir"));
}

#[test]
fn sixty_four_megabytes_go_there_and_back_unharmed() {
    use sha2::{Digest, Sha256};
    const LENGTH: usize = 64 << 20;
    let mut trial = sh("cat");
    let mut input = trial.input.take().unwrap();
    let writer = std::thread::spawn(move || {
        let mut digest = Sha256::new();
        let mut state = 1_u64;
        for _ in 0..LENGTH / (64 * 1024) {
            let mut block = Vec::with_capacity(64 * 1024);
            while block.len() < 64 * 1024 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                block.extend_from_slice(&state.to_be_bytes());
            }
            digest.update(&block);
            input.write_all(&block).unwrap();
        }
        digest.finalize()
    });
    let mut digest = Sha256::new();
    let mut length = 0;
    let mut part = vec![0; 64 * 1024];
    loop {
        match trial.output.read(&mut part).unwrap() {
            0 => break,
            count => {
                length += count;
                digest.update(&part[..count]);
            }
        }
    }
    assert_eq!(length, LENGTH);
    assert_eq!(digest.finalize(), writer.join().unwrap());
    assert_eq!(trial.session.join().unwrap(), Ok(0));
}

#[test]
fn a_command_that_does_not_read_does_not_keep_a_signal_back() {
    let mut trial = sh("sleep 600 & trap 'kill $!; exit 3' INT; echo ready; wait");
    let mut input = trial.input.take().unwrap();
    // More than credit, pipes and buffers hold: this writer stays stuck.
    let writer = std::thread::spawn(move || input.write_all(&vec![0; 4 << 20]));
    trial.wait_for("ready\n");
    trial.signals.write_all(&[INTERRUPT]).unwrap();
    assert_eq!(trial.session.join().unwrap(), Ok(3));
    // It ends either way: what the agent still took of it does not matter.
    drop(writer.join().unwrap());
}

#[test]
fn a_second_interrupt_at_once_ends_the_client() {
    let mut trial = sh("trap '' INT; echo ready; read line; echo unreachable");
    trial.wait_for("ready\n");
    trial.signals.write_all(&[INTERRUPT, INTERRUPT]).unwrap();
    assert_eq!(trial.session.join().unwrap(), Ok(130));
}

fn with_terminal(argv: &[&str]) -> Exec {
    let terminal = crate::proto::agent::Terminal {
        term: "xterm".to_owned(),
        columns: 80,
        rows: 24,
    };
    Exec {
        terminal: Some(terminal),
        ..exec(argv)
    }
}

#[test]
fn silent_guest_is_left_by_ctrl_c_three_times_over_a_second() {
    let begun = Instant::now();
    let late = begun + SILENCE;
    let mut keys = Unanswered::default();
    assert!(!keys.typed(&[CTRL_C], begun));
    assert!(!keys.typed(&[CTRL_C, CTRL_C], begun + SILENCE / 2));
    assert!(keys.typed(&[CTRL_C], late));
    let again = |between: fn(&mut Unanswered)| {
        let mut keys = Unanswered::default();
        keys.typed(&[CTRL_C, CTRL_C, CTRL_C], begun);
        between(&mut keys);
        keys.typed(&[CTRL_C], late)
    };
    assert!(again(|_| ()));
    assert!(!again(Unanswered::heard));
    assert!(!again(|keys| {
        keys.typed(b"x", Instant::now());
    }));
}

#[test]
fn terminal_of_a_guest_that_says_nothing_can_be_left() {
    let (stream, _guest) = UnixStream::pair().unwrap();
    let ((input, keys), (_output, output)) = (pipe(), pipe());
    let ((_errors, error_output), (signals, _signals)) = (pipe(), pipe());
    let ends = Ends {
        stream: stream.into(),
        input: Some(input),
        output,
        error_output,
        signals,
    };
    let mut session = Session::new(ends, with_terminal(&["sh"])).unwrap();
    session.unanswered = Unanswered {
        since: Some(Instant::now() - SILENCE),
        count: UNANSWERED - 1,
    };
    File::from(keys).write_all(&[CTRL_C]).unwrap();
    let failure = session.turn().unwrap_err();
    assert_eq!(failure.status, INTERRUPTED);
    assert!(failure.failure.hint.unwrap().contains("vm kill"));
}

#[test]
fn ctrl_c_on_the_terminal_of_a_living_guest_is_for_its_command() {
    let script = "trap 'echo heard' INT; echo on; while :; do read line; done";
    let mut trial = begin(with_terminal(&["sh", "-c", script]), real_agent);
    let mut keys = trial.input.take().unwrap();
    trial.wait_for("on\r\n");
    for _ in 0..2 * UNANSWERED {
        keys.write_all(&[CTRL_C]).unwrap();
        trial.wait_for("^Cheard\r\n");
    }
    trial.signals.write_all(&[TERMINATE, TERMINATE]).unwrap();
    assert_eq!(trial.session.join().unwrap(), Ok(143));
}

#[test]
fn a_reader_that_goes_ends_the_client_as_a_broken_pipe_does() {
    let trial = sh("while :; do echo y; done");
    let Trial {
        mut output,
        session,
        input,
        signals,
        error_output,
        agent: _,
    } = trial;
    let mut first = [0; 2];
    output.read_exact(&mut first).unwrap();
    drop(output);
    assert_eq!(session.join().unwrap(), Ok(141));
    drop((input, signals, error_output));
}

#[test]
fn a_terminal_gives_the_command_one_with_our_size() {
    let mut wanted = exec(&["sh", "-c", "stty size; echo $TERM"]);
    wanted.terminal = Some(crate::proto::agent::Terminal {
        term: "xterm-256color".to_owned(),
        columns: 97,
        rows: 31,
    });
    let (status, output, _) = begin(wanted, real_agent).finish();
    assert_eq!(status, Ok(0));
    assert_eq!(output, b"31 97\r\nxterm-256color\r\n");
}

#[test]
fn output_of_a_command_that_has_ended_is_written_to_its_end() {
    let (status, output, _) = sh("head -c 1000000 /dev/zero").finish();
    assert_eq!((status, output.len()), (Ok(0), 1_000_000));
}

#[test]
fn a_connection_that_breaks_is_a_failure_of_ours() {
    let trial = begin(exec(&["true"]), |mut stream| {
        let mut part = [0; 16];
        stream.read_exact(&mut part).unwrap();
    });
    let failure = trial.finish().0.unwrap_err();
    assert_eq!(failure.status, 125);
    assert!(failure.failure.what.contains("lost"), "{failure:?}");
}

#[test]
fn a_hostile_agent_ends_the_session_and_nothing_else() {
    for bytes in [
        &[0x82, 0xff, 0xff, 0xff, 0xff][..],
        &[0x7f; 8],
        &[0x02, 0, 0, 0, 0],
    ] {
        let bytes = bytes.to_vec();
        let trial = begin(exec(&["true"]), move |mut stream| {
            stream.write_all(&bytes).unwrap();
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest));
        });
        assert_eq!(trial.finish().0.unwrap_err().status, 125);
    }
}
