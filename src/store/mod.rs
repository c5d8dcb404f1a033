//! What survives the daemon: VMs, images and kernels, in one redb file.
//!
//! One owner (the daemon's actor), one durable transaction per [`Store::save`]. The
//! lock on the file is also what keeps a second daemon away. Values are JSON of our
//! own, so that an upgrade of the database crate cannot misread them.
//!
//! Reading order: [`open`] (the file and its tables), [`rows`] (what a row looks like,
//! frozen), [`steps`] (the steps inside a row), [`migrate`] (versions of the whole); for
//! people: [`copy`] (the store, looked at), [`audit`] (what is wrong in it), [`export`].

pub mod audit;
pub mod copy;
pub mod export;
#[cfg(test)]
mod fixture;
pub mod migrate;
pub mod open;
pub mod rows;
pub mod steps;

pub use open::Store;
