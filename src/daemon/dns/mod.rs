//! The guests' resolver: UDP and TCP port 53 of the gateway's address.
//!
//! ```text
//!  question --> zone: <name>.vm, the subnet's addresses --> answer
//!                 \--> upstream: the host's nameservers --> their answer, or SERVFAIL
//! ```
//!
//! Bound to the gateway's address only, and it hears only what comes from its subnet,
//! which includes this machine. It may be started before the bridge exists and after a
//! crash of the daemon alike: it has no state but the daemon's table of names. Work in
//! flight is bounded in all and for each guest; each has a share that is its own whatever
//! the others do, so that they do not keep it out, all together neither.
//!
//! Read next: [`zone`] (what we know ourselves), [`upstream`] (whom we ask).

pub mod upstream;
pub mod zone;

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream, UdpSocket};
use smol::{Async, LocalExecutor, Timer, future};

use crate::failure::{Failure, FailureKind};
use crate::host::resolver::sockets;
use crate::model::net::Subnet;

use upstream::{Transport, Upstream};
use zone::{Names, Verdict};

/// Questions and connections in flight, of all guests together and of each: package
/// managers ask for dozens of names at once, twice each.
const TOTAL_LIMIT: usize = 256;
const GUEST_LIMIT: usize = 64;
/// What each may have in flight even where the others have as many as all may have.
const OWN_SHARE: usize = 8;

/// A connection that asks nothing, or takes no answer, for so long is closed (RFC 7766
/// wants seconds).
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How long nothing is received or accepted after the system could not give us something.
const PAUSE: Duration = Duration::from_millis(100);

/// Largest datagram that is read: more than 4096 bytes nobody asks for (EDNS, RFC 6891),
/// longer answers come over TCP.
const DATAGRAM_LIMIT: usize = 4096;

/// Where a resolver answers and whom it asks.
#[derive(Debug, Clone)]
pub struct Place {
    /// Whose gateway address it answers on, and whose questions it hears.
    pub subnet: Subnet,
    /// The port; 0 lets the system choose (for tests).
    pub port: u16,
    /// The host's list of nameservers, resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// The port of those nameservers.
    pub upstream_port: u16,
    /// How long a connection may stand still.
    pub idle_limit: Duration,
}

impl Place {
    /// The resolver of this network on this machine.
    pub fn of(subnet: Subnet) -> Place {
        Place {
            subnet,
            port: 53,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            upstream_port: 53,
            idle_limit: IDLE_LIMIT,
        }
    }
}

/// A resolver whose sockets are bound.
#[derive(Debug)]
pub struct Dns {
    udp: UdpSocket,
    tcp: TcpListener,
    subnet: Subnet,
    upstream: Upstream,
    idle_limit: Duration,
    load: Load,
}

impl Dns {
    /// Binds both sockets.
    ///
    /// # Errors
    /// Not permitted (ports below 1024 need CAP_NET_BIND_SERVICE), or taken by another
    /// resolver that listens on all addresses.
    pub fn bind(place: &Place) -> Result<Dns, Failure> {
        let address = SocketAddrV4::new(place.subnet.gateway(), place.port);
        let failed = |error| bind_failure(address, &error);
        let sockets = sockets(address).map_err(failed)?;
        Dns::of_sockets(place, sockets)
    }

    /// Serves on sockets that somebody with the privilege has bound.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn of_sockets(place: &Place, (udp, tcp): (OwnedFd, OwnedFd)) -> Result<Dns, Failure> {
        let address = SocketAddrV4::new(place.subnet.gateway(), place.port);
        let failed = |error| bind_failure(address, &error);
        Ok(Dns {
            udp: Async::new(std::net::UdpSocket::from(udp))
                .map_err(failed)?
                .into(),
            tcp: Async::new(std::net::TcpListener::from(tcp))
                .map_err(failed)?
                .into(),
            subnet: place.subnet,
            upstream: Upstream::new(
                place.resolv_conf.clone(),
                place.upstream_port,
                place.subnet.gateway(),
            ),
            idle_limit: place.idle_limit,
            load: Load::default(),
        })
    }

    /// Answers for ever; dropping the future closes everything.
    pub async fn serve(self, names: Names) -> Infallible {
        let pool = LocalExecutor::new();
        let udp = self.serve_udp(&names, &pool);
        let tcp = self.serve_tcp(&names, &pool);
        pool.run(future::or(udp, tcp)).await
    }

    /// The addresses of the UDP and the TCP socket.
    #[cfg(test)]
    fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.udp.local_addr()?, self.tcp.local_addr()?))
    }

    async fn serve_udp<'a>(&'a self, names: &'a Names, pool: &LocalExecutor<'a>) -> Infallible {
        let mut buffer = vec![0; DATAGRAM_LIMIT];
        let mut trouble = Trouble::default();
        loop {
            let received = self.udp.recv_from(&mut buffer).await;
            let Some((length, from)) = trouble.pause("receive a DNS question", received).await
            else {
                continue;
            };
            let Some(guest) = self.accepts(from) else {
                continue;
            };
            let question = buffer[..length].to_vec();
            let slot = self.load.take(guest);
            let answering = async move {
                let answer = match &slot {
                    Some(_) => self.answer(names, &question, Transport::Udp).await,
                    None => zone::server_failure(&question),
                };
                if let Some(answer) = answer {
                    // A guest that is gone by now misses nothing.
                    let _ = self.udp.send_to(&answer, from).await;
                }
            };
            pool.spawn(answering).detach();
        }
    }

    async fn serve_tcp<'a>(&'a self, names: &'a Names, pool: &LocalExecutor<'a>) -> Infallible {
        let mut trouble = Trouble::default();
        loop {
            let accepted = self.tcp.accept().await;
            let Some((stream, from)) = trouble.pause("accept a DNS connection", accepted).await
            else {
                continue;
            };
            let Some(slot) = self.accepts(from).and_then(|guest| self.load.take(guest)) else {
                continue;
            };
            let conversation = async move {
                let _slot = slot;
                // The guest's own end of the conversation is all that can fail here.
                let _ = self.converse(names, stream).await;
            };
            pool.spawn(conversation).detach();
        }
    }

    /// The asker's address, if it is one of our subnet.
    fn accepts(&self, from: SocketAddr) -> Option<Ipv4Addr> {
        match from.ip() {
            IpAddr::V4(address) if self.subnet.contains(address) => Some(address),
            _ => None,
        }
    }

    /// One question after the other, each behind its length (RFC 1035, 4.2.2).
    async fn converse(&self, names: &Names, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let question = self.in_time(read_framed(&mut stream)).await?;
            let Some(answer) = self.answer(names, &question, Transport::Tcp).await else {
                return Ok(());
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes(), &*answer].concat();
            self.in_time(stream.write_all(&framed)).await?;
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let late = async {
            Timer::after(self.idle_limit).await;
            Err(io::ErrorKind::TimedOut.into())
        };
        future::or(work, late).await
    }

    /// `None` for what is no question.
    async fn answer(&self, names: &Names, question: &[u8], over: Transport) -> Option<Vec<u8>> {
        match names.answer(question, self.subnet) {
            Verdict::Ignore => None,
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => match self.upstream.ask(question, over).await {
                Some(answer) => Some(answer),
                None => zone::server_failure(question),
            },
        }
    }
}

/// Whether a socket's last call failed: of one datagram, or of a shortage, so that a later
/// one may come through.
#[derive(Default)]
struct Trouble {
    is_told: bool,
}

impl Trouble {
    /// What came; after a failure, which is told once, nothing, and that a moment later.
    async fn pause<T>(&mut self, attempt: &str, outcome: io::Result<T>) -> Option<T> {
        match outcome {
            Ok(came) => {
                self.is_told = false;
                Some(came)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    log::warn!("{attempt}, which is tried again: {error}");
                }
                Timer::after(PAUSE).await;
                None
            }
        }
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

fn bind_failure(address: SocketAddrV4, error: &io::Error) -> Failure {
    let what = format!("answer DNS questions on {address}");
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(FailureKind::Busy, what)
            .because(error)
            .hint(if_taken(*address.ip())),
        io::ErrorKind::PermissionDenied => Failure::new(FailureKind::Denied, what)
            .because(error)
            .hint("Networks with a tap need root: `sudo bangerd-root --owner $(id -u)`."),
        _ => Failure::failed(what).because(error),
    }
}

/// What to do where somebody else has the port of this address.
pub fn if_taken(gateway: Ipv4Addr) -> String {
    format!(
        "If another bangerd has this network, give one of them its own with `banger config set network.subnet` and `banger config set network.bridge`; if a resolver listens on every address, let it leave {gateway} out (dnsmasq: `bind-interfaces`, `except-interface`)."
    )
}

/// What is in flight, by guest.
#[derive(Debug, Default)]
struct Load {
    by_guest: RefCell<HashMap<Ipv4Addr, usize>>,
}

/// The right to have one thing in flight.
struct Slot<'a> {
    load: &'a Load,
    guest: Ipv4Addr,
}

impl Load {
    fn take(&self, guest: Ipv4Addr) -> Option<Slot<'_>> {
        let mut by_guest = self.by_guest.borrow_mut();
        let is_full = by_guest.values().sum::<usize>() >= TOTAL_LIMIT;
        let own = by_guest.get(&guest).copied().unwrap_or(0);
        if own >= if is_full { OWN_SHARE } else { GUEST_LIMIT } {
            return None;
        }
        by_guest.insert(guest, own + 1);
        Some(Slot { load: self, guest })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut by_guest = self.load.by_guest.borrow_mut();
        if let Some(own) = by_guest.get_mut(&self.guest) {
            *own -= 1;
            if *own == 0 {
                by_guest.remove(&self.guest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
