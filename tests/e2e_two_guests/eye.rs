//! What sees packets arrive: a guest's own network card, or a socket of a host.
//!
//! In a guest works a *station*: a program without judgement that puts on the wire what
//! it is told to and tells of every frame that comes. It is perl, which every Debian has.

use std::cell::RefCell;
use std::fmt::Write;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use crate::support::Banger;
use crate::support::running::Running;

/// Every frame as a line of hexadecimal digits, both ways. `AF_PACKET` is 17,
/// `SOL_PACKET` 263, and the option joins promiscuous mode, so that a frame is seen
/// whatever Ethernet address it goes to (packet(7)).
const STATION: &str = r#"
$all = unpack "S", pack "n", 3;
socket($wire, 17, 3, $all) or die "socket: $!";
open $file, "/sys/class/net/eth0/ifindex" or die "eth0: $!";
$index = <$file> + 0;
bind($wire, pack("SSlSCCx8", 17, $all, $index, 0, 0, 0)) or die "bind: $!";
setsockopt($wire, 263, 1, pack("lSSx8", $index, 1, 0)) or die "promiscuous: $!";
$| = 1;
print "ready\n";
while (1) {
    $watched = "";
    vec($watched, fileno(STDIN), 1) = vec($watched, fileno($wire), 1) = 1;
    select($watched, undef, undef, undef);
    if (vec($watched, fileno($wire), 1)) {
        defined recv($wire, $frame, 2048, 0) or die "receive: $!";
        print unpack("H*", $frame), "\n";
    }
    if (vec($watched, fileno(STDIN), 1)) {
        sysread(STDIN, $told, 65536, length $told) or exit;
        while ($told =~ s/^(.*)\n//) { send($wire, pack("H*", $1), 0) or die "send: $!" }
    }
}
"#;

/// What sees packets, and what it has seen since it was told to forget.
pub struct Eye {
    source: Source,
    seen: RefCell<String>,
}

enum Source {
    Station(RefCell<Running>),
    /// Hears every datagram that the kernel delivers to this machine, whoever listens
    /// (raw(7)): what the filters let in.
    Socket(UdpSocket),
}

impl Eye {
    /// In a guest.
    pub fn in_guest(banger: &Banger, vm: &str) -> Eye {
        let command = banger.command(&["vm", "exec", vm, "--", "perl", "-e", STATION]);
        let station = Running::with_open_input(command);
        station.wait_for_output("ready\n");
        Eye::of(Source::Station(RefCell::new(station)))
    }

    /// In the network namespace of the calling thread.
    pub fn in_this_namespace(family: AddressFamily) -> Eye {
        let raw = socket(family, SocketType::RAW, Some(ipproto::UDP));
        let raw: OwnedFd = raw.expect("root may open a raw socket");
        Eye::of(Source::Socket(raw.into()))
    }

    fn of(source: Source) -> Eye {
        Eye {
            source,
            seen: RefCell::default(),
        }
    }

    /// Puts a frame on the guest's wire.
    pub fn send(&self, frame: &[u8]) {
        let Source::Station(station) = &self.source else {
            panic!("only a guest's station sends frames");
        };
        station.borrow_mut().type_in(hexadecimal(frame) + "\n");
    }

    /// Forgets what it has seen.
    pub fn forget(&self) {
        self.seen.take();
    }

    /// Whether it has seen these bytes.
    pub fn has_seen(&self, bytes: &[u8]) -> bool {
        self.seen.borrow().contains(&hexadecimal(bytes))
    }

    /// Waits until it has seen these bytes; whether they came in time.
    pub fn wait_for(&self, bytes: &[u8], deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        while !self.has_seen(bytes) {
            let left = end.saturating_duration_since(Instant::now());
            let more = match &self.source {
                Source::Station(station) => {
                    let wanted = hexadecimal(bytes);
                    station.borrow().output_up_to(&wanted, left)
                }
                Source::Socket(socket) => receive(socket, left),
            };
            if more.is_empty() {
                return false;
            }
            self.seen.borrow_mut().push_str(&more);
        }
        true
    }
}

/// The next packet as a line; nothing after the deadline.
fn receive(socket: &UdpSocket, deadline: Duration) -> String {
    // Zero would mean no deadline at all.
    let deadline = deadline.max(Duration::from_millis(1));
    let set = socket.set_read_timeout(Some(deadline));
    set.expect("a socket takes a deadline");
    let mut packet = [0; 2048];
    match socket.recv(&mut packet) {
        Ok(length) => hexadecimal(&packet[..length]) + "\n",
        Err(_) => String::new(),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}
