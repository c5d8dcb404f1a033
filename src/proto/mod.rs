//! What crosses a socket: message types and sans-IO codecs, nothing that opens one.
//!
//! Two conversations exist:
//!
//! - command line and daemon: JSON lines on a Unix socket ([`request`], [`reply`]);
//! - host and guest agent: [`frame`]s on a vsock stream, their meaning in [`agent`]
//!   and, for the first boot, [`guest`].
//!
//! `samples/` holds one checked-in example of every message; tests load them all,
//! so a change of the wire is a change of a sample.

pub mod agent;
pub mod frame;
pub mod guest;
pub mod helper;
pub mod limits;
pub mod repair;
pub mod reply;
pub mod request;
#[cfg(test)]
mod samples;
pub mod text;
