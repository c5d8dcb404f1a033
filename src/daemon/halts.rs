//! Guests that are halted because the disk of this machine is full.
//!
//! QEMU halts a guest whose write finds no room, rather than fail it: the guest would take
//! its disk for broken. Nobody else would let it go on, so this does, again and again until
//! the write goes through. Heard on the VMM's second monitor, where nobody waits in line.
//!
//! ```text
//!  halted --3 s--> cont --3 s without another halt--> runs, or is cut off
//!     ^               |
//!     +---------------+ no room yet
//! ```
//!
//! While it halts a guest, QEMU stops the queues of `vhost-device-vsock`, and whatever
//! comes from a client meanwhile, its leaving included, ends the thread that serves them
//! (0.3.0). The guest goes on and nobody reaches its agent: that is found out and said.
//!
//! Nothing of it is kept: a new daemon asks what the guest does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::future::FutureExt;
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::stream::StreamExt;
use smol::{Async, LocalExecutor, Timer};

use super::guest::{self, Silence};
use super::hands::Hands;
use crate::host::layout::Layout;
use crate::host::socket;
use crate::model::ids::VmId;
use crate::proto::agent::AGENT_PORT;
use crate::vmm::halt;

/// How long a halted guest stays so, and how long one must run to count as running.
const SPAN: Duration = Duration::from_secs(3);

/// Which guests cannot answer, and why.
#[derive(Clone)]
pub struct Halts {
    silent: Rc<RefCell<BTreeMap<VmId, Silence>>>,
    host: Arc<Hands>,
}

impl Halts {
    /// None yet.
    pub fn new(host: Arc<Hands>) -> Halts {
        Halts {
            silent: Rc::default(),
            host,
        }
    }

    /// Why a guest cannot answer, if it cannot.
    pub fn of(&self, vm: VmId) -> Option<Silence> {
        self.silent.borrow().get(&vm).copied()
    }

    /// Why a guest may be that did not answer: halted, or its back end serves it no more.
    pub async fn why_unanswered(&self, vm: VmId) -> Option<Silence> {
        let host = self.host.clone();
        let served = smol::unblock(move || host.real().vmms().backend_serves(vm)).await;
        self.of(vm)
            .or(matches!(served, Ok(false)).then_some(Silence::CutOff))
    }

    /// Attends to a guest until its VMM ends. Without such a socket (Firecracker, which
    /// fails the write) there is nothing to do.
    pub fn attend(&self, vm: VmId, layout: &Layout, executor: &LocalExecutor<'static>) {
        let (halts, agent) = (self.clone(), layout.vsock(vm));
        let socket = layout.halt_socket(vm);
        let attending = async move {
            let connected = smol::unblock(move || match socket.exists() {
                true => socket::connect(&socket).map(Some),
                false => Ok(None),
            });
            let heard = match connected.await {
                Ok(Some(stream)) => halts.listen(vm, stream, &agent).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            halts.silent.borrow_mut().remove(&vm);
            if let Err(error) = heard {
                log::debug!(vm:%; "its VMM tells of halts no more: {error}");
            }
        };
        executor.spawn(attending).detach();
    }

    async fn listen(&self, vm: VmId, stream: UnixStream, agent: &Path) -> io::Result<()> {
        let (lines, mut tell) = smol::io::split(Async::new(stream)?);
        let mut lines = BufReader::new(lines).lines();
        tell.write_all(halt::OPENING).await?;
        // `cont` was said since the last halt.
        let mut continued = false;
        loop {
            let halted = self.of(vm) == Some(Silence::Halted);
            let late = async {
                if !halted {
                    smol::future::pending::<()>().await;
                }
                Timer::after(SPAN).await;
                Some(Ok(None))
            };
            let heard = async { Some(lines.next().await?.map(Some)) };
            match heard.or(late).await.transpose()? {
                None => return Ok(()),
                Some(Some(line)) if halt::is_told(&line) => {
                    continued = false;
                    self.halted(vm);
                }
                Some(Some(_)) => {}
                Some(None) if continued => self.goes_on(vm, agent).await,
                Some(None) => {
                    tell.write_all(halt::CONTINUE).await?;
                    continued = true;
                }
            }
        }
    }

    fn halted(&self, vm: VmId) {
        let before = self.silent.borrow_mut().insert(vm, Silence::Halted);
        if before != Some(Silence::Halted) {
            log::warn!(vm:%; "{}", Silence::Halted.words());
        }
    }

    /// It is cut off if its back end looks like it and no stream comes about: a back end of
    /// another make may only look like it.
    async fn goes_on(&self, vm: VmId, agent: &Path) {
        self.silent.borrow_mut().remove(&vm);
        log::info!(vm:%; "its guest goes on");
        if self.why_unanswered(vm).await == Some(Silence::CutOff)
            && guest::dial(agent, AGENT_PORT).await.is_err()
        {
            log::warn!(vm:%; "{}", Silence::CutOff.words());
            self.silent.borrow_mut().insert(vm, Silence::CutOff);
        }
    }
}
