//! The one binary; what it does is decided by the name it is called by.

use std::process::ExitCode;

use banger::agent;
use banger::role::{Role, decide};

fn main() -> ExitCode {
    let (role, _) = decide(std::env::args_os().collect(), std::process::id());
    match role {
        Role::Init => agent::init_main(),
        Role::Agent => agent::agent_main(),
        _ => ExitCode::FAILURE,
    }
}
