//! `banger vm run` and `banger vm create`.
//!
//! ```text
//!  check all that is local ─> vm_run, connection kept ─> dial ─> unpack ─> dial ─> session
//!        | nothing made yet          | its end deletes the VM, with --rm             |
//!        └ refused                   └─> explicit delete, seen to its end <──────────┘
//! ```
//!
//! All that is local includes every file of a workspace: one that cannot be read is found
//! before there is a VM.

use std::time::{Duration, Instant};

use argh::{ArgsInfo, FromArgs};

use super::client::Answer;
use super::context::{Context, unexpected};
use super::exec::{allocation, attach};
use super::new_vm::Wanted;
use super::progress::Stages;
use super::render;
use super::send_workspace::{self, REPOSITORY};
use super::session::OwnFailure;
use super::values::{
    CpuWeight, DiskIops, DiskRate, DiskSize, EnvPair, GuestDirectory, MemorySize, NetRate, Vcpu,
};
use super::words::{count, size};
use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ImageName, KernelName, VmName};
use crate::model::limits::Limits;
use crate::model::net::{NetRequest, PortForward};
use crate::model::vm::{InitMode, RootModeRequest, VmmRequest};
use crate::proto::agent::Exec;
use crate::proto::reply::{Reply, VmView};
use crate::proto::request::{GitIdentity, NewVm, Request};
use crate::workspace::depth::Depth;
use crate::workspace::inspect::{self, Untracked, Workspace};
use crate::workspace::pack::{self, Staged};

macro_rules! vm_command {
    ($(#[$attribute:meta])* $type:ident { $($own:tt)* }) => {
        #[derive(Debug, FromArgs, ArgsInfo)]
        $(#[$attribute])*
        pub struct $type {
            /// name of the sandbox; otherwise one is made up
            #[argh(option)]
            pub name: Option<VmName>,
            /// image to start from
            #[argh(option)]
            pub image: Option<ImageName>,
            /// kernel to boot
            #[argh(option)]
            pub kernel: Option<KernelName>,
            /// virtual processors
            #[argh(option, arg_name = "count")]
            pub vcpu: Option<Vcpu>,
            /// memory, such as 2G
            #[argh(option, arg_name = "size")]
            pub memory: Option<MemorySize>,
            /// size of the work disk (/root)
            #[argh(option, arg_name = "size")]
            pub disk_size: Option<DiskSize>,
            /// size of the root file system
            #[argh(option, arg_name = "size")]
            pub root_size: Option<DiskSize>,
            /// how the root is made writable: auto, dm-snapshot, reflink or overlay
            #[argh(option, arg_name = "mode")]
            pub root_mode: Option<RootModeRequest>,
            /// most requests per second, of each disk by itself
            #[argh(option, arg_name = "count")]
            pub disk_iops: Option<DiskIops>,
            /// most bytes per second, of each disk by itself
            #[argh(option, arg_name = "size")]
            pub disk_bandwidth: Option<DiskRate>,
            /// most bytes per second on the network, each way by itself
            #[argh(option, arg_name = "size")]
            pub net_bandwidth: Option<NetRate>,
            /// share of busy processors, 1 to 10000; others have 100
            #[argh(option, arg_name = "weight")]
            pub cpu_weight: Option<CpuWeight>,
            /// network: auto, nat, user or none
            #[argh(option, arg_name = "mode")]
            pub net: Option<NetRequest>,
            /// reach the outside through the host; short for `--net nat`
            #[argh(switch)]
            pub nat: bool,
            /// lead a port of the host to one of the guest: HOST:GUEST or ADDRESS:HOST:GUEST, or PORT for the same on both sides, with /udp behind it for UDP; ADDRESS is 127.0.0.1 unless said, 0.0.0.0 means all; may be repeated
            #[argh(option, short = 'p', arg_name = "port")]
            pub publish: Vec<PortForward>,
            /// set a variable for every command, or pass on your own with `--env KEY`; may be repeated
            #[argh(option, short = 'e', arg_name = "key=value")]
            pub env: Vec<EnvPair>,
            /// directory of the guest in which commands run
            #[argh(option, short = 'w', arg_name = "directory")]
            pub workdir: Option<GuestDirectory>,
            /// first process of the guest: auto, systemd or agent
            #[argh(option, arg_name = "mode")]
            pub init: Option<InitMode>,
            /// what runs the guest: auto, firecracker or qemu
            #[argh(option)]
            pub vmm: Option<VmmRequest>,
            $($own)*
        }

        impl $type {
            fn wanted(&self) -> Wanted {
                Wanted {
                    name: self.name.clone(),
                    image: self.image.clone(),
                    kernel: self.kernel.clone(),
                    vcpu: self.vcpu,
                    memory: self.memory,
                    disk_size: self.disk_size,
                    root_size: self.root_size,
                    root_mode: self.root_mode,
                    net: self.net,
                    nat: self.nat,
                    publish: self.publish.clone(),
                    env: self.env.clone(),
                    workdir: self.workdir.clone(),
                    init: self.init,
                    vmm: self.vmm,
                    limits: Limits {
                        disk_iops: self.disk_iops.map(|DiskIops(count)| count),
                        disk_bandwidth: self.disk_bandwidth.map(|DiskRate(rate)| rate),
                        net_bandwidth: self.net_bandwidth.map(|NetRate(rate)| rate),
                        cpu_weight: self.cpu_weight.map(|CpuWeight(weight)| weight),
                    },
                }
            }
        }
    };
}

vm_command! {
    /// Make a sandbox and run in it: a shell, or the command after `--`. With PATH, that git repository is at /root/repo: its tracked files with their uncommitted changes, its branch and recent history.
    #[argh(
        subcommand,
        name = "run",
        note = "The sandbox goes on running afterwards, unless --rm is given. Of the history the newest 10 commits go along: `--depth 1` takes the last one only, `--depth all` takes everything. `banger config show` tells the default sizes. The exit status is that of the command; 2 means that this command line is wrong, 125 that the sandbox could not be made or reached.",
        example = "banger vm run",
        example = "banger vm run --name dev --nat .",
        example = "banger vm run --rm . -- make test",
        example = "banger vm run --rm --image debian-minimal -- uname -a",
        example = "banger vm run -d --name web -p 8080:80",
        example = "banger vm run --dry-run .          # which files would go along",
        example = "banger vm run --depth all . -- git log"
    )]
    VmRun {
        /// delete the sandbox at the end, however its command ends; one whose guest never answers is kept, to see why
        #[argh(switch)]
        pub rm: bool,
        /// leave it running in the background and print its name
        #[argh(switch, short = 'd')]
        pub detach: bool,
        /// pass standard input on, which is done in any case: `-it` means what `-t` means
        #[argh(switch, short = 'i')]
        pub interactive: bool,
        /// allocate a terminal in any case
        #[argh(switch, short = 't')]
        pub tty: bool,
        /// allocate no terminal
        #[argh(switch, short = 'T')]
        pub no_tty: bool,
        /// take untracked files along, but never ignored ones
        #[argh(switch)]
        pub include_untracked: bool,
        /// commits of history that go along, or `all`; 10 unless said
        #[argh(option, arg_name = "count")]
        pub depth: Option<Depth>,
        /// list the files that would go along, make nothing
        #[argh(switch)]
        pub dry_run: bool,
        /// git repository to take along
        #[argh(positional)]
        pub path: Option<String>,
    }
}

vm_command! {
    /// Make a sandbox without running anything in it, and print its name.
    #[argh(
        subcommand,
        name = "create",
        example = "banger vm create --name dev",
        example = "banger vm create --name dev --no-start --vcpu 4 --memory 8G",
        example = "banger vm create --name ci --disk-iops 500 --net-bandwidth 2M --cpu-weight 50"
    )]
    VmCreate {
        /// do not start it
        #[argh(switch)]
        pub no_start: bool,
        /// print JSON
        #[argh(switch)]
        pub json: bool,
    }
}

impl VmCreate {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let config = context.config()?;
        let own = |key: &str| std::env::var(key).ok();
        let identity = identity(None);
        let vm = self
            .wanted()
            .resolve(&config, context.machine(), None, identity, own)?;
        let request = Request::VmRun {
            vm: Box::new(vm),
            start: !self.no_start,
            delete_on_disconnect: false,
        };
        match context.ask_with_progress(request)? {
            Reply::Vm(vm) if self.json => render::json(&vm),
            Reply::Vm(vm) => render::line(&vm.name),
            other => return Err(unexpected("vm_run", &other)),
        }
        Ok(0)
    }
}

impl VmRun {
    /// Carries it out.
    pub fn run(self, context: &Context, argv: Option<Vec<String>>) -> Result<u8, OwnFailure> {
        let workspace = self
            .check(argv.as_deref())
            .and_then(|()| self.inspect())
            .map_err(OwnFailure::unasked)?;
        if let Some(workspace) = workspace.as_ref().filter(|_| self.dry_run) {
            dry_run(workspace);
            return Ok(0);
        }
        let vm = self
            .new_vm(context, workspace.as_ref())
            .map_err(OwnFailure::unasked)?;
        let mut stages = Stages::new();
        let staged = match workspace {
            Some(workspace) => Some(self.stage(context, workspace, &mut stages)?),
            None => None,
        };
        let (answer, vm) = self.make(context, vm, &mut stages)?;
        let outcome = self.use_it(context, &vm, staged, argv, &mut stages);
        if self.rm {
            remove(context, &vm, answer);
            return outcome;
        }
        outcome.map_err(|failure| kept(failure, &vm.name))
    }

    fn stage(
        &self,
        context: &Context,
        workspace: Workspace,
        stages: &mut Stages,
    ) -> Result<(Workspace, Staged), Failure> {
        stages.stage("read the workspace");
        let depth = self.depth.unwrap_or(Depth::DEFAULT);
        let staged = pack::stage(&workspace, depth, &context.layout()?.cache);
        stages.clear();
        Ok((workspace, staged?))
    }

    fn check(&self, argv: Option<&[String]>) -> Result<(), Failure> {
        let excluded = |what: &str, hint: &str| Err(Failure::usage(what).hint(hint));
        if self.detach && self.rm {
            return excluded(
                "`--detach` and `--rm` exclude each other",
                "Delete it yourself when it is no longer needed: `banger vm delete NAME`.",
            );
        }
        if self.detach && argv.is_some() {
            return excluded(
                "`--detach` takes no command",
                "Run it afterwards: `banger vm exec NAME -- COMMAND`.",
            );
        }
        let about_path = self.include_untracked || self.dry_run || self.depth.is_some();
        if self.path.is_none() && about_path {
            return excluded(
                "`--include-untracked`, `--depth` and `--dry-run` need PATH",
                "Name a git repository: `banger vm run --dry-run .`.",
            );
        }
        allocation(self.tty, self.no_tty).map(drop)
    }

    fn inspect(&self) -> Result<Option<Workspace>, Failure> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        let untracked = match self.include_untracked {
            true => Untracked::Include,
            false => Untracked::Leave,
        };
        inspect::inspect(path.as_ref(), untracked).map(Some)
    }

    fn new_vm(&self, context: &Context, workspace: Option<&Workspace>) -> Result<NewVm, Failure> {
        context.layout()?;
        let config = context.config()?;
        let own = |key: &str| std::env::var(key).ok();
        let repository = workspace.map(|_| REPOSITORY);
        let identity = identity(workspace);
        self.wanted()
            .resolve(&config, context.machine(), repository, identity, own)
    }

    fn make(
        &self,
        context: &Context,
        vm: NewVm,
        stages: &mut Stages,
    ) -> Result<(Answer, VmView), Failure> {
        let request = Request::VmRun {
            vm: Box::new(vm),
            start: true,
            delete_on_disconnect: self.rm,
        };
        let begun = Instant::now();
        let answer = context.ask_keeping(request, stages)?;
        match &answer.reply {
            Reply::Vm(vm) => {
                let vm = VmView::clone(vm);
                say_made(&vm, begun.elapsed());
                Ok((answer, vm))
            }
            other => Err(unexpected("vm_run", other)),
        }
    }

    fn use_it(
        &self,
        context: &Context,
        vm: &VmView,
        staged: Option<(Workspace, Staged)>,
        argv: Option<Vec<String>>,
        stages: &mut Stages,
    ) -> Result<u8, OwnFailure> {
        if let Some((workspace, staged)) = staged {
            send_workspace::send(context, &vm.id, &workspace, &staged, stages)?;
            say_left_out(&workspace);
        }
        if self.detach {
            render::line(&vm.name);
            render::say(&format!("`banger vm shell {}` goes in", vm.name));
            return Ok(0);
        }
        let interactive = argv.is_none();
        let exec = Exec {
            argv: argv.unwrap_or_default(),
            // The VM has them already, for every command.
            env: Vec::new(),
            // Named, so that one which does not exist is a failure and not root's home.
            workdir: vm.workdir.clone(),
            terminal: allocation(self.tty, self.no_tty)?.decide(),
        };
        let status = attach(context.dial(&vm.id)?, exec)?;
        if interactive && !self.rm {
            say_how_to_come_back(&vm.name);
        }
        Ok(status)
    }
}

/// Whose name and address commits in the guest carry.
fn identity(workspace: Option<&Workspace>) -> Option<GitIdentity> {
    let (name, email) = inspect::identity(workspace.map(|workspace| workspace.root.as_path()))?;
    Some(GitIdentity { name, email })
}

/// The essentials; everything is in `vm show`.
fn say_made(vm: &VmView, took: Duration) {
    let text = format!(
        "{} is ready in {:.1} s: {}, {}, {} memory, network {}",
        vm.name,
        took.as_secs_f64(),
        vm.image,
        count(u64::from(vm.vcpu), "cpu"),
        size(vm.memory),
        vm.net,
    );
    render::say(&render::printable(&text));
    for warning in &vm.warnings {
        render::say(&format!("guest: {}", render::printable(warning)));
    }
}

fn say_left_out(workspace: &Workspace) {
    for line in workspace.left_out() {
        render::say(&line);
    }
}

/// A VM that was made and whose first use failed is there all the same.
fn kept(mut failure: OwnFailure, name: &str) -> OwnFailure {
    let kept = format!(
        "{name} was made and stays: `banger vm shell {name}` goes in, `banger vm delete {name}` deletes it."
    );
    let hint = &mut failure.failure.hint;
    *hint = Some(match hint.take() {
        Some(hint) => format!("{hint} {kept}"),
        None => kept,
    });
    failure
}

fn say_how_to_come_back(name: &str) {
    render::say(&format!(
        "{name} still runs: `banger vm shell {name}` goes back in, `banger vm stop {name}` stops it, `banger vm delete {name}` deletes it"
    ));
}

fn dry_run(workspace: &Workspace) {
    for file in &workspace.files {
        let mut line = std::os::unix::ffi::OsStrExt::as_bytes(file.as_os_str()).to_vec();
        line.push(b'\n');
        render::out_bytes(&line);
    }
    say_left_out(workspace);
}

/// Deletes the VM and waits for it. Closing the kept connection would do as well, but
/// then the next command could still see the VM.
fn remove(context: &Context, vm: &VmView, answer: Answer) {
    let request = Request::VmDelete {
        vm: vm.id.clone(),
        force: true,
    };
    match context.ask(request) {
        Ok(_) => {}
        Err(failure) if failure.kind == FailureKind::NotFound => {}
        Err(failure) => render::failure(&failure),
    }
    drop(answer);
}
