//! One request after the other: who asks, what is asked, carried out, answered.

use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::failure::Failure;
use crate::host::{Host, published, resolver};
use crate::model::net::{PortForward, Subnet};
use crate::plan::step::{Fault, FaultKind, Step};
use crate::proto::helper::{
    HELPER_VERSION, HelperCall, HelperReply, HelperRequest, HelperStep, HelperVerb, MAX_LINE,
};

/// How long a client may take to send its line and to take its answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// The guests' resolver listens here.
const DNS_PORT: u16 = 53;

/// The helper of one owner.
pub struct Helper<H> {
    host: H,
    subnet: Subnet,
    owner: u32,
}

/// An answer with the descriptors that travel with it.
struct Answer {
    reply: HelperReply,
    descriptors: Vec<OwnedFd>,
}

impl From<HelperReply> for Answer {
    fn from(reply: HelperReply) -> Answer {
        Answer {
            reply,
            descriptors: Vec::new(),
        }
    }
}

impl<H: Host> Helper<H> {
    /// Carries steps out on `host`, in the network `subnet`, for user `owner` and root.
    pub fn new(host: H, subnet: Subnet, owner: u32) -> Helper<H> {
        Helper {
            host,
            subnet,
            owner,
        }
    }

    /// Serves until the listener fails.
    ///
    /// # Errors
    /// The listener failed.
    pub fn serve(&self, listener: &UnixListener) -> Result<(), Failure> {
        loop {
            let (stream, _) = listener.accept().map_err(|error| {
                Failure::failed("accept a client of the root helper").because(error)
            })?;
            if let Err(error) = self.answer(&stream) {
                log::warn!("serve a client: {error}");
            }
        }
    }

    /// Serves one client.
    ///
    /// # Errors
    /// The client does not send, or does not take its answer.
    pub fn answer(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(CLIENT_LIMIT))?;
        stream.set_write_timeout(Some(CLIENT_LIMIT))?;
        let peer = rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw();
        let answer = match peer == self.owner || peer == 0 {
            false => refused(format!(
                "serve uid {peer}: this helper serves uid {}",
                self.owner
            ))
            .into(),
            true => {
                let mut line = Vec::new();
                BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line)?;
                self.carry_out(&line)
            }
        };
        send(stream, &answer)
    }

    fn carry_out(&self, line: &[u8]) -> Answer {
        let call: HelperCall = match serde_json::from_slice(line) {
            Ok(call) => call,
            Err(error) => return refused(format!("read a request: {error}")).into(),
        };
        if call.v != HELPER_VERSION {
            let what = format!(
                "serve protocol version {}: this helper speaks {HELPER_VERSION}",
                call.v
            );
            return refused(what).into();
        }
        match call.request {
            HelperRequest::Step { verb, step } => self.step(verb, &step).into(),
            HelperRequest::Resolver { subnet } => self.resolver(subnet),
        }
    }

    fn step(&self, verb: HelperVerb, wire: &HelperStep) -> HelperReply {
        if wire.subnet() != self.subnet {
            return refused(format!(
                "use network {}: this helper's is {}",
                wire.subnet(),
                self.subnet
            ));
        }
        let step = wire.step();
        if let Step::NetRules {
            address, subnet, ..
        } = &step
            && (!subnet.contains(*address) || *address == subnet.gateway())
        {
            return refused(format!(
                "give a guest the address {address}: it is no guest's of {subnet}"
            ));
        }
        if let (HelperVerb::Ensure, Some(port)) = (verb, self.reserved_port(&step)) {
            return refused(format!(
                "publish port {} for uid {}: ports below {} are root's",
                port.host,
                self.owner,
                published::first_for_everybody()
            ));
        }
        log::info!(vm:% = step.vm(), kind = step.kind().word(), verb:?; "step");
        let done = match verb {
            HelperVerb::Ensure => self.host.ensure(&step).map(|()| HelperReply::Done {}),
            HelperVerb::Absent => self.host.absent(&step).map(|()| HelperReply::Done {}),
            HelperVerb::Probe => self.host.probe(&step).map(HelperReply::from),
        };
        done.unwrap_or_else(HelperReply::from)
    }

    /// A port that the owner could not take by a program of theirs either.
    fn reserved_port(&self, step: &Step) -> Option<PortForward> {
        let first = published::first_for_everybody();
        match step {
            Step::NetRules { publish, .. } if self.owner != 0 => {
                publish.iter().copied().find(|port| port.host < first)
            }
            _ => None,
        }
    }

    fn resolver(&self, subnet: Subnet) -> Answer {
        if subnet != self.subnet {
            return refused(format!(
                "use network {subnet}: this helper's is {}",
                self.subnet
            ))
            .into();
        }
        match resolver::sockets(SocketAddrV4::new(subnet.gateway(), DNS_PORT)) {
            Ok((udp, tcp)) => Answer {
                reply: HelperReply::Done {},
                descriptors: vec![udp, tcp],
            },
            Err(error) => {
                let what = format!("bind port {DNS_PORT} of {}: {error}", subnet.gateway());
                HelperReply::from(Fault::new(FaultKind::Other, what)).into()
            }
        }
    }
}

fn refused(what: String) -> HelperReply {
    log::warn!("refused: {what}");
    Fault::new(FaultKind::Denied, what).into()
}

fn send(stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(&answer.reply).map_err(io::Error::other)?;
    bytes.push(b'\n');
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = answer.descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(&borrowed));
        assert!(pushed, "the space is made for two descriptors");
    }
    // An answer is far shorter than a socket's buffer, so one call takes it whole.
    let sent = rustix::net::sendmsg(
        stream,
        &[io::IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    match sent == bytes.len() {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step::Presence;
    use std::io::Write;
    use std::sync::Mutex;

    /// Remembers what it was asked, so that a refusal is seen to reach no host.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<Step>>);

    impl Host for Recorder {
        fn ensure(&self, step: &Step) -> Result<(), Fault> {
            self.0.lock().unwrap().push(step.clone());
            Ok(())
        }

        fn absent(&self, step: &Step) -> Result<(), Fault> {
            self.ensure(step)
        }

        fn probe(&self, _: &Step) -> Result<Presence, Fault> {
            Ok(Presence::Absent)
        }
    }

    fn ask(owner: u32, line: &str) -> (HelperReply, usize) {
        let own = rustix::process::getuid().as_raw();
        let helper = Helper::new(
            Recorder::default(),
            "172.30.0.0/16".parse().unwrap(),
            own + owner,
        );
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(line.as_bytes()).unwrap();
        theirs.write_all(b"\n").unwrap();
        helper.answer(&ours).unwrap();
        drop(ours);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        let steps = helper.host.0.lock().unwrap().len();
        (serde_json::from_str(&text).unwrap(), steps)
    }

    fn rules(address: &str, subnet: &str) -> String {
        format!(
            r#"{{"v":1,"request":{{"do":"step","verb":"ensure","step":{{"kind":"net_rules","vm":"00000001","address":"{address}","subnet":"{subnet}","nat":true}}}}}}"#
        )
    }

    #[test]
    fn a_step_in_our_network_is_carried_out() {
        assert_eq!(
            ask(0, &rules("172.30.0.9", "172.30.0.0/16")),
            (HelperReply::Done {}, 1)
        );
    }

    #[test]
    fn foreign_networks_addresses_versions_and_nonsense_reach_no_host() {
        let cases = [
            rules("10.0.0.9", "10.0.0.0/8"),
            rules("10.0.0.9", "172.30.0.0/16"),
            rules("172.30.0.1", "172.30.0.0/16"),
            rules("172.30.0.9", "172.30.0.0/16").replace("\"v\":1", "\"v\":9"),
            "{}".to_owned(),
            "x".repeat(3000),
        ];
        for line in cases {
            let (reply, steps) = ask(0, &line);
            assert!(
                matches!(&reply, HelperReply::Fault { kind, .. } if kind == "denied"),
                "{line}: {reply:?}"
            );
            assert_eq!(steps, 0);
        }
    }
}
