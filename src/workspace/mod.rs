//! A git repository on its way into a guest.
//!
//! ```text
//!  git      how git is run here: a clean environment, no hooks, no prompts
//!  inspect  path -> root, HEAD, branch, the files that go along; refuses the rest
//!  pack     those files and a shallow .git -> a tar stream
//! ```
//!
//! The way back is a patch that git makes in the guest (`cli/workspace_export.rs`):
//! nothing here ever runs git in a tree that a guest wrote.

pub mod git;
pub mod inspect;
pub mod pack;

/// The reference in the guest's repository that remembers what it started from.
pub const BASE_REF: &str = "refs/banger/base";

/// Commits of history that go along.
pub const DEPTH: u32 = 10;

#[cfg(test)]
mod samples;
