//! Images and kernels: from a catalogue entry to files that a VM can boot.
//!
//! Everything here blocks, reports stages and obeys a [`job::Cancel`]; the daemon calls
//! it from its blocking pool. Nothing here knows of VMs or of the daemon's store: a pull
//! returns what was made, and the names that lead to it are the caller's to keep.
//!
//! Reading order: `catalog` (what can be pulled), `job` (progress and cancel), `program`
//! and `orphans` (running the host's tools), `sources` and `apt` (Debian's archive, as
//! this host reaches it), `kernel` with `vmlinux` and `modules`, `rootfs` with `recipe`
//! and `subids` for images, `ext4` with `tarball`, `tree` and `acl` (what goes into a
//! file system), `store` with `lock` and `manifest` (content-addressed folders,
//! written aside).

pub mod acl;
pub mod apt;
pub mod catalog;
pub mod ext4;
pub mod job;
pub mod kernel;
pub mod lock;
pub mod manifest;
pub mod modules;
pub mod orphans;
pub mod program;
pub mod recipe;
pub mod rootfs;
pub mod sources;
pub mod store;
pub mod subids;
pub mod tarball;
pub mod tree;
pub mod vmlinux;
