//! This machine: one file per kind of object that we make on it.

pub mod layout;
