//! Guests that are halted because the disk of this machine is full.
//!
//! QEMU halts a guest whose write finds no room, rather than fail it: the guest would take
//! its disk for broken. Nobody else would let it go on, so this does, again and again until
//! the write goes through. Heard on the VMM's second monitor, where nobody waits in line.
//!
//! ```text
//!  halted --3 s--> cont --3 s without another halt--> runs
//!     ^               |
//!     +---------------+ no room yet
//! ```
//!
//! Nothing of it is kept: a new daemon asks what the guest does.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use smol::future::FutureExt;
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::stream::StreamExt;
use smol::{Async, LocalExecutor, Timer};

use super::guest::HALTED;
use crate::host::socket;
use crate::model::ids::VmId;
use crate::vmm::halt;

/// How long a halted guest stays so, and how long one must run to count as running.
const SPAN: Duration = Duration::from_secs(3);

/// Which guests are halted.
#[derive(Debug, Clone, Default)]
pub struct Halts {
    halted: Rc<RefCell<BTreeSet<VmId>>>,
}

impl Halts {
    /// Whether a guest is.
    pub fn has(&self, vm: VmId) -> bool {
        self.halted.borrow().contains(&vm)
    }

    /// Attends to a guest until its VMM ends. Without such a socket (Firecracker, which
    /// fails the write) there is nothing to do.
    pub fn attend(&self, vm: VmId, socket: PathBuf, executor: &LocalExecutor<'static>) {
        let halts = self.clone();
        let attending = async move {
            let connected = smol::unblock(move || match socket.exists() {
                true => socket::connect(&socket).map(Some),
                false => Ok(None),
            });
            let heard = match connected.await {
                Ok(Some(stream)) => halts.listen(vm, stream).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            halts.halted.borrow_mut().remove(&vm);
            if let Err(error) = heard {
                log::debug!(vm:%; "its VMM tells of halts no more: {error}");
            }
        };
        executor.spawn(attending).detach();
    }

    async fn listen(&self, vm: VmId, stream: UnixStream) -> io::Result<()> {
        let (lines, mut tell) = smol::io::split(Async::new(stream)?);
        let mut lines = BufReader::new(lines).lines();
        tell.write_all(halt::OPENING).await?;
        // `cont` was said since the last halt.
        let mut continued = false;
        loop {
            let halted = self.has(vm);
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
                    self.note(vm, true);
                }
                Some(Some(_)) => {}
                Some(None) if continued => self.note(vm, false),
                Some(None) => {
                    tell.write_all(halt::CONTINUE).await?;
                    continued = true;
                }
            }
        }
    }

    fn note(&self, vm: VmId, is_halted: bool) {
        let mut halted = self.halted.borrow_mut();
        if is_halted && halted.insert(vm) {
            log::warn!(vm:%; "{HALTED}");
        } else if !is_halted && halted.remove(&vm) {
            log::info!(vm:%; "its guest goes on");
        }
    }
}
