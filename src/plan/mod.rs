//! Decisions: what to do next, never how, and never doing it.
//!
//! No I/O, no clock, no randomness in this room: functions take facts and give
//! decisions, so the simulation can drive them through every schedule.

pub mod step;
