//! `banger store check|export`.
//!
//! The store is read from a copy: by this process where no daemon has it, else as the
//! daemon hands it out. Neither starts a daemon: that would recover, and so write.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;

use super::context::{Context, unexpected};
use super::progress::Stages;
use super::render::{self, Paint, Stream, paint, printable};
use super::words::count;
use crate::failure::Failure;
use crate::host::layout::Layout;
use crate::image::job::{Cancel, Job};
use crate::image::manifest::{Depth, Manifest};
use crate::model::ids::ContentId;
use crate::proto::reply::Reply;
use crate::proto::request::Request;
use crate::store::audit::{Finding, Folders, Kind, audit, contents};
use crate::store::copy::{self, StoreRows};
use crate::store::export::export;

/// Look whether the store of sandboxes, images and kernels is sound, and whether what it names is there. Changes nothing.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "check",
    note = "An image or a kernel whose files are damaged beyond their beginning is found with --contents only; a guest then does not come up, or behaves oddly. Exit status: 0 sound, 1 something is wrong, 74 the store cannot be read.",
    example = "banger store check",
    example = "banger store check --contents",
    example = "banger store check --json"
)]
pub struct StoreCheck {
    /// also read every image and kernel whole, and compare it with what was made; takes seconds for each GiB
    #[argh(switch)]
    pub contents: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Print every row of the store as JSON, also those that cannot be read. Changes nothing.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "export",
    note = "docs/crash-recovery.md describes the shape.",
    example = "banger store export > rows.json",
    example = "banger store export --json | jq -r '.vms[].row.name'"
)]
pub struct StoreExport {
    /// print JSON, which it does anyway
    #[argh(switch)]
    pub json: bool,
}

/// What `store check --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    /// `file`, or `bangerd` where one runs.
    read_from: &'static str,
    vms: usize,
    images: usize,
    kernels: usize,
    sound: bool,
    findings: Vec<Finding>,
}

impl StoreCheck {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let layout = context.layout()?;
        let (rows, read_from) = rows(context, &layout)?;
        let mut findings = audit(&rows, &folders(&layout));
        if self.contents {
            findings.extend(damaged(&rows, &layout)?);
        }
        let report = Report {
            store: layout.store().display().to_string(),
            read_from,
            vms: rows.vms.len(),
            images: rows.images.len(),
            kernels: rows.kernels.len(),
            sound: findings.is_empty(),
            findings,
        };
        match self.json {
            true => render::json(&report),
            false => render::out(&text(&report)),
        }
        Ok(u8::from(!report.sound))
    }
}

impl StoreExport {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let layout = context.layout()?;
        let (rows, _) = rows(context, &layout)?;
        render::json(&export(&rows, layout.store().display().to_string()));
        Ok(0)
    }
}

fn rows(context: &Context, layout: &Layout) -> Result<(StoreRows, &'static str), Failure> {
    let path = layout.store();
    if let Some(rows) = copy::read(&path)? {
        return Ok((rows, "file"));
    }
    let answer = context.ask_running_keeping(Request::StoreCopy {})?;
    match (answer.reply, answer.descriptor) {
        (Reply::StoreCopy { .. }, Some(memory)) => {
            let rows = copy::of(&mut File::from(memory), &path)?;
            Ok((rows, "bangerd"))
        }
        (other, _) => Err(unexpected("store_copy", &other)),
    }
}

/// Images and kernels that are there and not as they were made.
fn damaged(rows: &StoreRows, layout: &Layout) -> Result<Vec<Finding>, Failure> {
    let mut stages = Stages::new();
    let job = Job {
        layout,
        cancel: &Cancel::new()?,
        progress: &|_| {},
    };
    let mut found = Vec::new();
    for (kind, name, content) in contents(rows) {
        // A row that cannot be read, and a folder that is not there, the audit has found.
        let Ok(content) = content.parse::<ContentId>() else {
            continue;
        };
        let folder = match kind {
            Kind::Image => layout.images().join(content.as_str()),
            Kind::Kernel => layout.kernel(&content),
        };
        let noun = kind.noun();
        if !folder.exists() {
            continue;
        }
        stages.stage(&format!("read {noun} {name}"));
        let manifest = Manifest::read(&folder, &content);
        let checked = manifest.and_then(|manifest| manifest.verify(&job, &folder, Depth::Full));
        if let Err(damage) = checked {
            found.push(Finding {
                what: format!("{noun} {name} is damaged: {damage}"),
                next: format!("`banger {noun} pull {name} --force` makes it again."),
            });
        }
    }
    Ok(found)
}

fn folders(layout: &Layout) -> Folders {
    Folders {
        vms: names_in(&layout.state.join("vms")),
        images: names_in(&layout.images()),
        kernels: names_in(&layout.kernels()),
    }
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.collect()
}

fn text(report: &Report) -> String {
    let counted = |number: usize, one: &str| count(number as u64, one);
    let mut text = format!(
        "{} (read from {}): {}, {}, {}\n",
        report.store,
        report.read_from,
        counted(report.vms, "vm"),
        counted(report.images, "image"),
        counted(report.kernels, "kernel"),
    );
    for finding in &report.findings {
        let what = paint(Stream::Out, Paint::Red, &printable(&finding.what));
        text.push_str(&format!("{what}\n    {}\n", printable(&finding.next)));
    }
    if report.sound {
        text.push_str("sound\n");
    }
    text
}
