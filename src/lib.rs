//! banger: one-command development sandboxes on microVMs.
//!
//! Everything is in this library so that tests and benches reach the real code;
//! `main.rs` only calls [`role::run`]. The layers are drawn in
//! `docs/architecture.md`, and `tidy.rs` refuses an import that goes upwards.
//!
//! Reading order: `model` (the words), `plan` (the decisions), `proto` (what
//! crosses a socket), then the effects (`host`, `vmm`, `image`, `workspace`),
//! `store`, and the roles (`daemon`, `helper`, `agent`, `cli`).

#![warn(missing_docs)]

pub mod agent;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod fail_point;
pub mod failure;
pub mod helper;
pub mod host;
pub mod image;
pub mod logging;
pub mod model;
pub mod plan;
pub mod proto;
pub mod role;
pub mod store;
pub mod sys;
pub mod version;
pub mod vmm;
pub mod workspace;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tidy;
