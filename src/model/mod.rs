//! The words of the project: identifiers, specifications, phases, units.
//!
//! Imports nothing of ours and does no I/O; text forms are `Display` and
//! `FromStr`, serialisation happens at the borders. One word per concept:
//!
//! | word | meaning |
//! |---|---|
//! | VM | one sandbox: its record, its disks and, while it runs, its VMM |
//! | VMM | the program that runs a guest: Firecracker or QEMU |
//! | guest, host | inside the VM, outside of it |
//! | agent | our binary inside the guest |
//! | image | a root file system that VMs start from; content never changes |
//! | kernel | a vmlinux, the modules of its initrd and its module disk |
//! | base | the image's file, shared and read-only |
//! | upper | the sparse disk that takes one VM's changes to its root |
//! | work disk | the sparse disk at /root; survives `vm reset` |
//! | stop | the user's wish that a VM ends |
//! | absent | the effect: the object does not exist any more |
//! | stuck | `absent` keeps failing; shown, never dropped |
//! | lease | an address and a CID held by one VM |
//! | stage | a part of a long operation, shown live |
//!
//! Reading order: [`ids`], [`units`], [`net`], [`limits`], [`vm`], [`image`], [`nearest`],
//! [`harmless`].

pub mod harmless;
pub mod ids;
pub mod image;
pub mod limits;
pub mod nearest;
pub mod net;
pub mod template;
pub mod units;
pub mod vm;
