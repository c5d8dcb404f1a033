//! The guests that are booting or running: their dial-in listeners, open until their
//! agents are ready, the wait for these, the watch over their VMMs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use log::Level;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;
use smol::{Async, LocalExecutor, Task, Timer};

use super::clients::Input;
use super::guest::{self, GuestNews};
use super::quota::Quota;
use super::turn::Turn;
use crate::host::layout::Layout;
use crate::host::process::Process;
use crate::model::ids::VmId;
use crate::plan::event::{Event, RunToken};
use crate::plan::record::BootReport;
use crate::plan::step::{Fault, FaultKind};
use crate::proto::agent::CONTROL_PORT;
use crate::proto::guest::GuestConfig;

/// Bytes of the console that are looked at when a VMM has ended: a kernel's panic is followed
/// by some kilobytes of traces.
const LAST_WORDS: u64 = 16 * 1024;
/// A guest of Firecracker powers off by a reset, which it does not tell from a reboot.
const RESET: &str = "the guest rebooted or powered off, which ends its run";
/// How long no call is taken after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long it takes until a VMM that could not be watched is looked for again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// The VMM's process as it was looked for.
pub type Found = Result<Option<Process>, Fault>;

/// How a booting guest is told who it is; asked when it calls.
pub type Configure = Rc<dyn Fn() -> GuestConfig>;

struct Guest {
    /// Accepts calls until the guest is up; dropping it closes the listener.
    _listener: Task<()>,
    /// Hears once that the agent is ready, or that `/init` gave up.
    ready: Receiver<Result<(), Fault>>,
}

/// All of them.
pub struct Guests {
    executor: Rc<LocalExecutor<'static>>,
    inbox: Sender<Input>,
    layout: Rc<Layout>,
    guests: RefCell<HashMap<VmId, Guest>>,
}

impl Guests {
    /// None yet.
    pub fn new(
        executor: Rc<LocalExecutor<'static>>,
        inbox: Sender<Input>,
        layout: Rc<Layout>,
    ) -> Guests {
        Guests {
            executor,
            inbox,
            layout,
            guests: RefCell::default(),
        }
    }

    /// Listens for the calls of a guest. A failure is heard by whoever waits for it.
    pub fn accept(&self, vm: VmId, configure: Configure) {
        let path = self.layout.vsock_listener(vm, CONTROL_PORT);
        let (told, ready) = smol::channel::bounded(1);
        let inbox = self.inbox.clone();
        let listener = match guest::listen(&path) {
            Ok(listener) => self
                .executor
                .spawn(hear(vm, listener, configure, inbox, told)),
            Err(error) => {
                let what = format!("listen on {}: {error}", path.display());
                let _ = told.try_send(Err(Fault::new(FaultKind::Other, what)));
                self.executor.spawn(async {})
            }
        };
        let guest = Guest {
            _listener: listener,
            ready,
        };
        self.guests.borrow_mut().insert(vm, guest);
    }

    /// Closes a guest's listener.
    pub fn forget(&self, vm: VmId) {
        self.guests.borrow_mut().remove(&vm);
    }

    /// Waits for a guest's agent, for a cancellation, or for the deadline.
    pub async fn ready(
        self: Rc<Self>,
        vm: VmId,
        deadline: Duration,
        cancelled: Receiver<()>,
    ) -> Result<(), Fault> {
        let ready = self
            .guests
            .borrow()
            .get(&vm)
            .map(|guest| guest.ready.clone());
        let Some(ready) = ready else {
            let what = format!("wait for the guest of vm {vm}: nobody listens for it");
            return Err(Fault::new(FaultKind::Other, what));
        };
        let told = async {
            let ended = || Fault::new(FaultKind::Other, "the wait for the guest ended");
            ready.recv().await.unwrap_or_else(|_| Err(ended()))
        };
        let late = async {
            Timer::after(deadline).await;
            let limit = span(deadline);
            Err(Fault::new(
                FaultKind::Timeout,
                format!("wait for the guest: its agent did not answer in {limit}"),
            ))
        };
        let cancel = async {
            // A closed channel is no cancellation: then only the others can end this.
            if cancelled.recv().await.is_err() {
                smol::future::pending::<()>().await;
            }
            Err(Fault::new(
                FaultKind::Other,
                "wait for the guest: cancelled",
            ))
        };
        told.or(cancel).or(late).await
    }

    /// Says when a VM's VMM, which `look` finds, has ended, and why: `how` tells that of a
    /// process by its id, where it is known.
    pub fn watch(
        &self,
        vm: VmId,
        run: RunToken,
        look: impl FnMut() -> Found + 'static,
        how: impl Fn(u32) -> Option<String> + 'static,
    ) {
        let inbox = self.inbox.clone();
        let console = self.layout.console_log(vm);
        let watching = async move {
            let reason = match end_of_vmm(vm, look, WATCH_PAUSE).await {
                Some(pid) => last_words(&console, how(pid)),
                None => "its VMM was not there any more".to_owned(),
            };
            let exited = Event::VmmExited { vm, run, reason };
            let _ = inbox.send(Input::Event(exited)).await;
        };
        self.executor.spawn(watching).detach();
    }
}

/// Waits for the end of a VM's VMM and gives its process id; `None` if it is not there. One
/// that cannot be looked for or watched may live, and its guest with it: it is not said to
/// have ended, but looked for again.
async fn end_of_vmm(vm: VmId, mut look: impl FnMut() -> Found, pause: Duration) -> Option<u32> {
    let mut is_told = false;
    loop {
        let trouble = match look() {
            Ok(None) => return None,
            Ok(Some(process)) => {
                let pid = process.pid();
                match ended(process).await {
                    Ok(()) => return Some(pid),
                    Err(error) => error.to_string(),
                }
            }
            Err(fault) => fault.to_string(),
        };
        if !std::mem::replace(&mut is_told, true) {
            log::error!(vm:%; "its VMM cannot be watched, which is tried again: {trouble}");
        }
        // Nothing tells when there are descriptors or memory again.
        Timer::after(pause).await;
    }
}

/// Waits for a process's end.
///
/// # Errors
/// It cannot be watched.
pub async fn ended(process: Process) -> io::Result<()> {
    Async::new(process.into_pidfd())?.readable().await
}

/// Why a VMM ended, as far as its guest's console tells, else `how` it did. `/init` and the
/// agent write a line before they switch off; the kernel says that it powers down, or that it
/// panics (`panic` in Linux, kernel/panic.c; the words stand in its last line once more).
fn last_words(console: &Path, how: Option<String>) -> String {
    let lines = end_of(console).unwrap_or_default();
    let lines = String::from_utf8_lossy(&lines);
    let said = |words: &str| lines.lines().rev().find_map(|line| line.split_once(words));
    if let Some((_, why)) = said("banger: this guest cannot go on and switches off: ") {
        return format!("the guest could not go on: {}", guest::words(why));
    }
    if let Some((_, why)) = said("Kernel panic - not syncing: ") {
        let why = why.trim_end().trim_end_matches(" ]---");
        return format!("the guest's kernel panicked: {}", guest::words(why));
    }
    if said("reboot: Power down").is_some() {
        return "the guest powered off".to_owned();
    }
    if said("reboot: Restarting system").is_some() {
        return RESET.to_owned();
    }
    let how = how.map(|how| format!(": {how}")).unwrap_or_default();
    format!("its VMM ended while the guest ran{how}")
}

/// A deadline in words: below ten seconds, whole seconds would be a coarse lie.
fn span(deadline: Duration) -> String {
    match deadline.as_millis() {
        milliseconds @ 0..10_000 => format!("{milliseconds} ms"),
        _ => format!("{} s", deadline.as_secs()),
    }
}

/// The last bytes of a file.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    Ok(bytes)
}

async fn next_call(vm: VmId, listener: &Async<UnixListener>) -> UnixStream {
    loop {
        match listener
            .accept()
            .await
            .map(|(stream, _)| stream.into_inner())
        {
            Ok(Ok(stream)) => return stream,
            Ok(Err(error)) | Err(error) => log::error!(vm:%; "hear a guest: {error}"),
        }
        // Out of descriptors: the next one would fail at once and for ever.
        Timer::after(ACCEPT_PAUSE).await;
    }
}

/// Serves a guest's calls one after the other until one of them settles how its boot
/// ended. Then nobody listens: a guest that is up has nothing more to say here, and every
/// process in it could say it. An agent that was restarted is heard no more either.
async fn hear(
    vm: VmId,
    listener: Async<UnixListener>,
    configure: Configure,
    inbox: Sender<Input>,
    told: Sender<Result<(), Fault>>,
) {
    let mut quota = Quota::default();
    let mut turn = Turn::Hello;
    loop {
        let stream = next_call(vm, &listener).await;
        let outcome = match guest::serve(stream, &mut turn, || configure()).await {
            Ok(GuestNews::Configured) => {
                quota.log(vm, Level::Debug, "guest configured");
                continue;
            }
            Err(failure) => {
                quota.log(vm, Level::Warn, &failure.to_string());
                continue;
            }
            Ok(GuestNews::Ready {
                init,
                phases,
                warnings,
            }) => {
                let boot = BootReport {
                    init,
                    phases,
                    warnings,
                };
                let ready = Event::GuestReady { vm, boot };
                let _ = inbox.send(Input::Event(ready)).await;
                Ok(())
            }
            Ok(GuestNews::Failed(what)) => {
                quota.log(vm, Level::Warn, &format!("guest gave up: {what}"));
                let what = format!("boot the guest: {what}");
                Err(Fault::new(FaultKind::Other, what))
            }
        };
        let _ = told.try_send(outcome);
        return;
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Pid;

    use super::super::turn::tests::{failed, hello, ready};
    use super::*;
    use crate::proto::frame::{Kind, encoded_json};
    use crate::proto::guest::GuestConfig;
    use serde::Serialize;

    #[test]
    fn a_vmm_that_cannot_be_watched_at_first_is_watched_and_not_said_to_have_ended() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (id, pid) = (child.id(), Pid::from_child(&child));
        child.kill().unwrap();
        let mut looks = 0;
        let look = || {
            looks += 1;
            match looks {
                1 | 2 => Err(Fault::new(FaultKind::Other, "too many open files")),
                _ => Ok(Some(Process::pin(pid).unwrap())),
            }
        };
        let ended = end_of_vmm(VmId::from_bits(42), look, Duration::ZERO);
        assert_eq!(smol::block_on(ended), Some(id));
        child.wait().unwrap();
    }

    const KILLED: &str = "killed by signal 9";

    fn reason(console: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        std::fs::write(&path, console).unwrap();
        last_words(&path, Some(KILLED.to_owned()))
    }

    #[test]
    fn a_short_deadline_is_told_in_milliseconds() {
        assert_eq!(span(Duration::from_millis(300)), "300 ms");
        assert_eq!(span(Duration::from_millis(9_999)), "9999 ms");
        assert_eq!(span(Duration::from_secs(60)), "60 s");
    }

    #[test]
    fn the_console_tells_why_a_guest_ended() {
        let gave_up = "[ 0.7] banger: this guest cannot go on and switches off: load overlay: no\n\
                       [ 0.8] reboot: Power down\n";
        assert_eq!(
            reason(gave_up),
            "the guest could not go on: load overlay: no"
        );
        assert_eq!(
            reason("[ 9.1] reboot: Power down\n"),
            "the guest powered off"
        );
        let panicked = "[ 9.1] Kernel panic - not syncing: sysrq triggered crash\n\
                        [ 9.1] CPU: 0 PID: 1 Comm: sh\n";
        let twice = "[ 9.2] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n";
        for console in [panicked.to_owned(), format!("{panicked}{twice}")] {
            assert_eq!(
                reason(&console),
                "the guest's kernel panicked: sysrq triggered crash"
            );
        }
        assert_eq!(reason("[ 9.1] reboot: Restarting system\n"), RESET);
        let cut = format!("{}login: ", "x".repeat(20_000));
        let ended = "its VMM ended while the guest ran";
        assert_eq!(reason(&cut), format!("{ended}: {KILLED}"));
        assert_eq!(last_words(Path::new("/none"), None), ended);
    }

    /// A listener that is served, and what it told when it ended.
    fn serve_at(folder: &Path, calls: impl FnOnce(&Path) + Send + 'static) -> Served {
        let path = folder.join("vsock_1023");
        let listener = guest::listen(&path).unwrap();
        let (told, ready) = smol::channel::bounded(1);
        let (inbox, events) = smol::channel::bounded(8);
        let configure: Configure = Rc::new(|| GuestConfig {
            token: "ours".to_owned(),
            env: vec![("SECRET".to_owned(), "hunter2".to_owned())],
            ..GuestConfig::default()
        });
        let dialled = path.clone();
        let guest = std::thread::spawn(move || calls(&dialled));
        smol::block_on(hear(VmId::from_bits(1), listener, configure, inbox, told));
        guest.join().unwrap();
        let end = ready.try_recv().expect("it ended by what a guest said");
        let refused = UnixStream::connect(&path).unwrap_err().kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
        Served {
            end,
            events: std::iter::from_fn(|| events.try_recv().ok()).count(),
        }
    }

    struct Served {
        end: Result<(), Fault>,
        events: usize,
    }

    /// What a call is answered; nothing where it is cut off.
    fn call(path: &Path, call: &impl Serialize) -> String {
        use std::io::Write;
        let mut stream = UnixStream::connect(path).unwrap();
        let request = encoded_json(Kind::Request, call);
        stream.write_all(&request).unwrap();
        let mut header = [0; 5];
        if stream.read_exact(&mut header).is_err() {
            return String::new();
        }
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        let mut answer = vec![0; length as usize];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn process_of_the_guest_gets_nothing_and_settles_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let served = serve_at(folder.path(), |path| {
            assert_eq!(call(path, &ready("")), "", "nobody was configured");
            assert!(call(path, &hello()).contains("hunter2"), "/init itself");
            assert_eq!(call(path, &hello()), "", "another after it");
            assert_eq!(call(path, &ready("guessed")), "");
            assert_eq!(call(path, &failed(None)), "");
            assert_eq!(call(path, &ready("ours")), "{}", "the agent");
        });
        assert_eq!(served.end, Ok(()));
        assert_eq!(served.events, 1);
    }

    #[test]
    fn guest_that_gave_up_is_heard_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let served = serve_at(folder.path(), |path| {
            assert_eq!(call(path, &failed(None)), "{}");
        });
        let fault = served.end.unwrap_err();
        assert_eq!(fault.what, "boot the guest: x");
        assert_eq!(served.events, 0);
    }
}
