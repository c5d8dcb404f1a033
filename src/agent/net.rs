//! Brings the guest's network up from inside: loopback, the one interface, its
//! address and default route, and the resolvers.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use super::config::write_file;
use super::during;
use super::link::Links;
use super::record::Journal;
use crate::failure::Failure;
use crate::proto::guest::Interface;

/// The index of loopback in every network namespace.
const LOOPBACK: u32 = 1;

/// Sets up what the host gave; what fails is noted, a guest without network is a guest.
pub fn up(interface: Option<&Interface>, journal: &mut Journal) {
    match Links::open() {
        Ok(links) => {
            journal.tolerate(links.set_up(LOOPBACK).map_err(during("bring loopback up")));
            if let Some(interface) = interface {
                journal.tolerate(interface_up(&links, interface));
            }
        }
        Err(error) => journal.skip(&during("open a netlink socket")(error)),
    }
    if let Some(interface) = interface {
        journal.tolerate(resolvers(
            Path::new("/etc/resolv.conf"),
            &interface.resolvers,
        ));
    }
}

fn interface_up(links: &Links, interface: &Interface) -> Result<(), Failure> {
    let attempt = || during::<std::io::Error>(format!("set up the interface {}", interface.mac));
    let mac = parse_mac(&interface.mac)?;
    let address: Ipv4Addr = parse("address", &interface.address)?;
    let found = links.find_by_mac(mac).map_err(attempt())?;
    let index = found.ok_or_else(|| {
        Failure::failed(format!("find the interface {}", interface.mac))
            .because("no interface has this hardware address")
    })?;
    links
        .add_address(index, address, interface.prefix)
        .map_err(attempt())?;
    links.set_up(index).map_err(attempt())?;
    if let Some(gateway) = &interface.gateway {
        let gateway = parse("gateway", gateway)?;
        links.set_default_route(index, gateway).map_err(attempt())?;
    }
    Ok(())
}

/// Replaces the file, also where it is a link into a resolver's folder that nobody
/// fills: systemd-resolved takes a plain file as its own configuration.
fn resolvers(path: &Path, resolvers: &[String]) -> Result<(), Failure> {
    if resolvers.is_empty() {
        return Ok(());
    }
    let text: String = resolvers
        .iter()
        .map(|name| format!("nameserver {name}\n"))
        .collect();
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(path).map_err(during(format!("replace the link {}", path.display())))?;
    }
    write_file(path, text.as_bytes(), 0o644)
}

fn parse_mac(text: &str) -> Result<[u8; 6], Failure> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Failure::failed(format!("read the hardware address {text:?}")))
}

fn parse<T: FromStr>(what: &str, text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::failed(format!("read the {what} {text:?} of the interface")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn hardware_addresses_are_six_bytes() {
        assert_eq!(
            parse_mac("06:00:ac:1e:00:02").unwrap(),
            [6, 0, 0xac, 0x1e, 0, 2]
        );
        assert!(parse_mac("06:00:ac:1e:00").is_err());
        assert!(parse_mac("06:00:ac:1e:00:zz").is_err());
    }

    #[test]
    fn a_dangling_resolv_conf_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/resolv.conf");
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        resolvers(&path, &["172.30.0.1".to_owned()]).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "nameserver 172.30.0.1\n"
        );
    }
}
