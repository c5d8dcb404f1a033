//! Tells whoever started the daemon that it listens, or why it does not.
//!
//! `BANGER_READY_FD` names an inherited pipe; one line is written to it and it is
//! closed: `ready` when the socket listens, a [`WireFailure`] as JSON otherwise. Nobody
//! has to poll.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use crate::failure::Failure;
use crate::proto::reply::{READY_LINE, READY_VARIABLE, WireFailure};
use crate::sys::descriptors::{close_all_but, take_inherited};

/// The pipe to the starter, where there is one.
pub struct Ready(Option<File>);

impl Ready {
    /// Takes the pipe that the environment names. Whoever reads it sees its end when we
    /// do: no program that we start inherits it.
    pub fn from_environment() -> Ready {
        let number = std::env::var(READY_VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok());
        let pipe = number.and_then(|number| take_inherited(number).ok());
        Ready(pipe.map(File::from))
    }

    /// Closes whatever else was inherited, before anything of our own is opened: a pipe of
    /// the starter's shell that we kept would never end for whoever reads it.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn close_the_rest(&self) -> Result<(), Failure> {
        let keep: Vec<_> = self.0.iter().map(AsRawFd::as_raw_fd).collect();
        close_all_but(&keep)
            .map_err(|error| Failure::failed("close what bangerd inherited").because(error))
    }

    /// Says that the daemon listens.
    pub fn listening(self) {
        self.say(READY_LINE.to_owned());
    }

    /// Says why it does not.
    pub fn failed(self, failure: &Failure) {
        let wire = WireFailure::from(failure.clone());
        self.say(serde_json::to_string(&wire).expect("our own messages have string keys only"));
    }

    fn say(self, mut line: String) {
        let Some(mut file) = self.0 else { return };
        line.push('\n');
        if let Err(error) = file.write_all(line.as_bytes()) {
            log::warn!("tell the starter: {error}");
        }
    }
}
