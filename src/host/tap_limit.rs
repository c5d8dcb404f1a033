//! A tap's elements in the two sets that limit how fast its frames pass.
//!
//! Each element carries a limit of its own (`NFTA_SET_ELEM_EXPR`, Linux 5.7): the rule
//! that looks the tap up drops a frame exactly when that limit is exceeded. So a VM's
//! limit comes and goes in constant time like the rest of its rules, and needs no queueing
//! discipline: this is what every kernel with nf_tables has, and the tap's own queue
//! could only ever limit one of the two directions.
//!
//! Frames beyond the limit are dropped and TCP slows down. nf_tables lets a second's
//! worth pass at once, and the burst below on top.

use std::io;
use std::thread;

use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Presence};
use crate::sys::netlink::Attributes;

use super::bridge::Bridge;
use super::fault::fault;
use super::link::is;
use super::rules::{FROM_LIMITED, TO_LIMITED};
use super::tables::{Element, Family, Tables, interface_key};

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;
const NFT_LIMIT_PKT_BYTES: u32 = 1;
/// Matches what is over the limit.
const NFT_LIMIT_F_INV: u32 = 1;
/// The rate is per second.
const SECOND: u64 = 1;
/// Four of the largest frames that segmentation offload makes (64 KiB): with less, a
/// slow limit would never let one pass.
const BURST: u32 = 256 << 10;

/// A limit as it must be.
#[derive(Debug, Clone, Copy)]
pub struct NetLimit<'a> {
    /// Whose.
    pub vm: VmId,
    /// Bytes per second, each way.
    pub bandwidth: Bytes,
    /// Our bridge, whose tables hold the elements.
    pub bridge: Bridge<'a>,
}

/// Sets the limit, after the tables if those are missing or of another text.
pub fn ensure(tables: &Tables, wanted: &NetLimit<'_>) -> Result<(), Fault> {
    tables.ensure(&wanted.bridge)?;
    if examine(tables, wanted)? == Presence::Present {
        return Ok(());
    }
    let found = found(tables, wanted).map_err(failed("limit", wanted.vm))?;
    match tables.change(&found, &elements(wanted)) {
        // The tables are there: it is the expression that the kernel does not find.
        Err(error) if is(&error, Errno::NOENT) => Err(unknown(wanted.vm)),
        other => other.map_err(failed("limit", wanted.vm)),
    }
}

/// Removes the limit; missing tables hold none.
pub fn absent(tables: &Tables, unwanted: &NetLimit<'_>) -> Result<(), Fault> {
    let failed = failed("stop limiting", unwanted.vm);
    let found = found(tables, unwanted).map_err(&failed)?;
    match found.is_empty() {
        true => Ok(()),
        false => tables.change(&found, &[]).map_err(failed),
    }
}

/// Present means: this limit, in both directions, under rules of this text.
pub fn probe(tables: &Tables, wanted: &NetLimit<'_>) -> Result<Presence, Fault> {
    let in_force = tables.in_force(&wanted.bridge);
    let in_force = in_force.map_err(failed("examine", wanted.vm))?;
    Ok(match examine(tables, wanted)? {
        Presence::Present if !in_force => Presence::Different,
        seen => seen,
    })
}

fn examine(tables: &Tables, wanted: &NetLimit<'_>) -> Result<Presence, Fault> {
    let found = found(tables, wanted).map_err(failed("examine", wanted.vm))?;
    let wanted = elements(wanted);
    let right = found.len() == wanted.len()
        && found
            .iter()
            .zip(&wanted)
            .all(|(one, like)| one.says_as(like));
    Ok(match right {
        true => Presence::Present,
        false if found.is_empty() => Presence::Absent,
        false => Presence::Different,
    })
}

fn found(tables: &Tables, wanted: &NetLimit<'_>) -> io::Result<Vec<Element>> {
    let mut found = Vec::new();
    for element in elements(wanted) {
        found.extend(tables.find(&element)?);
    }
    Ok(found)
}

fn elements(wanted: &NetLimit<'_>) -> [Element; 2] {
    [FROM_LIMITED, TO_LIMITED].map(|set| Element {
        comment: format!("{} per second", wanted.bandwidth),
        beyond: Some(wanted.bandwidth),
        ..Element::of(Family::Bridge, set, interface_key(&wanted.vm.tap()))
    })
}

/// What an element carries that is found only beyond so many bytes per second.
pub fn expression(rate: Bytes) -> Attributes {
    let data = Attributes::new()
        .bytes(NFTA_LIMIT_RATE, &rate.0.to_be_bytes())
        .bytes(NFTA_LIMIT_UNIT, &SECOND.to_be_bytes())
        .bytes(NFTA_LIMIT_BURST, &BURST.to_be_bytes())
        .bytes(NFTA_LIMIT_TYPE, &NFT_LIMIT_PKT_BYTES.to_be_bytes())
        .bytes(NFTA_LIMIT_FLAGS, &NFT_LIMIT_F_INV.to_be_bytes());
    Attributes::new()
        .text(NFTA_EXPR_NAME, "limit")
        .nested(NFTA_EXPR_DATA, data)
}

/// Whether this kernel can limit a tap. One that we may not ask (the root helper may) is
/// taken at its best: a start that cannot says so.
///
/// # Errors
/// It cannot, for this reason.
pub fn fitness(bridge: &str) -> Result<(), String> {
    let Ok(tables) = Tables::open(bridge) else {
        return Ok(());
    };
    let tried = tables.try_out(expression(Bytes(1)));
    // Closing waits until the kernel has freed what was tried: elsewhere.
    thread::spawn(move || drop(tables));
    match tried {
        Err(error) if is(&error, Errno::NOENT) => Err(UNKNOWN.to_owned()),
        _ => Ok(()),
    }
}

/// Why a kernel cannot.
const UNKNOWN: &str = "this kernel has no limits in nf_tables (nft_limit)";

fn failed(verb: &'static str, vm: VmId) -> impl Fn(io::Error) -> Fault {
    move |error| fault(format!("{verb} the traffic of tap {}", vm.tap()), error)
}

fn unknown(vm: VmId) -> Fault {
    let what = format!("limit the traffic of tap {}: {UNKNOWN}", vm.tap());
    let remedy = "Load it with `modprobe nft_limit`, or leave `--net-bandwidth` out.";
    Fault::new(FaultKind::Missing, what).remedy(Some(remedy.to_owned()))
}
