//! The daemon: one actor loop that owns every VM, image and kernel.
//!
//! ```text
//!  mod        start: directories, configuration, store, facts, socket, signals
//!  actor      the loop: input -> mind -> actions
//!  shell      carries out actions
//!  guests     listeners and watches of guests       guest   their conversations
//!  quota      what a VM may make us log         turn    what a guest may say next
//!  jobs       pulls of images and kernels        base    whether those are whole
//!  holder     who has the store that we may not open
//!  holds      clients that outlive a daemon
//!  repair     doctor --fix                  survey  what of ours is on this machine
//!  clients    accepts                               connection  one client's lines
//!  translate, views    the wire's words and the mind's
//! ```
//!
//! No lock, no polling: the loop owns everything, and everything else sends to it.

pub mod actor;
pub mod adjust;
mod base;
pub mod clients;
pub mod connection;
pub mod dns;
pub mod guest;
pub mod guest_config;
pub mod guests;
pub mod halts;
pub mod hands;
mod holder;
mod holds;
pub mod jobs;
pub mod listen;
pub mod moment;
mod quota;
pub mod ready;
pub mod repair;
pub mod shell;
pub mod survey;
pub mod translate;
pub mod turn;
pub mod views;
pub mod wire_up;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_signal::{Signal, Signals};
use smol::channel::Sender;
use smol::future::FutureExt;
use smol::stream::StreamExt;
use smol::{Async, LocalExecutor, Timer};

use self::actor::{About, Actor, INBOX};
use self::clients::{Clients, Input};
use self::dns::Dns;
use self::dns::zone::Names;
use self::guests::Guests;
use self::halts::Halts;
use self::ready::Ready;
use self::shell::Shell;
use crate::config::{self, Config};
use crate::failure::{Failure, FailureKind};
use crate::host::layout::Layout;
use crate::plan::event::Event;
use crate::plan::mind::Mind;
use crate::store::Store;

/// How long clients may take to read their last lines when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to end.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let ready = Ready::from_environment();
    let started = Instant::now();
    let outcome = match arguments {
        [] => start(ready, started),
        [first, ..] => Err(Failure::usage(format!(
            "start bangerd with {}: it takes no arguments",
            first.display()
        ))
        .hint("Run `bangerd` without arguments; its settings are in the configuration file.")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What goes wrong before the configuration is read has no logger yet.
            crate::logging::start("info", own_log().as_deref());
            log::error!("{}", with_hint(&failure));
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

/// The log that is ours to keep small, wherever our directories are.
fn own_log() -> Option<PathBuf> {
    let own_uid = rustix::process::getuid().as_raw();
    let layout = Layout::roots(|name| std::env::var_os(name), own_uid);
    layout.ok().map(|layout| layout.daemon_log())
}

/// A failure in one line of the log, what to do included.
fn with_hint(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) => format!("{failure}. {hint}"),
        None => failure.to_string(),
    }
}

fn start(ready: Ready, started: Instant) -> Result<(), Failure> {
    match ready.close_the_rest().and_then(|()| prepare(started)) {
        Ok(daemon) => {
            ready.listening();
            daemon.run()
        }
        Err(failure) => {
            ready.failed(&failure);
            Err(failure)
        }
    }
}

/// A daemon that holds its store and its socket.
struct Daemon {
    executor: Rc<LocalExecutor<'static>>,
    actor: Actor,
    inbox: smol::channel::Receiver<Input>,
    sender: Sender<Input>,
    listener: std::os::unix::net::UnixListener,
    /// Where the listener is bound.
    socket: PathBuf,
    own_uid: u32,
    names: Names,
    resolver: Option<Dns>,
}

fn prepare(started: Instant) -> Result<Daemon, Failure> {
    let own_uid = rustix::process::getuid().as_raw();
    let variable = |name: &str| std::env::var_os(name);
    let config = match config::file::path(variable) {
        Some(path) => Config::read(&path)?,
        None => Config::default(),
    };
    let level = std::env::var("BANGER_LOG_LEVEL").unwrap_or_else(|_| config.log_level());
    crate::logging::start(&level, own_log().as_deref());
    // A guest's files and sockets are nobody else's business, whoever starts us.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_open_files();
    let layout = Layout::from_environment(variable, own_uid)?;
    for (directory, path) in layout.directories() {
        listen::private_directory(directory, path, own_uid)?;
    }
    // The store's lock makes us the only daemon here; the socket comes after it.
    let (store, loaded) =
        Store::open(&layout.store()).map_err(|failure| holder::name_holder(failure, &layout))?;
    let socket = layout.daemon_socket();
    let listener = listen::bind(&socket)?;
    let wired = wire_up::wire_up(&layout, &config);
    let executor = Rc::new(LocalExecutor::new());
    let (sender, inbox) = smol::channel::bounded(INBOX);
    let layout = Rc::new(layout);
    let guests = Guests::new(executor.clone(), sender.clone(), layout.clone());
    let shell = Shell {
        executor: executor.clone(),
        inbox: sender.clone(),
        layout,
        halts: Halts::new(wired.host.clone()),
        host: wired.host,
        guests: Rc::new(guests),
        jobs: wired.jobs,
        clients: HashMap::new(),
        waits: HashMap::new(),
        pids: HashMap::new(),
    };
    let names = Names::default();
    let about = About {
        version: crate::version::one_line(),
        log: log_file(),
        started,
        facts: wired.plan_facts.clone(),
        catalog: wired.catalog,
        names: names.clone(),
    };
    let mind = Mind::new(wired.plan_facts, loaded);
    let actor = Actor::new(mind, store, shell, about);
    Ok(Daemon {
        executor,
        actor,
        inbox,
        sender,
        listener,
        socket,
        own_uid,
        names,
        resolver: wired.resolver,
    })
}

/// Each VM takes some eight descriptors, each command in a guest some more; a login's soft
/// limit is 1024. No more than this, for there are programs that close every number up to
/// the limit when they start.
const OPEN_FILES: u64 = 1 << 16;

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if now.current.is_none_or(|limit| limit >= wanted) {
        return;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: now.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("raise the limit of open files to {wanted}: {error}");
    }
}

/// The file that standard error is, where it is one: the command line starts us so.
fn log_file() -> String {
    let target = std::fs::read_link("/proc/self/fd/2").unwrap_or_default();
    match target.is_file() {
        true => target.display().to_string(),
        false => String::new(),
    }
}

impl Daemon {
    fn run(self) -> Result<(), Failure> {
        let listener = Async::new(self.listener).map_err(|error| {
            Failure::new(FailureKind::Unreachable, "listen for clients").because(error)
        })?;
        let (clients, told) =
            Clients::new(self.executor.clone(), self.sender.clone(), self.own_uid);
        let accepting = self.executor.spawn(clients.accept(listener));
        self.executor.spawn(end_on_signal(self.sender)).detach();
        if let Some(resolver) = self.resolver {
            let names = self.names;
            let serving = async move { match resolver.serve(names).await {} };
            self.executor.spawn(serving).detach();
        }
        log::info!(pid = std::process::id(); "listening");
        let executor = self.executor.clone();
        let ended = smol::block_on(executor.run(async {
            let ended = self.actor.run(self.inbox).await;
            // The loop's end gave up the store. A successor may have it already, but it
            // binds nothing while a call of this socket is still taken, so what is
            // removed here is ours.
            listen::remove(&self.socket);
            // It also closed every client's channel; who asked us to end is to hear that
            // we do.
            drop(accepting);
            let all_told = async { while told.recv().await.is_ok() {} };
            let late = async {
                Timer::after(LAST_WORDS).await;
            };
            all_told.or(late).await;
            ended
        }));
        log::info!("ended");
        ended
    }
}

/// SIGTERM and SIGINT ask the mind to end. SIGHUP does nothing: a terminal that closes
/// does not take the daemon with it.
async fn end_on_signal(inbox: Sender<Input>) {
    let signals = Signals::new([Signal::Term, Signal::Int, Signal::Hup]);
    let mut signals = match signals {
        Ok(signals) => signals,
        Err(error) => return log::error!("listen for signals: {error}"),
    };
    while let Some(signal) = signals.next().await {
        if matches!(signal, Ok(Signal::Term | Signal::Int)) {
            let _ = inbox.send(Input::Event(Event::Shutdown)).await;
        }
    }
}
