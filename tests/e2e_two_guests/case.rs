//! What a case is, and how it is judged.

use crate::guard::{Guard, Without};
use crate::scene::{DISCARD, Net, Packet, Place, Probe, Scene, heading};
use crate::support::frame::Envelope;

/// Guard after guard, and what they decide on.
pub struct Case {
    pub name: &'static str,
    pub outcome: Outcome,
    pub guards: &'static [Guard],
    /// The packets, of which the last is judged and those before must arrive. The number
    /// makes them unlike all others.
    pub probes: fn(&Net, u16) -> Vec<Probe>,
}

/// What becomes of a packet while all guards are in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Each guard alone stops it; without any it arrives.
    Stopped,
    /// Each guard is needed: without any one of them it does not arrive.
    Arrives,
}

/// A packet that must be stopped, by each of these guards alone.
pub fn stopped(
    name: &'static str,
    guards: &'static [Guard],
    probes: fn(&Net, u16) -> Vec<Probe>,
) -> Case {
    let outcome = Outcome::Stopped;
    Case {
        name,
        outcome,
        guards,
        probes,
    }
}

/// A packet that must arrive, and needs all these guards for it.
pub fn arrives(
    name: &'static str,
    guards: &'static [Guard],
    probes: fn(&Net, u16) -> Vec<Probe>,
) -> Case {
    let outcome = Outcome::Arrives;
    Case {
        name,
        outcome,
        guards,
        probes,
    }
}

impl Case {
    /// What is wrong: one line each.
    pub fn complaints(&self, scene: &Scene) -> Vec<String> {
        let mut found = Vec::new();
        let mut expect = |outcome, without: &[Guard]| {
            if !self.is(outcome, scene, without) {
                let name = self.name;
                found.push(format!("{name}: not {outcome:?} without {without:?}"));
            }
        };
        expect(self.outcome, &[]);
        match self.outcome {
            Outcome::Stopped => {
                for kept in self.guards.iter().filter(|_| self.guards.len() > 1) {
                    let others = self.guards.iter().filter(|guard| *guard != kept);
                    expect(Outcome::Stopped, &others.copied().collect::<Vec<_>>());
                }
                expect(Outcome::Arrives, self.guards);
            }
            Outcome::Arrives => {
                for lost in self.guards {
                    expect(Outcome::Stopped, &[*lost]);
                }
            }
        }
        found
    }

    /// Whether this becomes of it without these guards.
    fn is(&self, outcome: Outcome, scene: &Scene, guards: &[Guard]) -> bool {
        let probes = (self.probes)(&scene.net, scene.number());
        let (judged, before) = probes.split_last().expect("a case has a packet");
        for probe in before {
            let arrived = scene.arrives_at_last(probe);
            assert!(arrived, "{}: what goes before is lost", self.name);
        }
        let without = Without::new(guards, &scene.taps);
        let right = match outcome {
            Outcome::Stopped => !scene.arrives(judged),
            Outcome::Arrives => scene.arrives_at_last(judged),
        };
        without.put_back();
        scene.settle();
        right
    }
}

/// A datagram that a guest puts on its wire, in this envelope.
pub fn datagram(by: Place, envelope: Envelope, ports: [u16; 2], at: Place) -> Probe {
    Probe {
        by,
        packet: Packet::Frame(envelope.udp(ports, b"")),
        at,
        looks: heading(envelope.from, envelope.to, ports),
    }
}

/// The same to a port where nobody listens.
pub fn discarded(by: Place, envelope: Envelope, number: u16, at: Place) -> Vec<Probe> {
    vec![datagram(by, envelope, [number, DISCARD], at)]
}
