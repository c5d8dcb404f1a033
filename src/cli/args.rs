//! The tree of commands. Each command's options and help stand in its own file;
//! here is only what leads to them.

use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};

use super::config_commands::{ConfigGet, ConfigSet, ConfigShow, ConfigUnset};
use super::daemon_commands::{DaemonStatus, DaemonStop};
use super::doctor_command::Doctor;
use super::exec::{VmExec, VmShell};
use super::image::{ImageDelete, ImageList, ImagePull, ImageShow};
use super::kernel::{KernelDelete, KernelList, KernelPull, KernelShow};
use super::lifecycle::{VmDelete, VmKill, VmReset, VmRestart, VmStart, VmStop};
use super::list::VmList;
use super::logs::VmLogs;
use super::prune::VmPrune;
use super::run::{VmCreate, VmRun};
use super::set::VmSet;
use super::show::VmShow;
use super::store_commands::{StoreCheck, StoreExport};
use super::version::Version;
use super::workspace_export::WorkspaceExport;

/// One-command development sandboxes on microVMs. A sandbox is a virtual machine with your repository in it: made in seconds, thrown away without a trace.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    name = "banger",
    note = "Exit status: 0 done, 1 failed, 2 wrong command line, 3 daemon unreachable, 4 not found, 5 denied or busy. `vm run`, `vm exec` and `vm shell` end with the guest command's own status, and with 125 when they fail themselves; a wrong command line is 2 there too.",
    example = "banger vm run                      # a shell in a fresh sandbox",
    example = "banger vm run . -- make test       # run in it, with this repository",
    example = "banger vm run --rm -- uname -a     # and leave nothing behind",
    example = "banger vm list",
    example = "banger doctor                      # what this machine lacks"
)]
pub struct Banger {
    /// what to do
    #[argh(subcommand)]
    pub command: Command,
}

/// The commands of the first level.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "made once, and argh describes no boxes"
)]
pub enum Command {
    /// `vm`
    Vm(Vm),
    /// `image`
    Image(Image),
    /// `kernel`
    Kernel(Kernel),
    /// `config`
    Config(ConfigGroup),
    /// `doctor`
    Doctor(Doctor),
    /// `daemon`
    Daemon(DaemonGroup),
    /// `store`
    Store(StoreGroup),
    /// `version`
    Version(Version),
}

macro_rules! group {
    ($(#[$doc:meta])* $type:ident, $commands:ident, $name:tt, [$($example:tt),*], $($variant:ident($inner:ident),)*) => {
        $(#[$doc])*
        #[derive(Debug, FromArgs, ArgsInfo)]
        #[argh(subcommand, name = $name, $(example = $example),*)]
        pub struct $type {
            /// what to do
            #[argh(subcommand)]
            pub command: $commands,
        }

        /// The commands of this group.
        #[derive(Debug, FromArgs, ArgsInfo)]
        #[argh(subcommand)]
        pub enum $commands {
            $(
                #[allow(missing_docs)]
                $variant($inner),
            )*
        }
    };
}

group! {
    /// Make, use and remove sandboxes.
    Vm, VmCommand, "vm",
    ["banger vm run --name dev .", "banger vm exec dev -- git status", "banger vm delete dev"],
    Run(VmRun),
    Create(VmCreate),
    Exec(VmExec),
    Shell(VmShell),
    List(VmList),
    Show(VmShow),
    Logs(VmLogs),
    Start(VmStart),
    Stop(VmStop),
    Restart(VmRestart),
    Kill(VmKill),
    Delete(VmDelete),
    Reset(VmReset),
    Set(VmSet),
    Prune(VmPrune),
    Workspace(Workspace),
}

group! {
    /// Bring home what a sandbox changed in its repository.
    Workspace, WorkspaceCommand, "workspace",
    ["banger vm workspace export dev | git apply"],
    Export(WorkspaceExport),
}

group! {
    /// Root file systems that sandboxes start from.
    Image, ImageCommand, "image",
    ["banger image list", "banger image pull debian-minimal"],
    List(ImageList),
    Show(ImageShow),
    Pull(ImagePull),
    Delete(ImageDelete),
}

group! {
    /// Kernels that sandboxes boot.
    Kernel, KernelCommand, "kernel",
    ["banger kernel list", "banger kernel pull debian-6.1-cloud"],
    List(KernelList),
    Show(KernelShow),
    Pull(KernelPull),
    Delete(KernelDelete),
}

group! {
    /// Show and change settings.
    ConfigGroup, ConfigCommand, "config",
    ["banger config show", "banger config set vm_defaults.memory 4G"],
    Show(ConfigShow),
    Get(ConfigGet),
    Set(ConfigSet),
    Unset(ConfigUnset),
}

group! {
    /// Look at the daemon that owns the sandboxes, or end it.
    DaemonGroup, DaemonCommand, "daemon",
    ["banger daemon status", "banger daemon stop    # sandboxes stay up"],
    Status(DaemonStatus),
    Stop(DaemonStop),
}

group! {
    /// Look at the store of sandboxes, images and kernels; for times when something is wrong.
    StoreGroup, StoreCommand, "store",
    ["banger store check", "banger store export > rows.json"],
    Check(StoreCheck),
    Export(StoreExport),
}

/// The whole tree, for the normaliser and the help.
pub fn tree() -> CommandInfoWithArgs {
    Banger::get_args_info()
}
