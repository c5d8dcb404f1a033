//! The guests that are booting or running: their dial-in listeners, the wait for
//! their agents, the watch over their VMMs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;
use smol::{Async, LocalExecutor, Task, Timer};

use super::clients::Input;
use super::guest::{self, GuestNews};
use crate::host::layout::Layout;
use crate::model::ids::VmId;
use crate::plan::event::{Event, RunToken};
use crate::plan::record::BootReport;
use crate::plan::step::{Fault, FaultKind};
use crate::proto::agent::CONTROL_PORT;
use crate::proto::guest::GuestConfig;

/// How a booting guest is told who it is; asked when it calls.
pub type Configure = Rc<dyn Fn() -> GuestConfig>;

struct Guest {
    /// Accepts calls; dropping it closes the listener.
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
            let seconds = deadline.as_secs();
            Err(Fault::new(
                FaultKind::Timeout,
                format!("wait for the guest: its agent did not answer in {seconds} s"),
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

    /// Says when the process behind this descriptor has ended.
    pub fn watch(&self, vm: VmId, run: RunToken, process: Option<OwnedFd>) {
        let inbox = self.inbox.clone();
        let watching = async move {
            let reason = match process.map(Async::new) {
                Some(Ok(process)) => match process.readable().await {
                    Ok(()) => "its VMM ended".to_owned(),
                    Err(error) => format!("its VMM cannot be watched: {error}"),
                },
                Some(Err(error)) => format!("its VMM cannot be watched: {error}"),
                None => "its VMM was not there any more".to_owned(),
            };
            let exited = Event::VmmExited { vm, run, reason };
            let _ = inbox.send(Input::Event(exited)).await;
        };
        self.executor.spawn(watching).detach();
    }
}

/// Serves a guest's calls one after the other. Only the first `ready` counts for the
/// start; a later one (the agent was restarted) is logged.
async fn hear(
    vm: VmId,
    listener: Async<UnixListener>,
    configure: Configure,
    inbox: Sender<Input>,
    told: Sender<Result<(), Fault>>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::error!(vm:%; "hear a guest: {error}");
                return;
            }
        };
        let Ok(stream) = stream.into_inner() else {
            continue;
        };
        match guest::serve(stream, || configure()).await {
            Ok(GuestNews::Configured) => log::debug!(vm:%; "guest configured"),
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
                let _ = told.try_send(Ok(()));
            }
            Ok(GuestNews::Failed(what)) => {
                log::warn!(vm:%, what:%; "guest gave up");
                let fault = Fault::new(FaultKind::Other, format!("boot the guest: {what}"));
                let _ = told.try_send(Err(fault));
            }
            Err(failure) => log::warn!(vm:%; "{failure}"),
        }
    }
}
