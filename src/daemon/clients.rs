//! Accepts clients and serves each in a task of its own; the loop sees only
//! [`Input`]s.

use std::cell::Cell;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use smol::channel::{Receiver, Sender};
use smol::future::FutureExt;
use smol::{Async, LocalExecutor, Timer};

use super::connection::{self, Outbox, Outgoing};
use super::repair::{Mode, Survey};
use crate::failure::{Failure, FailureKind};
use crate::plan::event::Event;
use crate::plan::request::ClientId;
use crate::proto::reply::Line;
use crate::proto::request::Call;

/// How long a client may take to say what it wants.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Most clients at once.
const MOST_CLIENTS: u32 = 512;

/// What reaches the loop.
#[derive(Debug)]
pub enum Input {
    /// For the mind as it is.
    Event(Event),
    /// What `doctor --fix` looks at has been seen.
    Surveyed {
        /// Who asked.
        client: ClientId,
        /// What was seen.
        survey: Survey,
        /// Whether anything is to be changed.
        mode: Mode,
    },
    /// A client's request, with where its answers go.
    Call {
        /// Who.
        client: ClientId,
        /// Where its lines go.
        outbox: Outbox,
        /// What it asks.
        call: Box<Call>,
    },
}

/// The side of the loop that faces clients.
pub struct Clients {
    executor: Rc<LocalExecutor<'static>>,
    inbox: Sender<Input>,
    own_uid: u32,
    next: Cell<u64>,
    open: Cell<u32>,
    /// Closes when this and every client's task are gone.
    _alive: Sender<()>,
}

impl Clients {
    /// Nobody connected yet. The receiver ends when nobody accepts any more and the last
    /// client has been told its last line.
    pub fn new(
        executor: Rc<LocalExecutor<'static>>,
        inbox: Sender<Input>,
        own_uid: u32,
    ) -> (Rc<Clients>, Receiver<()>) {
        let (alive, told) = smol::channel::bounded(1);
        let clients = Clients {
            executor,
            inbox,
            own_uid,
            next: Cell::new(1),
            open: Cell::new(0),
            _alive: alive,
        };
        (Rc::new(clients), told)
    }

    /// Accepts until the listener fails, which ends the daemon's service.
    pub async fn accept(self: Rc<Self>, listener: Async<UnixListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.clone().admit(stream),
                Err(error) => {
                    log::error!("accept a client: {error}");
                    // Out of descriptors: the next accept would fail at once and for ever.
                    Timer::after(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(self: Rc<Self>, stream: Async<UnixStream>) {
        let full = self.open.get() >= MOST_CLIENTS;
        self.open.set(self.open.get() + 1);
        let clients = self.clone();
        let served = async move {
            let refused = match full {
                true => Some(Failure::new(
                    FailureKind::Busy,
                    format!("serve another client: {MOST_CLIENTS} are connected"),
                )
                .hint("Try again when some have ended; `ss -xp | grep bangerd.sock` names the programs that hold connections.")),
                false => connection::admitted(stream.get_ref(), clients.own_uid).err(),
            };
            match refused {
                Some(failure) => refuse(&stream, failure).await,
                None => clients.serve(&stream).await,
            }
            clients.open.set(clients.open.get() - 1);
        };
        self.executor.spawn(served).detach();
    }

    async fn serve(&self, stream: &Async<UnixStream>) {
        let late = async {
            Timer::after(CALL_LIMIT).await;
            Err(Failure::usage("read a request: none came in time"))
        };
        let call = match connection::read_call(stream).or(late).await {
            Ok(call) => Box::new(call),
            Err(failure) => return refuse(stream, failure).await,
        };
        let client = ClientId(self.next.replace(self.next.get() + 1));
        let (outbox, lines) = connection::outbox();
        let arrived = Input::Call {
            client,
            outbox,
            call,
        };
        if self.inbox.send(arrived).await.is_err() {
            return;
        }
        let writing = async {
            if let Err(error) = connection::write_lines(stream, lines).await {
                log::debug!(client = client.0; "write to a client: {error}");
            }
        };
        writing.or(connection::gone(stream)).await;
        let gone = Input::Event(Event::ClientGone { client });
        // The loop has ended: there is nobody left to tell.
        let _ = self.inbox.send(gone).await;
    }
}

async fn refuse(stream: &Async<UnixStream>, failure: Failure) {
    log::warn!("refuse a client: {failure}");
    let outgoing = Outgoing {
        line: Line::Failed(failure.into()),
        descriptor: None,
    };
    if let Err(error) = connection::write_line(stream, &outgoing).await {
        log::debug!("write to a refused client: {error}");
    }
}
