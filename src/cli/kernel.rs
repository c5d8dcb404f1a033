//! `banger kernel list|show|pull|delete`.

use argh::{ArgsInfo, FromArgs};

use super::context::{Context, unexpected};
use super::render::{self, Paint};
use super::table::Table;
use super::words::{ago, size, state};
use crate::failure::Failure;
use crate::model::ids::KernelName;
use crate::proto::reply::{KernelView, Reply};
use crate::proto::request::Request;

/// List the kernels of the store, and those that could be pulled.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "list",
    example = "banger kernel list",
    example = "banger kernel list --json"
)]
pub struct KernelList {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// print names only, of the store
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

impl KernelList {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let kernels = match context.ask(Request::KernelList {})? {
            Reply::Kernels { kernels } => kernels,
            other => return Err(unexpected("kernel_list", &other)),
        };
        if self.json {
            render::json(&kernels);
        } else if self.quiet {
            let present = kernels.iter().filter(|kernel| kernel.present);
            let names: String = present.map(|kernel| format!("{}\n", kernel.name)).collect();
            render::out(&names);
        } else {
            table(&kernels, context.now()).print();
        }
        Ok(0)
    }
}

fn table(kernels: &[KernelView], now: u64) -> Table {
    let mut table = Table::new(&[
        "NAME", "CONTENT", "RELEASE", "ON DISK", "USED BY", "CREATED", "SOURCE",
    ]);
    for kernel in kernels {
        let here = |text: String| if kernel.present { text } else { "-".to_owned() };
        let paint = if kernel.present {
            Paint::Plain
        } else {
            Paint::Dim
        };
        let created = match kernel.present {
            true => ago(now, kernel.created_at),
            false => "can be pulled".to_owned(),
        };
        table.painted(vec![
            (
                if kernel.present {
                    Paint::Bold
                } else {
                    Paint::Dim
                },
                kernel.name.clone(),
            ),
            (Paint::Dim, here(kernel.content.clone())),
            (paint, here(kernel.release.clone())),
            (paint, here(size(kernel.allocated))),
            (paint, here(kernel.used_by.len().to_string())),
            (paint, created),
            match &kernel.damaged {
                Some(damage) => (Paint::Red, format!("damaged: {damage}")),
                None => (paint, kernel.source.clone()),
            },
        ]);
    }
    table
}

/// Show a kernel of the store.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "show",
    example = "banger kernel show debian-6.1-cloud",
    example = "banger kernel show debian-6.1-cloud --json"
)]
pub struct KernelShow {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// name of the kernel
    #[argh(positional)]
    pub name: KernelName,
}

impl KernelShow {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let kernel = match context.ask(Request::KernelShow { name: self.name })? {
            Reply::Kernel(kernel) => kernel,
            other => return Err(unexpected("kernel_show", &other)),
        };
        if self.json {
            render::json(&kernel);
            return Ok(0);
        }
        context.show(&[
            ("name", kernel.name),
            ("content", kernel.content),
            ("release", kernel.release),
            ("on disk", size(kernel.allocated)),
            ("state", state(kernel.damaged.as_deref())),
            ("source", kernel.source),
            ("created", ago(context.now(), kernel.created_at)),
            ("used by", kernel.used_by.join(", ")),
        ]);
        Ok(0)
    }
}

/// Fetch a kernel of the catalogue.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "pull",
    example = "banger kernel pull debian-6.1-cloud"
)]
pub struct KernelPull {
    /// also when the store has it already, whole
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// print the name only
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// name of the kernel
    #[argh(positional)]
    pub name: KernelName,
}

impl KernelPull {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let request = Request::KernelPull {
            name: self.name,
            force: self.force,
        };
        let kernel = match context.ask_with_progress(request)? {
            Reply::Kernel(kernel) => kernel,
            other => return Err(unexpected("kernel_pull", &other)),
        };
        render::line(&match self.quiet {
            true => kernel.name,
            false => format!("{} {} ({})", kernel.name, kernel.release, kernel.content),
        });
        Ok(0)
    }
}

/// Delete a kernel that no sandbox uses.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "delete",
    example = "banger kernel delete debian-6.1-cloud"
)]
pub struct KernelDelete {
    /// name of the kernel
    #[argh(positional)]
    pub name: KernelName,
}

impl KernelDelete {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let name = self.name.clone();
        context.ask(Request::KernelDelete { name: self.name })?;
        render::line(&format!("{name} deleted"));
        Ok(0)
    }
}
