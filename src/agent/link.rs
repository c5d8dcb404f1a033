//! The few rtnetlink messages (rtnetlink(7)) that set up a guest's one interface: no
//! tool of the image is needed. Numbers from linux/rtnetlink.h, linux/if_link.h and
//! linux/if_addr.h.

use std::io;
use std::net::Ipv4Addr;

use crate::sys::netlink::{Attributes, Message, NLM_F_CREATE, Netlink, attribute, number};

const NLM_F_REPLACE: u16 = 0x100;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// `sizeof(struct ifinfomsg)`, before an interface's attributes.
const IFINFO: usize = 16;

/// The interfaces of this guest.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Opens a socket to them.
    ///
    /// # Errors
    /// The kernel has no rtnetlink.
    pub fn open() -> io::Result<Links> {
        let netlink = Netlink::open(None)?;
        Ok(Links { netlink })
    }

    /// The number of the interface with this hardware address.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub fn find_by_mac(&self, mac: [u8; 6]) -> io::Result<Option<u32>> {
        let links = self.netlink.dump(&link_message(RTM_GETLINK, 0, 0))?;
        Ok(links.iter().find_map(|link| index_with_mac(link, mac)))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_up(&self, index: u32) -> io::Result<()> {
        let message = link_message(RTM_NEWLINK, index, IFF_UP);
        self.netlink.call(&message).map(drop)
    }

    /// Gives an interface an address, replacing the same one.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut fixed = vec![AF_INET, prefix, 0, 0];
        fixed.extend(index.to_ne_bytes());
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let broadcast = Ipv4Addr::from(u32::from(address) | hosts);
        let mut attributes = Attributes::new()
            .bytes(IFA_LOCAL, &address.octets())
            .bytes(IFA_ADDRESS, &address.octets());
        // A network of one or two addresses has none for all.
        if prefix < 31 {
            attributes = attributes.bytes(IFA_BROADCAST, &broadcast.octets());
        }
        self.change(RTM_NEWADDR, fixed, attributes)
    }

    /// Sends what has no route of its own through the gateway.
    ///
    /// # Errors
    /// The gateway is in no network of the interface.
    pub fn set_default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let (table, kind) = (RT_TABLE_MAIN, RTN_UNICAST);
        let fixed = vec![AF_INET, 0, 0, 0, table, RTPROT_STATIC, 0, kind, 0, 0, 0, 0];
        let attributes = Attributes::new()
            .bytes(RTA_GATEWAY, &gateway.octets())
            .u32(RTA_OIF, index);
        self.change(RTM_NEWROUTE, fixed, attributes)
    }

    fn change(&self, kind: u16, fixed: Vec<u8>, attributes: Attributes) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let message = Message {
            kind,
            flags,
            fixed,
            attributes,
        };
        self.netlink.call(&message).map(drop)
    }
}

/// `struct ifinfomsg` with these flags to be set.
fn link_message(kind: u16, index: u32, flags: u32) -> Message {
    let mut fixed = vec![0; 4];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    Message {
        kind,
        flags: 0,
        fixed,
        attributes: Attributes::new(),
    }
}

fn index_with_mac(link: &[u8], mac: [u8; 6]) -> Option<u32> {
    let found = attribute(link.get(IFINFO..)?, IFLA_ADDRESS)?;
    (found == mac).then(|| number(&link[4..8])).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_of_this_machine_is_found_by_its_address_of_zeros() {
        let links = Links::open().unwrap();
        assert_eq!(links.find_by_mac([0; 6]).unwrap(), Some(1));
        assert_eq!(links.find_by_mac([1, 2, 3, 4, 5, 6]).unwrap(), None);
    }

    #[test]
    fn a_change_of_an_interface_that_is_not_there_is_an_error() {
        let links = Links::open().unwrap();
        assert!(links.set_up(0x7fff_fff0).is_err());
    }
}
