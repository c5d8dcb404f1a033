//! How a VM is connected: modes, addresses, published ports.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::ids::VmId;
use super::vm::ChoiceError;

/// What the user asked for with `--net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetRequest {
    /// A tap where we may make one, else the user-mode network, else none.
    Auto,
    /// A tap, with network address translation to the outside.
    Nat,
    /// QEMU's user-mode network: outbound, and published ports.
    User,
    /// No network device at all.
    None,
}

/// What a VM has, once decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetMode {
    /// A tap on our bridge; the guest reaches only the host's resolver.
    Isolated,
    /// A tap on our bridge; the guest reaches the outside through the host.
    Nat,
    /// QEMU's user-mode network.
    User,
    /// No network device at all.
    None,
}

impl NetMode {
    /// Whether this mode needs a tap and a leased address.
    pub fn has_tap(self) -> bool {
        matches!(self, NetMode::Isolated | NetMode::Nat)
    }
}

impl fmt::Display for NetRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NetRequest::Auto => "auto",
            NetRequest::Nat => "nat",
            NetRequest::User => "user",
            NetRequest::None => "none",
        })
    }
}

impl FromStr for NetRequest {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<NetRequest, ChoiceError> {
        match text {
            "auto" => Ok(NetRequest::Auto),
            "nat" => Ok(NetRequest::Nat),
            "user" => Ok(NetRequest::User),
            "none" => Ok(NetRequest::None),
            _ => Err(ChoiceError::new("network", text, "auto, nat, user, none")),
        }
    }
}

impl fmt::Display for NetMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NetMode::Isolated => "isolated",
            NetMode::Nat => "nat",
            NetMode::User => "user",
            NetMode::None => "none",
        })
    }
}

impl FromStr for NetMode {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<NetMode, ChoiceError> {
        match text {
            "isolated" => Ok(NetMode::Isolated),
            "nat" => Ok(NetMode::Nat),
            "user" => Ok(NetMode::User),
            "none" => Ok(NetMode::None),
            _ => Err(ChoiceError::new(
                "network mode",
                text,
                "isolated, nat, user, none",
            )),
        }
    }
}

/// A 48-bit Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address derived from a VM's identity: locally administered, unicast
    /// (IEEE 802, second-least bit of the first byte set), prefix `06:00`.
    pub fn of(vm: VmId) -> Mac {
        let [a, b, c, d] = vm.bits().to_be_bytes();
        Mac([0x06, 0x00, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Mac, ChoiceError> {
        let error = || ChoiceError::new("MAC address", text, "six pairs of hexadecimal digits");
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Mac(bytes))
    }
}

/// An IPv4 network: its address with the host bits cleared, and the prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The prefix length, 8 to 30 bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network address.
    pub fn network(self) -> Ipv4Addr {
        self.address
    }

    /// The host's own address on the bridge: the first of the network.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + 1)
    }

    /// The guest address with this index, from 0; `None` past the last usable one.
    pub fn guest(self, index: u32) -> Option<Ipv4Addr> {
        let guests = (1_u32 << (32 - self.prefix)) - 3;
        (index < guests).then(|| Ipv4Addr::from(u32::from(self.address) + 2 + index))
    }

    /// Whether an address lies in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - self.prefix);
        u32::from(address) & mask == u32::from(self.address)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Subnet, ChoiceError> {
        let error = || {
            ChoiceError::new(
                "subnet",
                text,
                "an IPv4 network such as 172.30.0.0/16, prefix 8 to 30",
            )
        };
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if !(8..=30).contains(&prefix) || u32::from(address) & !(u32::MAX << (32 - prefix)) != 0 {
            return Err(error());
        }
        Ok(Subnet { address, prefix })
    }
}

/// What travels to a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Protocol, ChoiceError> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(ChoiceError::new("protocol", text, "tcp, udp")),
        }
    }
}

/// A port of the host that leads to one of the guest (`-p PORT`, `-p [ADDRESS:]HOST:GUEST[/udp]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortForward {
    /// The host's address; 0.0.0.0 stands for every one that it has.
    pub address: Ipv4Addr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// What is led there.
    pub protocol: Protocol,
}

impl PortForward {
    /// How many a VM may have: a step with all of them fits a line to the root helper.
    pub const MAX: usize = 32;

    /// A TCP port of 127.0.0.1, as `HOST:GUEST` means it.
    pub fn local(host: u16, guest: u16) -> PortForward {
        PortForward {
            address: Ipv4Addr::LOCALHOST,
            host,
            guest,
            protocol: Protocol::Tcp,
        }
    }

    /// Whether both want the same port of the host.
    pub fn collides(self, other: PortForward) -> bool {
        let everywhere = self.address.is_unspecified() || other.address.is_unspecified();
        (self.host, self.protocol) == (other.host, other.protocol)
            && (everywhere || self.address == other.address)
    }

    /// Whether other machines can reach it.
    pub fn faces_outside(self) -> bool {
        !self.address.is_loopback()
    }

    /// Whether a program of this host reaches it at 127.0.0.1 or another loopback address.
    pub fn faces_loopback(self) -> bool {
        self.address.is_loopback() || self.address.is_unspecified()
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address != Ipv4Addr::LOCALHOST {
            write!(f, "{}:", self.address)?;
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => write!(f, "/{}", self.protocol),
        }
    }
}

impl FromStr for PortForward {
    type Err = ChoiceError;

    /// Reads `[ADDRESS:]HOST:GUEST[/tcp|/udp]`, or `PORT` for the same on both sides; the
    /// address is 127.0.0.1 where none is said, port 0 is refused.
    fn from_str(text: &str) -> Result<PortForward, ChoiceError> {
        let error = || {
            let form = "PORT or [ADDRESS:]HOST:GUEST[/tcp|/udp], ports 1 to 65535, such as 8080:80";
            ChoiceError::new("port", text, form)
        };
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, protocol)) => (ports, protocol.parse().map_err(|_| error())?),
            None => (text, Protocol::Tcp),
        };
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, guest) = match parts[..] {
            [port] => ("127.0.0.1", port, port),
            [host, guest] => ("127.0.0.1", host, guest),
            [address, host, guest] => (address, host, guest),
            _ => return Err(error()),
        };
        let port = |part: &str| part.parse().ok().filter(|p: &u16| *p > 0).ok_or_else(error);
        Ok(PortForward {
            address: address.parse().map_err(|_| error())?,
            host: port(host)?,
            guest: port(guest)?,
            protocol,
        })
    }
}

/// The address that a VM holds while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address on our bridge.
    pub address: Ipv4Addr,
    /// The network it lies in.
    pub subnet: Subnet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_is_local_unicast_and_round_trips() {
        let mac = Mac::of(VmId::from_bits(0xdead_beef));
        assert_eq!(mac.to_string(), "06:00:de:ad:be:ef");
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_eq!("06:00:de:ad:be:ef".parse(), Ok(mac));
        assert!("06:00:de:ad:be".parse::<Mac>().is_err());
    }

    #[test]
    fn subnet_hands_out_all_but_network_gateway_and_broadcast() {
        let subnet: Subnet = "172.30.0.0/29".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(172, 30, 0, 1));
        assert_eq!(subnet.guest(0), Some(Ipv4Addr::new(172, 30, 0, 2)));
        assert_eq!(subnet.guest(4), Some(Ipv4Addr::new(172, 30, 0, 6)));
        assert_eq!(subnet.guest(5), None);
    }

    #[test]
    fn subnet_with_host_bits_or_odd_prefix_is_refused() {
        for text in [
            "172.30.0.1/24",
            "10.0.0.0/7",
            "10.0.0.0/31",
            "10.0.0.0",
            "x/24",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn refused_port_names_every_form_that_is_taken() {
        let refused = "http".parse::<PortForward>().unwrap_err().to_string();
        assert!(
            refused.contains("PORT or [ADDRESS:]HOST:GUEST"),
            "{refused}"
        );
    }

    #[test]
    fn ports_read_back_as_they_are_shown() {
        for (text, shown) in [
            ("8080:80", "8080:80"),
            ("80", "80:80"),
            ("127.0.0.1:8080:80/tcp", "8080:80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
            ("192.0.2.7:53:5353/udp", "192.0.2.7:53:5353/udp"),
            ("53/udp", "53:53/udp"),
        ] {
            let port: PortForward = text.parse().unwrap();
            assert_eq!(port.to_string(), shown);
            assert_eq!(shown.parse(), Ok(port));
        }
        for text in [
            "0:80",
            "80:0",
            "",
            ":",
            "70000:1",
            "a:b",
            "80/sctp",
            "80/",
            "x:80:80",
            "::1:80:80",
            "1:2:3",
        ] {
            assert!(text.parse::<PortForward>().is_err(), "{text}");
        }
    }

    #[test]
    fn ports_collide_on_one_address_or_where_one_wants_them_all() {
        let collide = |a: &str, b: &str| {
            let [a, b]: [PortForward; 2] = [a.parse().unwrap(), b.parse().unwrap()];
            assert_eq!(a.collides(b), b.collides(a));
            a.collides(b)
        };
        assert!(collide("8080:80", "8080:81"));
        assert!(collide("8080:80", "0.0.0.0:8080:80"));
        assert!(!collide("8080:80", "8081:80"));
        assert!(!collide("8080:80", "8080:80/udp"));
        assert!(!collide("8080:80", "192.0.2.7:8080:80"));
    }
}
