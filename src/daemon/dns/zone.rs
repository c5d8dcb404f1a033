//! What we know ourselves: `<name>.vm` and the names of our subnet's addresses.
//!
//! Pure but for the table that the daemon keeps: bytes of a question in, bytes of an
//! answer or a verdict out. A name that exists without an address of the asked kind
//! gets an empty answer, not NXDOMAIN, or a client that asks for AAAA first gives up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;

use simple_dns::rdata::{A, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use crate::model::ids::VmName;
use crate::model::net::Subnet;

/// The top-level domain of our guests.
const DOMAIN: &str = "vm";

/// Seconds that an answer may be kept: names come and go with VMs.
const TTL: u32 = 5;

/// Length of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// The names of the VMs that have an address. Clones share one table; it belongs to the
/// daemon's thread.
#[derive(Debug, Clone, Default)]
pub struct Names(Rc<RefCell<BTreeMap<VmName, Ipv4Addr>>>);

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no question: say nothing.
    Ignore,
    /// Send this.
    Answer(Vec<u8>),
    /// Ask somebody else.
    Forward,
}

impl Names {
    /// Puts these VMs in place of all that were there.
    pub fn replace(&self, all: impl IntoIterator<Item = (VmName, Ipv4Addr)>) {
        *self.0.borrow_mut() = all.into_iter().collect();
    }

    /// What to do with a message that came from our subnet.
    pub fn answer(&self, message: &[u8], subnet: Subnet) -> Verdict {
        let Ok(packet) = Packet::parse(message) else {
            return beyond_us(message);
        };
        if packet.has_flags(PacketFlag::RESPONSE) {
            return Verdict::Ignore;
        }
        if packet.opcode() != OPCODE::StandardQuery {
            return reply(packet, RCODE::NotImplemented, None);
        }
        let [question] = packet.questions.as_slice() else {
            return reply(packet, RCODE::FormatError, None);
        };
        let labels: Vec<String> = question
            .qname
            .get_labels()
            .iter()
            .map(|label| label.to_string().to_ascii_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let asked = question.qtype;
        match labels.as_slice() {
            [.., DOMAIN] => match self.address(&labels) {
                Some(address) => {
                    let data = RData::A(A::from(address));
                    reply(
                        packet,
                        RCODE::NoError,
                        matches(asked, TYPE::A).then_some(data),
                    )
                }
                None => reply(packet, RCODE::NameError, None),
            },
            _ => match reverse(&labels).filter(|address| subnet.contains(*address)) {
                Some(address) => self.answer_reverse(packet, asked, address),
                None => Verdict::Forward,
            },
        }
    }

    /// The address of exactly `<name>.vm`.
    fn address(&self, labels: &[&str]) -> Option<Ipv4Addr> {
        let [name, _domain] = labels else {
            return None;
        };
        let name: VmName = name.parse().ok()?;
        self.0.borrow().get(&name).copied()
    }

    fn answer_reverse(&self, packet: Packet<'_>, asked: QTYPE, address: Ipv4Addr) -> Verdict {
        let names = self.0.borrow();
        let found = names.iter().find(|(_, known)| **known == address);
        let Some((name, _)) = found else {
            return reply(packet, RCODE::NameError, None);
        };
        let name = format!("{name}.{DOMAIN}");
        let data = RData::PTR(PTR(Name::new_unchecked(&name)));
        let data = matches(asked, TYPE::PTR).then(|| data.into_owned());
        reply(packet, RCODE::NoError, data)
    }
}

/// The answer that says we could not find out, to be tried again.
pub fn server_failure(message: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(message).ok()?;
    if packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    match reply(packet, RCODE::ServerFailure, None) {
        Verdict::Answer(answer) => Some(answer),
        Verdict::Ignore | Verdict::Forward => None,
    }
}

/// What is said in place of an answer that is too long for a datagram: that it is to be
/// asked for in a stream (TC, RFC 1035, 4.1.1). Half an answer would pass for a whole one.
pub fn truncated(answer: &[u8]) -> Option<Vec<u8>> {
    const TRUNCATED: u8 = 0x02;
    let question = question(answer)?;
    let mut cut = answer.get(..HEADER)?.to_vec();
    cut[2] |= TRUNCATED;
    // No records of the other three sections.
    cut[6..].fill(0);
    cut.extend_from_slice(question);
    Some(cut)
}

/// The question's bytes in a message: name, type, class.
pub fn question(message: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER;
    loop {
        match *message.get(end)? {
            0 => break,
            length @ 1..=63 => end += 1 + usize::from(length),
            // A pointer cannot stand in the first name of a message.
            _ => return None,
        }
    }
    message.get(HEADER..end + 5)
}

/// A question with parts that we cannot read is passed on, for another to answer or
/// refuse: a guest that gets no answer waits for seconds.
fn beyond_us(message: &[u8]) -> Verdict {
    const RESPONSE: u8 = 0x80;
    let asks = message.get(2).is_some_and(|flags| flags & RESPONSE == 0);
    let one_question = message.get(4..6) == Some(&[0, 1]);
    if asks && one_question && question(message).is_some() {
        Verdict::Forward
    } else {
        Verdict::Ignore
    }
}

fn matches(asked: QTYPE, have: TYPE) -> bool {
    asked == QTYPE::ANY || asked == QTYPE::TYPE(have)
}

fn reply(question: Packet<'_>, code: RCODE, data: Option<RData<'_>>) -> Verdict {
    let name = question.questions.first().map(|q| q.qname.clone());
    let mut packet = question.into_reply();
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    *packet.rcode_mut() = code;
    if let (Some(name), Some(data)) = (name, data) {
        let record = ResourceRecord::new(name, CLASS::IN, TTL, data);
        packet.answers.push(record);
    }
    match packet.build_bytes_vec_compressed() {
        Ok(bytes) => Verdict::Answer(bytes),
        Err(_) => Verdict::Ignore,
    }
}

/// The address that a name under in-addr.arpa is about.
fn reverse(labels: &[&str]) -> Option<Ipv4Addr> {
    let [d, c, b, a, "in-addr", "arpa"] = labels else {
        return None;
    };
    format!("{a}.{b}.{c}.{d}").parse().ok()
}

#[cfg(test)]
mod tests {
    use simple_dns::{QCLASS, Question};

    use super::*;

    fn names() -> Names {
        let names = Names::default();
        names.replace([("dev".parse().unwrap(), Ipv4Addr::new(172, 30, 0, 2))]);
        names
    }

    fn ask(name: &str, asked: TYPE) -> Verdict {
        let mut packet = Packet::new_query(7);
        let name = Name::new(name).unwrap();
        let class = QCLASS::CLASS(CLASS::IN);
        packet
            .questions
            .push(Question::new(name, QTYPE::TYPE(asked), class, false));
        let subnet = "172.30.0.0/16".parse().unwrap();
        names().answer(&packet.build_bytes_vec().unwrap(), subnet)
    }

    fn answered(name: &str, asked: TYPE) -> (RCODE, Vec<String>) {
        let Verdict::Answer(bytes) = ask(name, asked) else {
            panic!("{name} was not answered");
        };
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.id(), 7);
        assert!(packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER));
        let data = packet.answers.iter().map(|record| match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address).to_string(),
            RData::PTR(ptr) => ptr.0.to_string(),
            other => format!("{other:?}"),
        });
        (packet.rcode(), data.collect())
    }

    #[test]
    fn a_vm_is_found_whatever_the_case() {
        for name in ["dev.vm", "DEV.vm", "Dev.VM"] {
            let expected = (RCODE::NoError, vec!["172.30.0.2".to_owned()]);
            assert_eq!(answered(name, TYPE::A), expected, "{name}");
        }
    }

    #[test]
    fn another_kind_of_a_known_name_is_empty_and_an_unknown_name_does_not_exist() {
        assert_eq!(answered("dev.vm", TYPE::AAAA), (RCODE::NoError, vec![]));
        for name in ["other.vm", "a.dev.vm", "vm", "-x.vm"] {
            assert_eq!(
                answered(name, TYPE::A),
                (RCODE::NameError, vec![]),
                "{name}"
            );
        }
    }

    #[test]
    fn an_address_of_ours_has_a_name_and_is_never_asked_elsewhere() {
        let found = answered("2.0.30.172.in-addr.arpa", TYPE::PTR);
        assert_eq!(found, (RCODE::NoError, vec!["dev.vm".to_owned()]));
        let found = answered("9.0.30.172.in-addr.arpa", TYPE::PTR);
        assert_eq!(found, (RCODE::NameError, vec![]));
        assert_eq!(ask("8.8.8.8.in-addr.arpa", TYPE::PTR), Verdict::Forward);
    }

    #[test]
    fn other_names_are_for_others_to_answer() {
        for name in ["example.org", "vm.example.org", "devvm", "localhost"] {
            assert_eq!(ask(name, TYPE::A), Verdict::Forward, "{name}");
        }
    }

    #[test]
    fn garbage_and_answers_are_ignored() {
        let subnet = "172.30.0.0/16".parse().unwrap();
        let mut reply = Packet::new_query(1).into_reply().build_bytes_vec().unwrap();
        for bytes in [&[][..], &[0; 5], &[0xff; 40], &reply] {
            assert_eq!(names().answer(bytes, subnet), Verdict::Ignore, "{bytes:?}");
        }
        reply[2] = 0;
        let Verdict::Answer(bytes) = names().answer(&reply, subnet) else {
            panic!("a message without a question was not answered");
        };
        assert_eq!(Packet::parse(&bytes).unwrap().rcode(), RCODE::FormatError);
    }

    #[test]
    fn a_question_with_unreadable_parts_is_for_others() {
        let subnet = "172.30.0.0/16".parse().unwrap();
        let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        message.extend_from_slice(&[1, b'a', 0, 0, 1, 0, 1, 0xff, 0xff]);
        assert!(Packet::parse(&message).is_err());
        assert_eq!(names().answer(&message, subnet), Verdict::Forward);
    }

    #[test]
    fn a_question_with_options_is_answered() {
        let subnet = "172.30.0.0/16".parse().unwrap();
        let mut message = vec![0, 7, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
        message.extend_from_slice(b"\x03dev\x02vm\0\0\x01\0\x01");
        // OPT: root name, type 41, 1232 bytes, DNSSEC wanted, a cookie (RFC 6891, 7873).
        message.extend_from_slice(&[0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 12]);
        message.extend_from_slice(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let Verdict::Answer(bytes) = names().answer(&message, subnet) else {
            panic!("not answered");
        };
        assert_eq!(Packet::parse(&bytes).unwrap().answers.len(), 1);
    }

    #[test]
    fn a_name_that_points_into_the_message_has_no_question() {
        let mut message = vec![0; HEADER];
        message.extend_from_slice(&[1, b'a', 0, 0, 1, 0, 1, 9, 9]);
        assert_eq!(question(&message), Some(&[1, b'a', 0, 0, 1, 0, 1][..]));
        message[HEADER] = 0xc0;
        assert_eq!(question(&message), None);
        assert_eq!(question(&message[..5]), None);
    }
}
