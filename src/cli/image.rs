//! `banger image list|show|pull|delete`.

use argh::{ArgsInfo, FromArgs};

use super::context::{Context, unexpected};
use super::render::{self, Paint};
use super::table::Table;
use super::words::{ago, size, state};
use crate::failure::Failure;
use crate::model::ids::ImageName;
use crate::proto::reply::{ImageView, Reply};
use crate::proto::request::Request;

/// List the images of the store, and those that could be pulled.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "list",
    example = "banger image list",
    example = "banger image list --quiet"
)]
pub struct ImageList {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// print names only, of the store
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

impl ImageList {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let images = match context.ask(Request::ImageList {})? {
            Reply::Images { images } => images,
            other => return Err(unexpected("image_list", &other)),
        };
        if self.json {
            render::json(&images);
        } else if self.quiet {
            let present = images.iter().filter(|image| image.present);
            let names: String = present.map(|image| format!("{}\n", image.name)).collect();
            render::out(&names);
        } else {
            table(&images, context.now()).print();
        }
        Ok(0)
    }
}

fn table(images: &[ImageView], now: u64) -> Table {
    let mut table = Table::new(&[
        "NAME", "CONTENT", "SIZE", "ON DISK", "USED BY", "CREATED", "SOURCE",
    ]);
    for image in images {
        let here = |text: String| if image.present { text } else { "-".to_owned() };
        let paint = if image.present {
            Paint::Plain
        } else {
            Paint::Dim
        };
        let created = match image.present {
            true => ago(now, image.created_at),
            false => "can be pulled".to_owned(),
        };
        table.painted(vec![
            (
                if image.present {
                    Paint::Bold
                } else {
                    Paint::Dim
                },
                image.name.clone(),
            ),
            (Paint::Dim, here(image.content.clone())),
            (paint, here(size(image.size))),
            (paint, here(size(image.allocated))),
            (paint, here(image.used_by.len().to_string())),
            (paint, created),
            match &image.damaged {
                Some(damage) => (Paint::Red, format!("damaged: {damage}")),
                None => (paint, image.source.clone()),
            },
        ]);
    }
    table
}

/// Show an image of the store.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "show",
    example = "banger image show debian-bookworm",
    example = "banger image show debian-bookworm --json"
)]
pub struct ImageShow {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// name of the image
    #[argh(positional)]
    pub name: ImageName,
}

impl ImageShow {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let image = match context.ask(Request::ImageShow { name: self.name })? {
            Reply::Image(image) => image,
            other => return Err(unexpected("image_show", &other)),
        };
        if self.json {
            render::json(&image);
            return Ok(0);
        }
        context.show(&[
            ("name", image.name),
            ("content", image.content),
            ("size", size(image.size)),
            ("on disk", size(image.allocated)),
            ("state", state(image.damaged.as_deref())),
            ("source", image.source),
            ("created", ago(context.now(), image.created_at)),
            ("used by", image.used_by.join(", ")),
        ]);
        Ok(0)
    }
}

/// Build or fetch an image of the catalogue.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "pull",
    example = "banger image pull debian-bookworm",
    example = "banger image pull debian-minimal --force"
)]
pub struct ImagePull {
    /// also when the store has it already, whole
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// print the name only
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// name of the image
    #[argh(positional)]
    pub name: ImageName,
}

impl ImagePull {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let request = Request::ImagePull {
            name: self.name,
            force: self.force,
        };
        let image = match context.ask_with_progress(request)? {
            Reply::Image(image) => image,
            other => return Err(unexpected("image_pull", &other)),
        };
        render::line(&match self.quiet {
            true => image.name,
            false => format!(
                "{} {} ({})",
                image.name,
                image.content,
                size(image.allocated)
            ),
        });
        Ok(0)
    }
}

/// Delete an image that no sandbox uses.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "delete",
    example = "banger image delete debian-minimal"
)]
pub struct ImageDelete {
    /// name of the image
    #[argh(positional)]
    pub name: ImageName,
}

impl ImageDelete {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let name = self.name.clone();
        context.ask(Request::ImageDelete { name: self.name })?;
        render::line(&format!("{name} deleted"));
        Ok(0)
    }
}
