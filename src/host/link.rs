//! Interfaces, addresses and routes, by RTM_* messages (rtnetlink(7)).
//!
//! One method per question or change; what must be, and in which order, is decided in
//! [`super::bridge`] and [`super::tap`]. Numbers from linux/if_link.h,
//! linux/rtnetlink.h and linux/if_addr.h.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::process::ready;
use crate::sys::netlink::{
    Attributes, Message, NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, number, text,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;

const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_CARRIER: u16 = 33;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

/// The group that hears of interfaces.
const RTMGRP_LINK: u32 = 1;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;

/// `sizeof(struct ifinfomsg)`, before an interface's attributes.
const IFINFO: usize = 16;
/// `sizeof(struct ifaddrmsg)`, before an address's attributes.
const IFADDR: usize = 8;
/// `sizeof(struct rtmsg)`, before a route's attributes.
const RTMSG: usize = 12;

/// An interface, as far as we look at one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether packets pass: a tap is so once a process has it open, a bridge once one
    /// of its ports is.
    pub running: bool,
    /// Whether a cable is in, so to speak: of a tap, whether a process has it open. The
    /// kernel acts on it, and sets `running`, a moment later.
    pub carrier: bool,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// `bridge`, `tun`, `veth`; physical devices have none.
    pub kind: Option<String>,
    /// The text that `ip link` shows as its alias.
    pub alias: Option<String>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// A bridge port: it may not talk to other isolated ports.
    pub isolated: bool,
    /// A tap: it outlives its descriptors.
    pub persistent: bool,
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The network's address; 0.0.0.0 for the default route.
    pub destination: Ipv4Addr,
    /// Its prefix length; 0 for the default route.
    pub prefix: u8,
    /// The interface it leaves by, unless it has several.
    pub interface: Option<u32>,
    /// Whether it leads on to other networks, by a gateway, and not only to whoever is
    /// attached to that interface.
    pub by_gateway: bool,
}

/// The interfaces of the network namespace that the opening thread is in.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Opens a socket to them.
    pub fn open() -> io::Result<Links> {
        Ok(Links {
            netlink: Netlink::open(None)?,
        })
    }

    /// The interface of this name.
    pub fn find(&self, name: &str) -> io::Result<Option<Link>> {
        let asked = Attributes::new().text(IFLA_IFNAME, name);
        self.get(link_message(RTM_GETLINK, 0, asked))
    }

    /// The interface of this number.
    pub fn find_index(&self, index: u32) -> io::Result<Option<Link>> {
        self.get(link_message(RTM_GETLINK, index, Attributes::new()))
    }

    /// Every interface.
    pub fn all(&self) -> io::Result<Vec<Link>> {
        let message = link_message(RTM_GETLINK, 0, Attributes::new());
        let answers = self.netlink.dump(&message)?;
        Ok(answers.iter().filter_map(|one| parse_link(one)).collect())
    }

    fn get(&self, message: Message) -> io::Result<Option<Link>> {
        match self.netlink.call(&message) {
            Ok(answers) => Ok(answers.first().and_then(|answer| parse_link(answer))),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a bridge with this Ethernet address, down, that does not inspect
    /// multicast. `EEXIST` if the name is taken.
    pub fn create_bridge(&self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let data = Attributes::new().u8(IFLA_BR_MCAST_SNOOPING, 0);
        let info = Attributes::new()
            .text(IFLA_INFO_KIND, "bridge")
            .nested(IFLA_INFO_DATA, data);
        let attributes = Attributes::new()
            .text(IFLA_IFNAME, name)
            .bytes(IFLA_ADDRESS, &mac)
            .nested(IFLA_LINKINFO, info);
        let mut message = link_message(RTM_NEWLINK, 0, attributes);
        message.flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(&message)
    }

    /// Sets the text that `ip link` shows.
    pub fn set_alias(&self, index: u32, alias: &str) -> io::Result<()> {
        let attributes = Attributes::new().bytes(IFLA_IFALIAS, alias.as_bytes());
        self.change(&link_message(RTM_SETLINK, index, attributes))
    }

    /// Makes an interface a port of a bridge.
    pub fn set_master(&self, index: u32, bridge: u32) -> io::Result<()> {
        let attributes = Attributes::new().u32(IFLA_MASTER, bridge);
        self.change(&link_message(RTM_SETLINK, index, attributes))
    }

    /// Forbids a bridge port to talk to other such ports (Linux 4.18).
    pub fn isolate(&self, index: u32) -> io::Result<()> {
        let port = Attributes::new().u8(IFLA_BRPORT_ISOLATED, 1);
        let attributes = Attributes::new().nested(IFLA_PROTINFO, port);
        let mut message = link_message(RTM_SETLINK, index, attributes);
        message.fixed[0] = AF_BRIDGE;
        self.change(&message)
    }

    /// Switches an interface on.
    pub fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = link_message(RTM_SETLINK, index, Attributes::new());
        message.fixed[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        message.fixed[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
        self.change(&message)
    }

    /// Removes an interface; one that is gone already is no error.
    pub fn delete(&self, index: u32) -> io::Result<()> {
        match self.change(&link_message(RTM_DELLINK, index, Attributes::new())) {
            Err(error) if is(&error, Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    /// An interface's IPv4 addresses with their prefix lengths.
    pub fn addresses(&self, index: u32) -> io::Result<Vec<(Ipv4Addr, u8)>> {
        let answers = self.netlink.dump(&address_message(RTM_GETADDR, 0, 0))?;
        let all = answers.iter().filter_map(|answer| {
            let on = number(answer.get(4..8)?)?;
            let address = address(attribute(answer.get(IFADDR..)?, IFA_LOCAL)?)?;
            (on == index).then_some((address, *answer.get(1)?))
        });
        Ok(all.collect())
    }

    /// Gives an interface an address; one that it has already is no error.
    pub fn add_address(&self, index: u32, own: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let broadcast = u32::from(own) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let mut message = address_message(RTM_NEWADDR, index, prefix);
        message.flags = NLM_F_CREATE | NLM_F_EXCL;
        message.attributes = Attributes::new()
            .bytes(IFA_LOCAL, &own.octets())
            .bytes(IFA_BROADCAST, &broadcast.to_be_bytes());
        match self.change(&message) {
            Err(error) if is(&error, Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// The IPv4 routes of the main table that lead somewhere.
    pub fn routes(&self) -> io::Result<Vec<Route>> {
        let mut fixed = vec![0; RTMSG];
        fixed[0] = AF_INET;
        let message = Message {
            kind: RTM_GETROUTE,
            flags: 0,
            fixed,
            attributes: Attributes::new(),
        };
        let answers = self.netlink.dump(&message)?;
        Ok(answers.iter().filter_map(|a| parse_route(a)).collect())
    }

    fn change(&self, message: &Message) -> io::Result<()> {
        self.netlink.call(message).map(drop)
    }
}

/// What [`LinkEvents::wait_or`] was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// An interface changed.
    Link,
    /// The other descriptor has something to tell.
    Other,
}

/// News of every change of an interface in this network namespace.
#[derive(Debug)]
pub struct LinkEvents {
    netlink: Netlink,
}

impl LinkEvents {
    /// Begins to listen; what happens from now on is not missed.
    pub fn open() -> io::Result<LinkEvents> {
        let netlink = Netlink::open(None)?;
        netlink.join(RTMGRP_LINK)?;
        Ok(LinkEvents { netlink })
    }

    /// Waits for the next change; `ETIMEDOUT` after the deadline.
    pub fn wait(&self, deadline: Duration) -> io::Result<()> {
        self.netlink.wait(deadline)
    }

    /// Waits for the next change or until `other` is readable or closed, which is told
    /// only where there is no change; `ETIMEDOUT` after the deadline.
    pub fn wait_or(&self, other: BorrowedFd<'_>, deadline: Duration) -> io::Result<News> {
        match ready(&[self.netlink.as_fd(), other], deadline)? {
            Some(0) => self.wait(deadline).map(|()| News::Link),
            Some(_) => Ok(News::Other),
            None => Err(Errno::TIMEDOUT.into()),
        }
    }
}

/// Whether an error is this one of the kernel's.
pub fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn link_message(kind: u16, index: u32, attributes: Attributes) -> Message {
    let mut fixed = vec![0; IFINFO];
    fixed[0] = AF_UNSPEC;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    Message {
        kind,
        flags: 0,
        fixed,
        attributes,
    }
}

fn address_message(kind: u16, index: u32, prefix: u8) -> Message {
    let mut fixed = vec![AF_INET, prefix, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    Message {
        kind,
        flags: 0,
        fixed,
        attributes: Attributes::new(),
    }
}

fn parse_link(answer: &[u8]) -> Option<Link> {
    let all = answer.get(IFINFO..)?;
    let info = attribute(all, IFLA_LINKINFO).unwrap_or(&[]);
    let inner = |group: u16, kind: u16| {
        let flag = attribute(attribute(info, group)?, kind)?;
        flag.first().copied()
    };
    let flags = number(answer.get(8..12)?)?;
    Some(Link {
        index: number(answer.get(4..8)?)?,
        name: attribute(all, IFLA_IFNAME).map(text)?,
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        carrier: attribute(all, IFLA_CARRIER) == Some(&[1]),
        master: attribute(all, IFLA_MASTER).and_then(number),
        kind: attribute(info, IFLA_INFO_KIND).map(text),
        alias: attribute(all, IFLA_IFALIAS).map(text),
        mac: attribute(all, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        isolated: inner(IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_ISOLATED) == Some(1),
        persistent: inner(IFLA_INFO_DATA, IFLA_TUN_PERSIST) == Some(1),
    })
}

fn parse_route(answer: &[u8]) -> Option<Route> {
    let all = answer.get(RTMSG..)?;
    let leads_somewhere = answer[4] == RT_TABLE_MAIN && answer[7] == RTN_UNICAST;
    leads_somewhere.then_some(Route {
        destination: attribute(all, RTA_DST)
            .and_then(address)
            .unwrap_or(Ipv4Addr::UNSPECIFIED),
        prefix: answer[1],
        interface: attribute(all, RTA_OIF).and_then(number),
        by_gateway: [RTA_GATEWAY, RTA_VIA]
            .iter()
            .any(|kind| attribute(all, *kind).is_some()),
    })
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_by_number() {
        let links = Links::open().unwrap();
        let lo = links.find("lo").unwrap().unwrap();
        assert_eq!(links.find_index(lo.index).unwrap(), Some(lo));
    }

    #[test]
    fn an_interface_that_does_not_exist_is_none_and_no_error() {
        assert_eq!(Links::open().unwrap().find("bgr-nosuch").unwrap(), None);
    }
}
