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

/// A TCP port of the host that leads to one of the guest (`-p HOST:GUEST`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortForward {
    /// The host's port, bound on 127.0.0.1.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

impl FromStr for PortForward {
    type Err = ChoiceError;

    /// Reads `HOST:GUEST`, or `PORT` for the same on both sides; port 0 is refused.
    fn from_str(text: &str) -> Result<PortForward, ChoiceError> {
        let error =
            || ChoiceError::new("port", text, "HOST:GUEST, each 1 to 65535, such as 8080:80");
        let (host, guest) = text.split_once(':').unwrap_or((text, text));
        let port = |part: &str| part.parse().ok().filter(|p: &u16| *p > 0).ok_or_else(error);
        Ok(PortForward {
            host: port(host)?,
            guest: port(guest)?,
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
    fn ports_read_pair_and_single_and_refuse_zero() {
        assert_eq!(
            "8080:80".parse(),
            Ok(PortForward {
                host: 8080,
                guest: 80
            })
        );
        assert_eq!(
            "80".parse(),
            Ok(PortForward {
                host: 80,
                guest: 80
            })
        );
        for text in ["0:80", "80:0", "", ":", "70000:1", "a:b"] {
            assert!(text.parse::<PortForward>().is_err(), "{text}");
        }
    }
}
