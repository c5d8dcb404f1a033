//! The few kernel settings that we read or write, each of one interface.
//!
//! `/proc/sys/net` shows the network namespace of the thread that opens a file.

use std::fs;
use std::io;

use crate::plan::step::Fault;

use super::fault::fault;

/// Whether the host forwards IPv4 everywhere (`net.ipv4.ip_forward`).
pub fn forwards_everywhere() -> Result<bool, Fault> {
    read("net/ipv4/ip_forward")
}

/// Whether the host forwards IPv4 packets that come in by an interface.
pub fn forwards(interface: &str) -> Result<bool, Fault> {
    read(&forwarding(interface))
}

/// Lets the host forward IPv4 packets that come in by an interface, or not.
pub fn set_forwards(interface: &str, on: bool) -> Result<(), Fault> {
    write(&forwarding(interface), on)
}

/// Whether packets with loopback addresses pass an interface.
pub fn routes_loopback(interface: &str) -> Result<bool, Fault> {
    read(&loopback(interface))
}

/// Lets packets with loopback addresses pass an interface, or not.
pub fn set_routes_loopback(interface: &str, on: bool) -> Result<(), Fault> {
    write(&loopback(interface), on)
}

/// The first port that needs no privilege (`net.ipv4.ip_unprivileged_port_start`).
pub fn first_unprivileged_port() -> Option<u16> {
    let text = fs::read_to_string(path("net/ipv4/ip_unprivileged_port_start"));
    text.ok()?.trim().parse().ok()
}

/// Switches IPv6 off on an interface; on a kernel without IPv6 there is nothing to do.
pub fn disable_ipv6(interface: &str) -> Result<(), Fault> {
    let name = ipv6(interface);
    if exists(&name) {
        write(&name, true)
    } else {
        Ok(())
    }
}

/// Whether IPv6 is off on an interface.
pub fn ipv6_is_disabled(interface: &str) -> Result<bool, Fault> {
    let name = ipv6(interface);
    if exists(&name) { read(&name) } else { Ok(true) }
}

fn forwarding(interface: &str) -> String {
    format!("net/ipv4/conf/{interface}/forwarding")
}

fn loopback(interface: &str) -> String {
    format!("net/ipv4/conf/{interface}/route_localnet")
}

fn ipv6(interface: &str) -> String {
    format!("net/ipv6/conf/{interface}/disable_ipv6")
}

fn exists(name: &str) -> bool {
    fs::exists(path(name)).unwrap_or(false)
}

fn read(name: &str) -> Result<bool, Fault> {
    let text = fs::read_to_string(path(name))
        .map_err(|error| fault(format!("read setting {}", path(name)), error))?;
    Ok(text.trim() != "0")
}

fn write(name: &str, on: bool) -> Result<(), Fault> {
    let attempt = |error: io::Error| fault(format!("change setting {}", path(name)), error);
    fs::write(path(name), if on { "1" } else { "0" }).map_err(attempt)
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}
