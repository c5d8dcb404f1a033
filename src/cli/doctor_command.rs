//! `banger doctor`: asks, lets `doctor` judge, prints.

use argh::{ArgsInfo, FromArgs};

use super::context::{Context, unexpected};
use super::doctor::{Own, Row, Verdict, judge, status, stuck};
use super::render::{self, Paint, Stream, paint, printable};
use super::repair;
use crate::config::Config;
use crate::failure::Failure;
use crate::proto::reply::{Fact, HostFacts, Reply};
use crate::proto::request::Request;
use crate::workspace::git;

/// Say what this machine offers and what it lacks, with what to do about it. Exit status 1 when no sandbox can be made, and with --fix when something remains.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "doctor",
    example = "banger doctor",
    example = "banger doctor --json",
    example = "banger doctor --fix --dry-run"
)]
pub struct Doctor {
    /// remove what of ours no sandbox has, put back what running ones lack, and say what was done
    #[argh(switch)]
    pub fix: bool,
    /// with --fix: say what would be done, and change nothing
    #[argh(switch)]
    pub dry_run: bool,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Doctor {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        if self.dry_run && !self.fix {
            return Err(Failure::usage("`--dry-run` says what `--fix` would do")
                .hint("Type `banger doctor --fix --dry-run`."));
        }
        if self.fix {
            return repair::run(context, self.dry_run, self.json);
        }
        let config = context.config();
        let (daemon, facts) = match facts(context) {
            Ok(facts) => (Ok(()), Some(facts)),
            Err(failure) => (Err(failure), own_look(context, &config)),
        };
        // Asked second: where the daemon does not answer, its reason is a row already.
        let vms = daemon.is_ok().then(|| context.vms().unwrap_or_default());
        let mut rows = judge(&Own {
            config: config.map(|config| match config.path().exists() {
                true => config.path().display().to_string(),
                false => format!("defaults ({} does not exist)", config.path().display()),
            }),
            daemon,
            facts,
            git: git_fact(),
        });
        rows.extend(stuck(&vms.unwrap_or_default()));
        match self.json {
            true => render::json(&rows),
            false => render::out(&rows.iter().map(text).collect::<String>()),
        }
        Ok(status(&rows))
    }
}

fn facts(context: &Context) -> Result<HostFacts, Failure> {
    match context.ask(Request::HostFacts {})? {
        Reply::Facts(facts) => Ok(facts),
        other => Err(unexpected("host_facts", &other)),
    }
}

/// This machine is as it is whatever keeps a daemon from starting; with a configuration
/// that cannot be read it is looked at by the defaults.
fn own_look(context: &Context, config: &Result<Config, Failure>) -> Option<HostFacts> {
    match config {
        Ok(config) => context.look(config),
        Err(_) => context.look(&Config::default()),
    }
}

fn git_fact() -> Fact {
    let version = git::run(std::path::Path::new("/"), &["--version"]);
    Fact {
        name: "git".to_owned(),
        ok: version.is_ok(),
        detail: match version {
            Ok(output) => git::line(&output).unwrap_or_default(),
            Err(failure) => failure.to_string(),
        },
    }
}

fn text(row: &Row) -> String {
    let colour = match row.verdict {
        Verdict::Pass => Paint::Green,
        Verdict::Warn => Paint::Yellow,
        Verdict::Fail => Paint::Red,
    };
    let verdict = paint(Stream::Out, colour, row.verdict.word());
    let mut text = format!("{verdict}  {:<20} {}\n", row.name, printable(&row.detail));
    if let Some(hint) = &row.hint {
        text.push_str(&format!("{:26} {}\n", "", printable(hint)));
    }
    text
}
