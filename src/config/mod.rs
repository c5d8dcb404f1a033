//! The configuration file: every key, its default, and what a file may say.
//!
//! ```text
//!  keys   the one table of keys: name, kind, default, check, words for people
//!  file   text -> checked values with the line each came from
//!  edit   text -> text with one value changed, comments kept
//!  sizes  values + this machine -> the sizes of a new VM
//! ```
//!
//! All keys are optional and no file is ever written for the user. An unknown key
//! is refused with its line and the nearest name: a typing mistake must not be a
//! setting that silently does nothing.

pub mod edit;
pub mod file;
pub mod keys;
pub mod sizes;

pub use file::{Config, Origin};
