//! Hears from a VMM what its guest does, and lets a halted one go on.
//!
//! ```text
//!  asked --running--> judged --verdict--> runs
//!    |                 ^    \              |
//!    | halted          |     \ halted      | halted
//!    v                 |      v            v
//!  halted --a span, or somebody asks: cont--> continued
//!    ^                                         |  |
//!    +----------- halted: no room yet ---------+  +-- a span without a halt --> judged
//! ```
//!
//! It only talks: what it knows is in its [`Note`], what it cannot know (whether somebody
//! reaches the guest's agent) it asks its judge.

use std::cell::{Cell, RefCell};
use std::future;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::time::Duration;

use log::Level;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;
use smol::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use smol::{Async, Timer};

use crate::daemon::guest::Silence;
use crate::daemon::quota::Quota;
use crate::model::ids::VmId;
use crate::vmm::halt::{self, Told};

/// A future that need not leave its thread.
pub type BoxedLocal<T> = Pin<Box<dyn Future<Output = T>>>;

/// Longest line of a VMM, bytes, as on its other monitor.
const LINE_LIMIT: usize = 1 << 20;

/// Most who can have asked and not been heard yet; the next one waits.
const ASKERS: usize = 64;

/// What is known of one run of a guest.
pub struct Note {
    vm: VmId,
    silence: Cell<Option<Silence>>,
    quota: RefCell<Quota>,
    /// Who is told, by the end of the channel sent here, once it is known what the guest
    /// does. Closed when nobody hears the VMM any more.
    askers: (Sender<Sender<()>>, Receiver<Sender<()>>),
}

impl Note {
    /// Nothing is known yet.
    pub fn new(vm: VmId) -> Note {
        Note {
            vm,
            silence: Cell::new(None),
            quota: RefCell::default(),
            askers: smol::channel::bounded(ASKERS),
        }
    }

    /// Why it cannot answer, if it cannot.
    pub fn silence(&self) -> Option<Silence> {
        self.silence.get()
    }

    /// Waits until it is known what the guest does; a halted one is let go on first.
    pub async fn settled(&self) {
        let (asker, told) = smol::channel::bounded(1);
        if self.askers.0.send(asker).await.is_ok() {
            let _ = told.recv().await;
        }
    }

    /// Nobody hears its VMM: whoever asks is told what is known.
    pub fn close(&self) {
        self.askers.1.close();
        while self.askers.1.try_recv().is_ok() {}
    }

    /// Its back end serves it no more.
    pub fn cut_off(&self) {
        self.tell(Silence::CutOff);
    }

    fn tell(&self, silence: Silence) {
        if self.silence.replace(Some(silence)) != Some(silence) {
            self.log(Level::Warn, silence.words());
        }
    }

    fn log(&self, level: Level, text: &str) {
        self.quota.borrow_mut().log(self.vm, level, text);
    }
}

/// Where a guest is.
enum State {
    /// Its VMM was asked.
    Asked,
    /// It runs.
    Runs,
    /// It is halted; then it is let go on.
    Halted(Timer),
    /// It was let go on; unless it halts again, it runs then.
    Continued(Timer),
    /// It runs; whether it is cut off is being found out.
    Judged(BoxedLocal<bool>),
}

/// What comes next.
enum Next {
    Line(String),
    Asker(Sender<()>),
    Late,
    Verdict(bool),
}

/// Hears a VMM until it ends. A halted guest stays so for `span`, and counts as running
/// after as long without a halt; then `judge` says whether it is cut off.
///
/// # Errors
/// The socket cannot be read or written.
pub async fn hear(
    stream: UnixStream,
    note: &Note,
    span: Duration,
    judge: impl Fn() -> BoxedLocal<bool>,
) -> io::Result<()> {
    let (lines, mut monitor) = smol::io::split(Async::new(stream)?);
    let mut lines = Lines::of(lines);
    monitor.write_all(halt::OPENING).await?;
    let mut hearing = Hearing {
        note,
        span,
        judge,
        state: State::Asked,
        waiting: Vec::new(),
    };
    loop {
        let line = async {
            let line = lines.next().await.transpose();
            line.map(|line| line.map(Next::Line))
        };
        let asker = async {
            note.askers
                .1
                .recv()
                .await
                .ok()
                .map(|it| Ok(Next::Asker(it)))
        };
        let due = async { Some(Ok(hearing.state.due().await)) };
        let Some(next) = line.or(asker).or(due).await.transpose()? else {
            return Ok(());
        };
        if let Some(order) = hearing.take(next) {
            monitor.write_all(order).await?;
        }
    }
}

/// The lines of a VMM, which is not trusted.
struct Lines<R> {
    from: BufReader<R>,
    /// What has come of the next one. Kept here, as whoever waits for it may give up.
    begun: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn of(from: R) -> Lines<R> {
        Lines {
            from: BufReader::new(from),
            begun: Vec::new(),
        }
    }

    /// The next line with its end; `None` when there is none any more.
    async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let part = self.from.fill_buf().await?;
            let end = part.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(part.len(), |end| end + 1);
            if taken == 0 {
                return Ok(None);
            }
            self.begun.extend_from_slice(&part[..taken]);
            self.from.consume(taken);
            if self.begun.len() > LINE_LIMIT {
                let what = format!("it says a line of more than {LINE_LIMIT} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.begun);
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
        }
    }
}

impl State {
    async fn due(&mut self) -> Next {
        match self {
            State::Asked | State::Runs => future::pending().await,
            State::Halted(until) | State::Continued(until) => {
                until.await;
                Next::Late
            }
            State::Judged(verdict) => Next::Verdict(verdict.await),
        }
    }
}

struct Hearing<'a, J> {
    note: &'a Note,
    span: Duration,
    judge: J,
    state: State,
    /// Who has asked and is told once it is known.
    waiting: Vec<Sender<()>>,
}

impl<J: Fn() -> BoxedLocal<bool>> Hearing<'_, J> {
    /// What the VMM is to be told.
    fn take(&mut self, next: Next) -> Option<&'static [u8]> {
        match (next, &mut self.state) {
            (Next::Line(line), _) => {
                if let Some(told) = halt::told(&line) {
                    self.told(told);
                }
            }
            (Next::Asker(_), State::Runs) => {}
            (Next::Asker(asker), state) => {
                if let State::Halted(until) = state {
                    until.set_after(Duration::ZERO);
                }
                self.waiting.push(asker);
            }
            (Next::Late, State::Halted(_)) => {
                self.state = State::Continued(Timer::after(self.span));
                return Some(halt::CONTINUE);
            }
            (Next::Late, _) => self.state = State::Judged((self.judge)()),
            (Next::Verdict(cut_off), _) => self.judged(cut_off),
        }
        None
    }

    fn told(&mut self, told: Told) {
        let asked = matches!(self.state, State::Asked);
        self.state = match told {
            Told::Runs => State::Judged((self.judge)()),
            Told::Halted => {
                self.note.tell(Silence::Halted);
                // Whoever asked before the first answer has not had an attempt yet.
                if !asked {
                    self.waiting.clear();
                }
                State::Halted(Timer::after(match self.waiting.is_empty() {
                    true => self.span,
                    false => Duration::ZERO,
                }))
            }
        };
    }

    fn judged(&mut self, cut_off: bool) {
        if self.note.silence() == Some(Silence::Halted) {
            self.note.log(Level::Info, "its guest goes on");
            self.note.silence.set(None);
        }
        if cut_off {
            self.note.cut_off();
        }
        self.waiting.clear();
        self.state = State::Runs;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::rc::Rc;
    use std::time::Duration;

    use smol::LocalExecutor;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);
    const HALTED: &str = r#"{"return": {"status": "io-error"}}"#;
    const RUNS: &str = r#"{"return": {"status": "running"}}"#;
    const HALT: &str = r#"{"event": "BLOCK_IO_ERROR", "data": {"action": "stop"}}"#;

    /// The VMM's end of the socket.
    struct Vmm(BufReader<UnixStream>);

    impl Vmm {
        fn say(&mut self, line: &str) {
            writeln!(self.0.get_mut(), "{line}").unwrap();
        }

        fn end(self) {}

        /// What the VMM is told next. Read off the thread on which it is said.
        async fn told(self) -> (Vmm, String) {
            smol::unblock(move || {
                let mut vmm = self;
                let mut line = String::new();
                vmm.0.read_line(&mut line).unwrap();
                (vmm, line)
            })
            .await
        }
    }

    /// Plays a VMM that is heard; `judge` says whether its guest is cut off, if ever.
    fn play<P: Future<Output = ()>>(
        span: Duration,
        judge: Option<bool>,
        script: impl FnOnce(Rc<Note>, Vmm) -> P,
    ) {
        let note = Rc::new(Note::new("0000000a".parse().unwrap()));
        let (ours, its) = UnixStream::pair().unwrap();
        let verdict = move || -> BoxedLocal<bool> {
            match judge {
                Some(cut_off) => Box::pin(future::ready(cut_off)),
                None => Box::pin(future::pending()),
            }
        };
        let executor = LocalExecutor::new();
        let heard = note.clone();
        executor
            .spawn(async move {
                hear(ours, &heard, span, verdict).await.unwrap();
                heard.close();
            })
            .detach();
        let opened = async {
            let (vmm, _) = Vmm(BufReader::new(its)).told().await;
            vmm.told().await.0
        };
        let played = async { script(note, opened.await).await };
        smol::block_on(executor.run(played));
    }

    #[test]
    fn guest_that_runs_is_known_to_once_its_vmm_has_said_so() {
        play(NEVER, Some(false), async |note, mut vmm| {
            vmm.say(RUNS);
            note.settled().await;
            assert_eq!(note.silence(), None);
        });
    }

    #[test]
    fn guest_that_runs_and_is_served_no_more_is_cut_off() {
        play(NEVER, Some(true), async |note, mut vmm| {
            vmm.say(RUNS);
            note.settled().await;
            assert_eq!(note.silence(), Some(Silence::CutOff));
        });
    }

    #[test]
    fn halted_guest_is_let_go_on_by_itself_until_it_does() {
        play(SOON, Some(false), async |note, mut vmm| {
            vmm.say(HALTED);
            for _ in 0..2 {
                let (next, line) = vmm.told().await;
                vmm = next;
                assert_eq!(line.as_bytes(), halt::CONTINUE);
                assert_eq!(note.silence(), Some(Silence::Halted));
                vmm.say(HALT);
            }
            let (_vmm, line) = vmm.told().await;
            assert_eq!(line.as_bytes(), halt::CONTINUE);
            note.settled().await;
            assert_eq!(note.silence(), None);
        });
    }

    /// Symptom: `vm stop` killed a guest that would have gone on three seconds later.
    #[test]
    fn halted_guest_is_let_go_on_at_once_for_whoever_asks() {
        play(NEVER, Some(false), async |note, mut vmm| {
            vmm.say(HALTED);
            let asks = note.settled();
            let answers = async {
                let (mut vmm, line) = vmm.told().await;
                assert_eq!(line.as_bytes(), halt::CONTINUE);
                vmm.say(HALT);
                vmm
            };
            let (_vmm, ()) = smol::future::zip(answers, asks).await;
            assert_eq!(note.silence(), Some(Silence::Halted));
        });
    }

    /// Symptom: a guest that halted while it was looked at was halted for ten seconds.
    #[test]
    fn halt_is_heard_while_it_is_found_out_whether_the_guest_is_cut_off() {
        play(SOON, None, async |note, mut vmm| {
            vmm.say(RUNS);
            vmm.say(HALT);
            let (_vmm, line) = vmm.told().await;
            assert_eq!(line.as_bytes(), halt::CONTINUE);
            assert_eq!(note.silence(), Some(Silence::Halted));
        });
    }

    /// Symptom: a VMM that was taken over took the daemon's memory by one endless line.
    #[test]
    fn endless_line_is_heard_to_its_limit_and_no_further() {
        let endless = smol::io::repeat(b'x');
        let failure = smol::block_on(Lines::of(endless).next()).unwrap_err();
        assert!(failure.to_string().contains("1048576 bytes"), "{failure}");
        let mut few = Lines::of(&b"one\ntwo\nthree"[..]);
        let said = [(); 3].map(|()| smol::block_on(few.next()).unwrap());
        assert_eq!(said.map(Option::unwrap_or_default), ["one\n", "two\n", ""]);
    }

    #[test]
    fn whoever_asks_is_told_when_the_vmm_ends() {
        play(NEVER, Some(false), async |note, vmm| {
            let asks = note.settled();
            let ends = async { vmm.end() };
            smol::future::zip(asks, ends).await;
            note.settled().await;
            assert_eq!(note.silence(), None);
        });
    }
}
