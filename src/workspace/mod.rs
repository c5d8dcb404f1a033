//! A git repository on its way into a guest.
//!
//! ```text
//!  git      how git is run here: a clean environment, no hooks, no prompts
//!  inspect  path -> root, HEAD, branch, the files that go along; refuses the rest
//!  depth    how much of the history goes along
//!  sent     those files as a tree, for the way back; the index that the guest gets
//!  pack     those files and a shallow .git -> a tar stream
//! ```
//!
//! The way back is a patch that git makes in the guest (`cli/workspace_export.rs`):
//! nothing here ever runs git in a tree that a guest wrote.

pub mod depth;
pub mod git;
pub mod inspect;
pub mod pack;
pub mod sent;

/// The reference in the guest's repository that remembers the commit it started from.
pub const BASE_REF: &str = "refs/banger/base";

/// The one that remembers the files it started from, uncommitted changes included.
pub const SENT_REF: &str = "refs/banger/sent";

#[cfg(test)]
mod samples;
#[cfg(test)]
pub use samples::{Repository, round_trip};
