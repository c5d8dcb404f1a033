//! Decisions: what to do next, never how, and never doing it.
//!
//! No I/O, no clock, no randomness in this room: functions take facts and give
//! decisions, so the simulation can drive them through every schedule.
//!
//! Reading order: [`step`] (the objects of one VM), [`operation`] (one way up, one
//! way down), [`record`] (what is durable), [`make`] (plans out of specifications),
//! [`event`] and [`request`] (what the mind hears and says), [`mind`] (the decisions).

pub mod admit;
pub mod boot_args;
pub mod check;
pub mod event;
pub mod facts;
pub mod lease;
pub mod make;
pub mod mind;
pub mod names;
pub mod operation;
pub(crate) mod planted;
pub mod record;
pub mod request;
pub mod retry;
pub mod step;
pub mod store_level;
