//! `banger version` and `banger --version`.

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;

use super::render;
use crate::failure::Failure;
use crate::proto::agent::AGENT_VERSION;
use crate::proto::request::PROTOCOL_VERSION;

/// Show the version.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "version",
    example = "banger version",
    example = "banger version --json"
)]
pub struct Version {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct VersionView {
    version: &'static str,
    target: &'static str,
    protocol: u32,
    agent: u32,
}

/// What `banger --version` prints.
pub fn one_line() -> String {
    crate::version::one_line()
}

impl Version {
    /// Carries it out.
    pub fn run(self) -> Result<u8, Failure> {
        let view = VersionView {
            version: crate::version::VERSION,
            target: std::env::consts::ARCH,
            protocol: PROTOCOL_VERSION,
            agent: AGENT_VERSION,
        };
        match self.json {
            true => render::json(&view),
            false => render::line(&format!(
                "banger   {}\ntarget   {}\nprotocol {}\nagent    {}",
                view.version, view.target, view.protocol, view.agent
            )),
        }
        Ok(0)
    }
}
