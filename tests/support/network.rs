//! The bridge and the tables that VMs share: no stop and no deletion removes them, so
//! whoever tests removes what was not there before.

use std::sync::{Mutex, PoisonError};

use super::{Banger, census, is_root};

/// What a daemon uses whose configuration names no other.
const USUAL: &str = "banger0";

/// How many of this process use the usual network, and whether it was there before the
/// first of them: then it is that of a daemon that is none of ours.
static USERS: Mutex<Users> = Mutex::new(Users {
    count: 0,
    found: false,
});

struct Users {
    count: u32,
    found: bool,
}

/// One banger's use of the network, from before it makes anything.
pub struct Use {}

impl Use {
    /// Looks whether there is one.
    pub fn begin() -> Use {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        if users.count == 0 {
            users.found = exists(USUAL);
        }
        users.count += 1;
        Use {}
    }

    /// Removes the network with the last that used it, where it is ours. One that VMs of
    /// others have joined is refused by the program, and left to them.
    pub fn leave(&self, banger: &Banger) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        users.count -= 1;
        let bridge = bridge_of(banger);
        let kept = bridge == USUAL && (users.found || users.count > 0);
        if is_root() && !kept && exists(&bridge) {
            let config = banger.config().display().to_string();
            let words = ["role", "bangerd-root", "remove-network", "--config"];
            banger.run(&[&words[..], &[config.as_str()]].concat());
        }
    }
}

fn bridge_of(banger: &Banger) -> String {
    let text = std::fs::read_to_string(banger.config()).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("bridge = "));
    value.unwrap_or(USUAL).trim_matches('"').to_owned()
}

fn exists(bridge: &str) -> bool {
    census::links().iter().any(|link| link == bridge)
}
