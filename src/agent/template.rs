//! A machine that is to become a template stops here: the host writes it down, and every
//! guest that is begun from it goes on from the next line as if nothing had been.
//!
//! It has seen no device and asked for no configuration, so nothing in it is of one guest
//! or of one image. What a guest begun from it must not share with another, its random
//! numbers and its clock, comes with the configuration (`config.rs`), before any program
//! of the image runs.

use std::fs;

use super::record::Journal;
use super::{clock, during};
use crate::failure::Failure;
use crate::model::template::{PAUSE, PAUSE_PORT};
use crate::sys::port;

/// Comes back in a guest that was begun from this machine.
///
/// # Errors
/// The kernel gives out no ports.
pub fn pause(journal: &mut Journal) -> Result<(), Failure> {
    journal.mark("template");
    // The VMM stops the processor within this instruction, and goes on after it.
    port::write(PAUSE_PORT, PAUSE).map_err(during("say that the template is ready"))?;
    // What this kernel takes for now is when the template was made; what is written until the
    // host tells the time should not be of then.
    journal.tolerate(clock::follow_hardware());
    // The one device that was plugged in; the others are where their table says.
    fs::write("/sys/bus/pci/rescan", "1").map_err(during("look for devices anew"))
}
