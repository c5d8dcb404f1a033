//! Named places at which a test can interrupt this program.
//!
//! Compiled only with the cargo feature `fail-points`, which is never a default one:
//! otherwise [`hit`] is nothing, and `scripts/static.sh` proves that a release knows no
//! fail-point. What a place does is said in a file that `BANGER_FAIL_POINT` names; see
//! `armed`.
//!
//! | place | where |
//! |---|---|
//! | `STEP.ensure.before`, `.after`, `STEP.absent.before`, `.after` | `daemon/hands.rs`; `ready` in `daemon/shell.rs` |
//! | `save.before`, `save.after` | `daemon/actor.rs`, around each transaction |
//! | `pull.downloaded`, `pull.built` | `image/kernel.rs`, `image/rootfs.rs` |
//! | `keep.before`, `keep.after` | `image/store.rs`, around the rename |

#[cfg(feature = "fail-points")]
mod armed;

#[cfg(feature = "fail-points")]
pub use armed::hit;

/// Whether this program has fail-points.
pub const ARMED: bool = cfg!(feature = "fail-points");

/// Does what a test wants to happen at this place: nothing in a release.
///
/// # Errors
/// The one that the test asked for.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn hit(_place: &str) -> std::io::Result<()> {
    Ok(())
}
