//! What the store knows of an image and of a kernel.

use super::ids::{ContentId, ImageName, KernelName};
use super::units::Bytes;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name users type.
    pub name: ImageName,
    /// Its content, the name of its folder.
    pub content: ContentId,
    /// Virtual size of the root file system.
    pub size: Bytes,
    /// Bytes it takes on the host's disk.
    pub allocated: Bytes,
    /// Where it came from, for people: `recipe debian-minimal (bookworm)`.
    pub source: String,
    /// Seconds since the epoch.
    pub created_at: u64,
}

/// A kernel in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The name users type.
    pub name: KernelName,
    /// Its content, the name of its folder.
    pub content: ContentId,
    /// What `uname -r` prints in a guest.
    pub release: String,
    /// Where it came from, for people: package and version.
    pub source: String,
    /// Bytes it takes on the host's disk.
    pub allocated: Bytes,
    /// Seconds since the epoch.
    pub created_at: u64,
}
