//! What every command has at hand: where things lie, the configuration, the daemon.
//!
//! Each is looked up when it is first needed: `banger version` needs none of them,
//! and a wrong configuration must not keep `banger config set` from mending it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::client::{self, Answer};
use super::progress::{Plain, Stages};
use super::render::{self, Paint, Stream, paint, printable};
use super::start::connect_or_start;
use crate::config::sizes::Machine;
use crate::config::{self, Config};
use crate::failure::{Failure, FailureKind};
use crate::host::layout::Layout;
use crate::model::units::Bytes;
use crate::proto::reply::{HostFacts, Reply, VmView};
use crate::proto::request::Request;

/// Finds out what this machine offers, in this process. The daemon's own eyes, given to us
/// by whoever knows both: nothing here may import them.
pub type Look = fn(&Layout, &Config) -> HostFacts;

/// The process's surroundings.
#[derive(Debug)]
pub struct Context {
    /// For `doctor`, where no daemon can be started.
    pub look: Look,
}

/// The failure for an answer that does not belong to its question.
pub fn unexpected(question: &str, reply: &Reply) -> Failure {
    Failure::bug(format!("bangerd answered {question} with {reply:?}"))
}

impl Context {
    /// Where everything of ours lies.
    pub fn layout(&self) -> Result<Layout, Failure> {
        let uid = rustix::process::geteuid().as_raw();
        Layout::from_environment(|name| std::env::var_os(name), uid)
    }

    /// What this machine offers, without a daemon; `None` where nobody knows where
    /// anything of ours would lie.
    pub fn look(&self, config: &Config) -> Option<HostFacts> {
        let uid = rustix::process::geteuid().as_raw();
        let layout = Layout::roots(|name| std::env::var_os(name), uid).ok()?;
        Some((self.look)(&layout, config))
    }

    /// The configuration file.
    pub fn config_path(&self) -> Result<PathBuf, Failure> {
        config::file::path(|name| std::env::var_os(name)).ok_or_else(|| {
            Failure::usage("find the configuration: HOME is not set")
                .hint("Set HOME, or BANGER_CONFIG to the file.")
        })
    }

    /// The configuration.
    pub fn config(&self) -> Result<Config, Failure> {
        Config::read(&self.config_path()?)
    }

    /// What decides default sizes.
    pub fn machine(&self) -> Machine {
        let info = rustix::system::sysinfo();
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: Bytes(info.totalram.saturating_mul(u64::from(info.mem_unit))),
        }
    }

    /// Seconds since the epoch.
    pub fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }

    fn connect(&self) -> Result<UnixStream, Failure> {
        connect_or_start(&self.layout()?)
    }

    /// Asks the daemon, which is started if need be.
    pub fn ask(&self, request: Request) -> Result<Reply, Failure> {
        Ok(self.ask_with_descriptor(request)?.reply)
    }

    /// Asks the daemon for something that comes with its answer.
    pub fn ask_with_descriptor(&self, request: Request) -> Result<Answer, Failure> {
        client::ask(|| self.connect(), &request, |_| {})
    }

    /// Asks the daemon and shows the stages of the work.
    pub fn ask_with_progress(&self, request: Request) -> Result<Reply, Failure> {
        let mut stages = Stages::new();
        Ok(self.ask_keeping(request, &mut stages)?.reply)
    }

    /// Asks the daemon and keeps the connection.
    pub fn ask_keeping(&self, request: Request, stages: &mut Stages) -> Result<Answer, Failure> {
        let answer = client::ask(|| self.connect(), &request, |p| stages.show(p));
        stages.clear();
        answer
    }

    /// Asks the daemon if one runs; never starts one.
    pub fn ask_running(&self, request: Request) -> Result<Reply, Failure> {
        Ok(self.ask_running_keeping(request)?.reply)
    }

    /// The same with what came along.
    pub fn ask_running_keeping(&self, request: Request) -> Result<Answer, Failure> {
        let socket = self.layout()?.daemon_socket();
        let nobody = || {
            let what = format!(
                "bangerd does not run: nobody listens on {}",
                socket.display()
            );
            Failure::new(FailureKind::Unreachable, what)
                .hint("Any command that needs it starts it, such as `banger vm list`.")
        };
        let connect = || client::connect(&socket)?.ok_or_else(nobody);
        client::ask(connect, &request, |_| {})
    }

    /// Asks several things at once, each on a connection of its own; answers in order.
    pub fn ask_all(&self, requests: Vec<Option<Request>>) -> Vec<Option<Result<Reply, Failure>>> {
        let single = requests.iter().flatten().count() == 1;
        std::thread::scope(|scope| {
            let start = |request: Request| {
                scope.spawn(move || match single {
                    true => self
                        .ask_keeping(request, &mut Stages::with(Plain::WhenSlow))
                        .map(|answer| answer.reply),
                    false => self.ask(request),
                })
            };
            let running: Vec<_> = requests.into_iter().map(|r| r.map(start)).collect();
            let finish = |thread: std::thread::ScopedJoinHandle<'_, Result<Reply, Failure>>| {
                let panicked = |_| Err(Failure::bug("a request's thread panicked"));
                thread.join().unwrap_or_else(panicked)
            };
            running.into_iter().map(|t| t.map(finish)).collect()
        })
    }

    /// Every VM.
    pub fn vms(&self) -> Result<Vec<VmView>, Failure> {
        match self.ask(Request::VmList {})? {
            Reply::Vms { vms } => Ok(vms),
            other => Err(unexpected("vm_list", &other)),
        }
    }

    /// One VM.
    pub fn vm(&self, reference: &str) -> Result<VmView, Failure> {
        let vm = reference.to_owned();
        match self.ask(Request::VmShow { vm })? {
            Reply::Vm(vm) => Ok(*vm),
            other => Err(unexpected("vm_show", &other)),
        }
    }

    /// Connects to the agent of a running VM.
    pub fn dial(&self, reference: &str) -> Result<OwnedFd, Failure> {
        let vm = reference.to_owned();
        let answer = self.ask_with_descriptor(Request::VmDial { vm })?;
        match (answer.reply, answer.descriptor) {
            (Reply::Dialed { .. }, Some(stream)) => Ok(stream),
            (other, _) => Err(unexpected("vm_dial", &other)),
        }
    }

    /// Prints names and values, one pair a line.
    pub fn show(&self, rows: &[(&str, String)]) {
        let line = |(name, value): &(&str, String)| {
            let name = paint(Stream::Out, Paint::Dim, &format!("{name:<12}"));
            format!("{name} {}\n", printable(value)).replace(" \n", "\n")
        };
        render::out(&rows.iter().map(line).collect::<String>());
    }
}
