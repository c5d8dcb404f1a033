//! `banger config show|get|set|unset`.

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;

use super::context::Context;
use super::render::{self, Paint, Stream};
use super::table::Table;
use crate::config::edit::{Unset, set_in_file, unset_in_file};
use crate::config::file::unknown_hint;
use crate::config::keys::find;
use crate::config::sizes::effective;
use crate::config::{Config, Origin};
use crate::failure::Failure;

/// Show every setting, its value and where it comes from.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "show",
    example = "banger config show",
    example = "banger config show --json"
)]
pub struct ConfigShow {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// A setting as `config show --json` prints it.
#[derive(Debug, Serialize)]
struct SettingView {
    key: &'static str,
    value: String,
    /// `default`, `machine`, or the file and line.
    from: String,
}

impl ConfigShow {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let config = context.config()?;
        let views = settings(&config, context)?;
        if self.json {
            render::json(&views);
            return Ok(0);
        }
        let mut table = Table::new(&["KEY", "VALUE", "FROM"]);
        for view in views {
            let from = (Paint::Dim, view.from);
            let key = (Paint::Plain, view.key.to_owned());
            table.painted(vec![key, (Paint::Bold, shown(view.key, view.value)), from]);
        }
        table.print();
        if render::is_terminal(Stream::Out) && !config.path().exists() {
            render::say(&format!("{} does not exist", config.path().display()));
        }
        Ok(0)
    }
}

fn shown(key: &str, value: String) -> String {
    match value.is_empty() && key.starts_with("programs.") {
        true => "(looked up on PATH)".to_owned(),
        false => value,
    }
}

fn settings(config: &Config, context: &Context) -> Result<Vec<SettingView>, Failure> {
    let view = |(key, value, origin)| SettingView {
        key,
        value,
        from: match origin {
            Origin::Line(line) => format!("{}:{line}", config.path().display()),
            Origin::Default => "default".to_owned(),
            Origin::Machine => "machine".to_owned(),
        },
    };
    let all = effective(config, context.machine());
    Ok(all.into_iter().map(view).collect())
}

/// Print the value of a setting that holds now.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "get",
    example = "banger config get vm_defaults.memory"
)]
pub struct ConfigGet {
    /// name of the setting
    #[argh(positional)]
    pub key: String,
}

impl ConfigGet {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let config = context.config()?;
        let views = settings(&config, context)?;
        match views.iter().find(|view| view.key == self.key) {
            Some(view) => render::line(&view.value),
            None => {
                let what = format!("unknown key `{}`", self.key);
                return Err(Failure::usage(what).hint(unknown_hint(&self.key)));
            }
        }
        Ok(0)
    }
}

/// Change a setting in the configuration file; its comments are kept.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "set",
    example = "banger config set vm_defaults.memory 4G",
    example = "banger config set vm_defaults.nat true"
)]
pub struct ConfigSet {
    /// name of the setting
    #[argh(positional)]
    pub key: String,
    /// its new value
    #[argh(positional)]
    pub value: String,
}

impl ConfigSet {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = context.config_path()?;
        set_in_file(&path, &self.key, &self.value)?;
        say_when_it_holds(&self.key);
        Ok(0)
    }
}

fn say_when_it_holds(key: &str) {
    let (table, _) = find(key).expect("it was just changed").split();
    if matches!(table, "network" | "programs") || key == "log_level" {
        render::say(
            "bangerd reads this when it starts: `banger daemon stop` lets the next command start it anew",
        );
    }
}

/// Take a setting out of the configuration file, so that its default holds; the comments of others are kept.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "unset",
    example = "banger config unset vm_defaults.disk_iops"
)]
pub struct ConfigUnset {
    /// name of the setting
    #[argh(positional)]
    pub key: String,
}

impl ConfigUnset {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let path = context.config_path()?;
        match unset_in_file(&path, &self.key)? {
            Unset::Done => say_when_it_holds(&self.key),
            Unset::WasNotSet => render::say(&format!("`{}` was not set", self.key)),
        }
        Ok(0)
    }
}
