//! Guests that are halted because the disk of this machine is full.
//!
//! QEMU halts a guest whose write finds no room, rather than fail it: the guest would take
//! its disk for broken. Nobody else would let it go on, so this does, again and again until
//! the write goes through. Heard on the VMM's second monitor, where nobody waits in line;
//! [`hearing`] has the states.
//!
//! While it halts a guest, QEMU stops the queues of `vhost-device-vsock`, and whatever
//! comes from a client meanwhile, its leaving included, ends the thread that serves them
//! (0.3.0). The guest goes on and nobody reaches its agent: that is found out and said.
//!
//! Nothing of it is kept: a new daemon asks what the guest does, and nothing is sent to
//! the guest before that is known.

mod hearing;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::future::FutureExt;
use smol::{LocalExecutor, Timer};

use self::hearing::{BoxedLocal, Note};
use super::guest::{self, Silence};
use super::hands::Hands;
use crate::host::layout::Layout;
use crate::host::socket;
use crate::model::ids::VmId;
use crate::plan::event::RunToken;
use crate::proto::agent::AGENT_PORT;

/// How long a halted guest stays so, and how long one must run to count as running.
const SPAN: Duration = Duration::from_secs(3);
/// How long a VMM's word for what its guest does is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Of each guest whose VMM runs, and of which of its runs.
type Notes = HashMap<VmId, (RunToken, Rc<Note>)>;

/// Which guests cannot answer, and why.
#[derive(Clone)]
pub struct Halts {
    notes: Rc<RefCell<Notes>>,
    host: Arc<Hands>,
}

impl Halts {
    /// None yet.
    pub fn new(host: Arc<Hands>) -> Halts {
        Halts {
            notes: Rc::default(),
            host,
        }
    }

    /// Why a guest cannot answer, if it cannot.
    pub fn of(&self, vm: VmId) -> Option<Silence> {
        self.note(vm)?.silence()
    }

    /// Likewise, once its VMM has said what it does; a halted guest is let go on first. To
    /// be asked before anything is sent to a guest, since that would cut off a halted one.
    pub async fn settled(&self, vm: VmId) -> Option<Silence> {
        let note = self.note(vm)?;
        let late = async {
            Timer::after(ANSWER_LIMIT).await;
        };
        note.settled().or(late).await;
        note.silence()
    }

    /// Why a guest may be that did not answer: halted, or its back end serves it no more,
    /// which is kept in mind.
    pub async fn why_unanswered(&self, vm: VmId) -> Option<Silence> {
        let note = self.note(vm)?;
        if !self.serves(vm).await && note.silence().is_none() {
            note.cut_off();
        }
        note.silence()
    }

    fn note(&self, vm: VmId) -> Option<Rc<Note>> {
        self.notes.borrow().get(&vm).map(|(_, note)| note.clone())
    }

    async fn serves(&self, vm: VmId) -> bool {
        let host = self.host.clone();
        let served = smol::unblock(move || host.real().vmms().backend_serves(vm)).await;
        !matches!(served, Ok(false))
    }

    /// Attends to a guest until its VMM ends. Without such a socket (Firecracker, which
    /// fails the write) there is nothing to do.
    pub fn attend(
        &self,
        vm: VmId,
        run: RunToken,
        layout: &Layout,
        executor: &LocalExecutor<'static>,
    ) {
        let note = Rc::new(Note::new(vm));
        self.notes.borrow_mut().insert(vm, (run, note.clone()));
        let (halts, agent) = (self.clone(), layout.vsock(vm));
        let socket = layout.halt_socket(vm);
        let attending = async move {
            if let Err(error) = halts.hear(&note, vm, socket, agent).await {
                log::debug!(vm:%; "its VMM tells of halts no more: {error}");
            }
            note.close();
        };
        executor.spawn(attending).detach();
    }

    /// Forgets a run that has ended; the next one may have begun.
    pub fn forget(&self, vm: VmId, run: RunToken) {
        let mut notes = self.notes.borrow_mut();
        if notes.get(&vm).is_some_and(|(of, _)| *of == run) {
            notes.remove(&vm);
        }
    }

    async fn hear(&self, note: &Note, vm: VmId, socket: PathBuf, agent: PathBuf) -> io::Result<()> {
        let connected = smol::unblock(move || match socket.exists() {
            true => socket::connect(&socket).map(Some),
            false => Ok(None),
        });
        let Some(stream) = connected.await? else {
            return Ok(());
        };
        let judge = || -> BoxedLocal<bool> {
            let (halts, agent) = (self.clone(), agent.clone());
            // A back end of another make may only look as if it served nobody.
            Box::pin(async move {
                !halts.serves(vm).await && guest::dial(&agent, AGENT_PORT).await.is_err()
            })
        };
        hearing::hear(stream, note, SPAN, judge).await
    }
}
