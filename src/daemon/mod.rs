//! The daemon: one actor loop that owns every VM, image and kernel.

pub mod connection;
pub mod dns;
pub mod guest;
pub mod listen;
