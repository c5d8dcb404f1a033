//! The resolver on loopback, asked over its sockets, with a nameserver behind it.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::mpsc;

use simple_dns::rdata::{A, RData};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A resolver that runs on a thread of its own until this is dropped.
struct Running {
    udp: SocketAddr,
    tcp: SocketAddr,
    _end: smol::channel::Sender<()>,
}

fn start(resolv_conf: PathBuf, upstream_port: u16) -> Running {
    start_with(resolv_conf, upstream_port, IDLE_LIMIT)
}

fn start_with(resolv_conf: PathBuf, upstream_port: u16, idle_limit: Duration) -> Running {
    let place = Place {
        resolv_conf,
        upstream_port,
        idle_limit,
        ..nowhere()
    };
    run(move || Dns::bind(&place).unwrap())
}

/// On loopback, with nobody to ask.
fn nowhere() -> Place {
    Place {
        subnet: "127.0.0.0/8".parse().unwrap(),
        port: 0,
        resolv_conf: PathBuf::from("/nonexistent"),
        upstream_port: 1,
        idle_limit: IDLE_LIMIT,
    }
}

fn run(make: impl FnOnce() -> Dns + Send + 'static) -> Running {
    let (started, wait) = mpsc::channel();
    let (end, ended) = smol::channel::bounded::<()>(1);
    std::thread::spawn(move || {
        let names = Names::default();
        names.replace([("dev".parse().unwrap(), Ipv4Addr::new(127, 0, 0, 9))]);
        let dns = make();
        started.send(dns.addresses().unwrap()).unwrap();
        let until_end = async {
            let _ = ended.recv().await;
        };
        smol::block_on(future::or(until_end, async {
            match dns.serve(names).await {}
        }));
    });
    let (udp, tcp) = wait.recv_timeout(PATIENCE).unwrap();
    Running {
        udp,
        tcp,
        _end: end,
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    let name = Name::new(name).unwrap();
    let class = QCLASS::CLASS(CLASS::IN);
    let asked = Question::new(name, QTYPE::TYPE(TYPE::A), class, false);
    packet.questions.push(asked);
    packet.build_bytes_vec().unwrap()
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Receives a datagram; gives its sender too.
fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 1024];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

fn first_address(answer: &[u8]) -> Option<Ipv4Addr> {
    let packet = Packet::parse(answer).unwrap();
    match packet.answers.first()?.rdata {
        RData::A(A { address }) => Some(Ipv4Addr::from(address)),
        _ => None,
    }
}

/// What a nameserver says to a question: this address.
fn nameserver_answer(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let packet = Packet::parse(question).unwrap();
    let name = packet.questions[0].qname.clone();
    let mut answer = packet.into_reply();
    let data = RData::A(A::from(address));
    answer
        .answers
        .push(ResourceRecord::new(name, CLASS::IN, 60, data));
    answer.build_bytes_vec().unwrap()
}

fn resolv_conf(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_vm_is_answered_over_udp_and_twice_over_one_tcp_connection() {
    let running = start(PathBuf::from("/nonexistent"), 1);
    let socket = client();
    socket.send_to(&question(7, "dev.vm"), running.udp).unwrap();
    let (answer, _) = receive(&socket);
    assert_eq!(first_address(&answer), Some(Ipv4Addr::new(127, 0, 0, 9)));
    let mut stream = TcpStream::connect(running.tcp).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for id in [8, 9] {
        let asked = question(id, "dev.vm");
        let length = u16::try_from(asked.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(&asked).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(Packet::parse(&answer).unwrap().id(), id);
    }
}

#[test]
fn garbage_is_ignored_and_the_next_question_answered() {
    let running = start(PathBuf::from("/nonexistent"), 1);
    let socket = client();
    for garbage in [&[][..], &[0xff; 3], &[0xff; 600]] {
        socket.send_to(garbage, running.udp).unwrap();
    }
    socket.send_to(&question(7, "dev.vm"), running.udp).unwrap();
    assert_eq!(Packet::parse(&receive(&socket).0).unwrap().id(), 7);
}

#[test]
fn other_names_go_to_the_nameserver_and_forged_answers_nowhere() {
    let nameserver = client();
    let port = nameserver.local_addr().unwrap().port();
    let file = resolv_conf("nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
    // 127.0.0.1 is the resolver's own address here, and so is left out.
    let second = UdpSocket::bind(("127.0.0.2", port)).unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    let running = start(file.path().to_owned(), port);
    let socket = client();
    socket
        .send_to(&question(7, "example.org"), running.udp)
        .unwrap();
    let (asked, from) = receive(&second);
    let forged = nameserver_answer(&question(1, "example.org"), Ipv4Addr::new(6, 6, 6, 6));
    second.send_to(&forged, from).unwrap();
    let genuine = nameserver_answer(&asked, Ipv4Addr::new(192, 0, 2, 1));
    client().send_to(&genuine, from).unwrap();
    second.send_to(&genuine, from).unwrap();
    let (answer, _) = receive(&socket);
    assert_eq!(Packet::parse(&answer).unwrap().id(), 7);
    assert_eq!(first_address(&answer), Some(Ipv4Addr::new(192, 0, 2, 1)));
}

#[test]
fn a_change_of_the_hosts_nameservers_is_followed() {
    let second = UdpSocket::bind("127.0.0.2:0").unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = second.local_addr().unwrap().port();
    let file = resolv_conf("# none\n");
    let running = start(file.path().to_owned(), port);
    let socket = client();
    socket
        .send_to(&question(7, "example.org"), running.udp)
        .unwrap();
    let (answer, _) = receive(&socket);
    assert_eq!(
        Packet::parse(&answer).unwrap().rcode(),
        RCODE::ServerFailure
    );
    std::fs::write(file.path(), "nameserver 127.0.0.2\n").unwrap();
    socket
        .send_to(&question(8, "example.org"), running.udp)
        .unwrap();
    let (asked, from) = receive(&second);
    let address = Ipv4Addr::new(192, 0, 2, 1);
    second
        .send_to(&nameserver_answer(&asked, address), from)
        .unwrap();
    assert_eq!(first_address(&receive(&socket).0), Some(address));
}

#[test]
fn one_guest_cannot_fill_the_resolver() {
    let silent = UdpSocket::bind("127.0.0.2:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let file = resolv_conf("nameserver 127.0.0.2\n");
    let running = start(file.path().to_owned(), port);
    let greedy = client();
    for id in 0..=u16::try_from(GUEST_LIMIT).unwrap() {
        greedy
            .send_to(&question(id, "example.org"), running.udp)
            .unwrap();
    }
    let refused = Packet::parse(&receive(&greedy).0).unwrap().rcode();
    assert_eq!(refused, RCODE::ServerFailure);
    let modest = UdpSocket::bind("127.0.0.7:0").unwrap();
    modest.set_read_timeout(Some(PATIENCE)).unwrap();
    modest.send_to(&question(1, "dev.vm"), running.udp).unwrap();
    let answer = receive(&modest).0;
    assert!(
        Packet::parse(&answer)
            .unwrap()
            .has_flags(PacketFlag::RESPONSE)
    );
    assert!(first_address(&answer).is_some());
}

#[test]
fn greedy_guests_leave_each_other_a_share_and_no_more_than_that() {
    let load = Load::default();
    let guest = |number: usize| Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap());
    let mut slots = Vec::new();
    for greedy in 0..TOTAL_LIMIT / GUEST_LIMIT {
        slots.extend((0..=GUEST_LIMIT).filter_map(|_| load.take(guest(greedy))));
    }
    assert_eq!(slots.len(), TOTAL_LIMIT);
    let modest: Vec<_> = (0..GUEST_LIMIT)
        .filter_map(|_| load.take(guest(1000)))
        .collect();
    assert_eq!(modest.len(), OWN_SHARE);
    assert!(load.take(guest(0)).is_none());
    drop((slots, modest));
    assert!(load.by_guest.borrow().is_empty());
}

#[test]
fn a_connection_that_takes_no_answers_is_closed() {
    let limit = Duration::from_millis(50);
    let running = start_with(PathBuf::from("/nonexistent"), 1, limit);
    let mut stream = TcpStream::connect(running.tcp).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
    let asked = question(1, "dev.vm");
    let length = u16::try_from(asked.len()).unwrap();
    let framed = [&length.to_be_bytes(), &*asked].concat().repeat(100);
    // Until both directions are full and the resolver gives up.
    while stream.write_all(&framed).is_ok() {}
}

#[test]
fn an_answer_too_long_for_a_datagram_is_one_to_ask_for_in_a_stream() {
    let nameserver = UdpSocket::bind("127.0.0.2:0").unwrap();
    nameserver.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = nameserver.local_addr().unwrap().port();
    let file = resolv_conf("nameserver 127.0.0.2\n");
    let running = start(file.path().to_owned(), port);
    let socket = client();
    for (length, is_cut) in [(DATAGRAM_LIMIT, false), (DATAGRAM_LIMIT + 1, true)] {
        let asked = question(7, "example.org");
        socket.send_to(&asked, running.udp).unwrap();
        let (asked, from) = receive(&nameserver);
        let mut answer = nameserver_answer(&asked, Ipv4Addr::new(192, 0, 2, 1));
        answer.resize(length, 0);
        nameserver.send_to(&answer, from).unwrap();
        let mut buffer = vec![0; 2 * DATAGRAM_LIMIT];
        let received = socket.recv(&mut buffer).unwrap();
        let packet = Packet::parse(&buffer[..asked.len()]);
        assert_eq!(buffer[2] & 0x02 != 0, is_cut);
        assert_eq!(received, if is_cut { asked.len() } else { length });
        assert_eq!(packet.is_ok_and(|packet| packet.id() == 7), is_cut);
    }
}

#[test]
fn a_socket_that_fails_once_is_used_on() {
    let peer = client();
    let address = peer.local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect(address).unwrap();
    drop(peer);
    // Refused, of which the next receive tells.
    udp.send(&[0]).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sockets = (udp.into(), tcp.into());
    let running = run(move || Dns::of_sockets(&nowhere(), sockets).unwrap());
    let peer = UdpSocket::bind(address).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(&question(7, "dev.vm"), running.udp).unwrap();
    assert_eq!(Packet::parse(&receive(&peer).0).unwrap().id(), 7);
}

#[test]
fn a_second_resolver_on_the_address_is_refused_by_name() {
    let place = nowhere();
    let first = Dns::bind(&place).unwrap();
    let taken = Place {
        port: first.addresses().unwrap().0.port(),
        ..place
    };
    let failure = Dns::bind(&taken).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Busy);
    assert!(failure.what.contains("127.0.0.1"), "{failure}");
}
