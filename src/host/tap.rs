//! A VM's tap: persistent, a port of our bridge, isolated from the other ports, on.
//!
//! It is on before the VMM opens it, or the guest's driver would see its link come up
//! late. Enslaved and isolated before it is on, so that no frame passes in between.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::plan::step::{Fault, FaultKind, Presence};
use crate::sys::tun::{self, FrameHeader};

use super::bridge::{self, Bridge};
use super::fault::fault;
use super::link::{Link, LinkEvents, Links, News};
use super::sysctl;

/// A fork that does not come to its exec for so long is no accident of timing.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the kernel may take to take a tap's name away.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(5);

/// Who may open a tap without privilege. Nobody in particular means anybody who may open
/// /dev/net/tun (drivers/net/tun.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// This user.
    Owner(u32),
    /// The members of this group.
    Group(u32),
}

/// Makes the tap, and our bridge before it, for this user. `mark` says of which
/// installation it is.
pub fn ensure(vm: VmId, bridge: &Bridge<'_>, user: Option<User>, mark: &str) -> Result<(), Fault> {
    let links = Links::open().map_err(|error| fault(attempt(vm), error))?;
    if probe_in(&links, vm, bridge)? == Presence::Present {
        return Ok(());
    }
    let failed = |error: io::Error| fault(attempt(vm), error);
    let master = bridge::ensure(&links, bridge)?;
    if find(&links, vm)?.is_none() {
        let events = LinkEvents::open().map_err(failed)?;
        create(&links, vm, user, mark).map_err(failed)?;
        attach(&links, vm, &master)?;
        wait_until_free(&links, vm, &events).map_err(failed)?;
    } else {
        attach(&links, vm, &master)?;
    }
    match probe_in(&links, vm, bridge)? {
        Presence::Present => Ok(()),
        Presence::Absent | Presence::Different => Err(Fault::new(
            FaultKind::Busy,
            format!("{}: something else changes it", attempt(vm)),
        )),
    }
}

/// Removes the tap.
///
/// The kernel takes the name away at once, tells of it, and then keeps whoever asked
/// until nothing refers to the device any more: 15 to 25 ms (rcu_barrier in
/// netdev_run_todo, Linux 6.18). So a thread asks, and this waits for the news.
pub fn absent(vm: VmId) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(format!("remove tap {}", vm.tap()), error);
    let links = Links::open().map_err(failed)?;
    let Some(link) = find(&links, vm)? else {
        return Ok(());
    };
    let events = LinkEvents::open().map_err(failed)?;
    let (ended, asking) = io::pipe().map_err(failed)?;
    // Opened here: the socket belongs to the network namespace of this thread.
    let asker = Links::open().map_err(failed)?;
    let thread = thread::Builder::new().spawn(move || {
        let asked = asker.delete(link.index);
        drop(asking);
        asked
    });
    let thread = thread.map_err(failed)?;
    while find(&links, vm)?.is_some() {
        match events.wait_or(ended.as_fd(), REMOVAL_DEADLINE) {
            Ok(News::Link) => {}
            Ok(News::Other) => break,
            Err(error) => return Err(failed(error)),
        }
    }
    if find(&links, vm)?.is_none() {
        return Ok(());
    }
    match thread.join() {
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok(())) | Err(_) => Err(failed(Errno::BUSY.into())),
    }
}

/// Present means persistent, on, isolated, IPv6 off, and a port of our bridge.
pub fn probe(vm: VmId, bridge: &Bridge<'_>) -> Result<Presence, Fault> {
    let links = Links::open().map_err(|error| fault(attempt(vm), error))?;
    probe_in(&links, vm, bridge)
}

fn probe_in(links: &Links, vm: VmId, bridge: &Bridge<'_>) -> Result<Presence, Fault> {
    let Some(link) = find(links, vm)? else {
        return Ok(Presence::Absent);
    };
    let master = links.find(bridge.name);
    let master = master.map_err(|error| fault(attempt(vm), error))?;
    let attached = master.is_some_and(|master| link.master == Some(master.index));
    let ready = attached
        && link.persistent
        && link.isolated
        && link.up
        && sysctl::ipv6_is_disabled(&link.name)?
        && bridge::probe(links, bridge)? == Presence::Present;
    Ok(if ready {
        Presence::Present
    } else {
        Presence::Different
    })
}

/// The tap, if it is one: an interface of another kind has no business with our name.
fn find(links: &Links, vm: VmId) -> Result<Option<Link>, Fault> {
    let found = links.find(&vm.tap());
    match found.map_err(|error| fault(attempt(vm), error))? {
        Some(link) if link.kind.as_deref() != Some("tun") => Err(Fault::new(
            FaultKind::Denied,
            format!(
                "{}: an interface of that name exists and is no tap; remove it with `ip link delete {}`",
                attempt(vm),
                link.name
            ),
        )),
        found => Ok(found),
    }
}

fn create(links: &Links, vm: VmId, user: Option<User>, mark: &str) -> io::Result<()> {
    let tap = tun::open(&vm.tap(), FrameHeader::Virtio)?;
    if let Some(link) = links.find(&vm.tap())? {
        links.set_alias(link.index, mark)?;
    }
    match user {
        Some(User::Owner(uid)) => tun::set_owner(&tap, uid)?,
        Some(User::Group(gid)) => tun::set_group(&tap, gid)?,
        None => {}
    }
    // Last: until here a crash takes the tap with it.
    tun::set_persistent(&tap)
}

/// Waits until no process has the tap open, or the VMM would find it busy.
///
/// We have closed it, but a program that another thread started at that moment holds a
/// copy between its fork and its exec. The tap has a carrier for as long.
fn wait_until_free(links: &Links, vm: VmId, events: &LinkEvents) -> io::Result<()> {
    while find_carrier(links, vm)? {
        events.wait(RELEASE_DEADLINE)?;
    }
    Ok(())
}

fn find_carrier(links: &Links, vm: VmId) -> io::Result<bool> {
    Ok(links.find(&vm.tap())?.is_some_and(|link| link.carrier))
}

fn attach(links: &Links, vm: VmId, master: &Link) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(attempt(vm), error);
    let Some(link) = find(links, vm)? else {
        return Err(failed(Errno::NODEV.into()));
    };
    sysctl::disable_ipv6(&link.name)?;
    if link.master != Some(master.index) {
        links.set_master(link.index, master.index).map_err(failed)?;
    }
    links.isolate(link.index).map_err(failed)?;
    links.set_up(link.index).map_err(failed)
}

fn attempt(vm: VmId) -> String {
    format!("add tap {}", vm.tap())
}
