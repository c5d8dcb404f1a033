//! Deterministic simulation: the real mind and operations in a modelled world.
//!
//! Real: `plan::mind`, `operation`, `admit`, `lease`, and the conversion of rows.
//! Modelled: the host, the disk under the store, the clock, the clients.
//!
//! A [`run::Run`] offers its legal [`moves::Move`]s; the first is what happens when
//! nothing goes wrong, the others are faults and other orders. Two explorers choose:
//!
//! * [`explore`]: every schedule of a short story with at most two interruptions
//!   (`BANGER_SIM_DEPTH=n` changes that for the longest);
//! * [`swarm`]: long stories with several VMs and clients, by seed, each with a random
//!   subset of the faults. `BANGER_SIM_SEED=n` runs that one seed only,
//!   `BANGER_SIM_RUNS=n` so many of them.
//!
//! What must hold is in [`truth`]; that it can fail is proved by the planted bugs in
//! [`bugs`]. A failure prints the seed, if any, and the moves that led to it.
//!
//! Reading order: [`world`], [`client`], [`run`], [`perform`], [`jobs`], [`moves`],
//! [`truth`], then the explorers.

mod bugs;
mod client;
mod explore;
mod history;
mod jobs;
mod moves;
mod perform;
mod run;
mod swarm;
mod truth;
mod world;
