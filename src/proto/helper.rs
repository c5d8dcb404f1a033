//! What the daemon asks of the root helper: one typed step per connection, one JSON
//! object on one line each way.
//!
//! The request names a VM by its identity and says how the object must be. It cannot
//! name a path, an interface, a process or a rule: the helper derives those, so there
//! is nothing in a request to be fooled by.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::text::{self, list as texts};
use crate::model::ids::VmId;
use crate::model::net::{PortForward, Subnet};
use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Outside, Presence, Step, TapLimit};

/// Version of this protocol.
pub const HELPER_VERSION: u32 = 1;
/// Longest line either way, bytes.
pub const MAX_LINE: u64 = 4096;
/// The helper's socket on a machine that has it installed.
pub const SOCKET: &str = "/run/banger-root/bangerd-root.sock";

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HelperCall {
    /// [`HELPER_VERSION`] of the daemon.
    pub v: u32,
    /// What to do.
    pub request: HelperRequest,
}

/// What can be asked of the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperRequest {
    /// Carry out a step.
    Step {
        /// What to do with the object.
        verb: HelperVerb,
        /// Which object.
        step: HelperStep,
    },
    /// Bind port 53 of the bridge's address: the UDP socket and the listening TCP socket
    /// come with the answer, in this order.
    Resolver {
        /// The network of the bridge; must be the helper's own.
        #[serde(with = "text")]
        subnet: Subnet,
    },
}

/// What to do with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelperVerb {
    /// Make it exist as described.
    Ensure,
    /// Make it not exist.
    Absent,
    /// Look.
    Probe,
}

/// The objects that need root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperStep {
    /// [`Step::Tap`]
    Tap {
        /// Whose.
        #[serde(with = "text")]
        vm: VmId,
        /// The network of the bridge; must be the helper's own.
        #[serde(with = "text")]
        subnet: Subnet,
    },
    /// [`Step::NetRules`]
    NetRules {
        /// Whose.
        #[serde(with = "text")]
        vm: VmId,
        /// The guest's address; must lie in the network.
        address: Ipv4Addr,
        /// The network of the bridge; must be the helper's own.
        #[serde(with = "text")]
        subnet: Subnet,
        /// Whether the outside is reachable.
        nat: bool,
        /// Ports of the host that lead to the guest: `8080:80`.
        #[serde(default, skip_serializing_if = "Vec::is_empty", with = "texts")]
        publish: Vec<PortForward>,
    },
    /// [`Step::NetLimit`]
    NetLimit {
        /// Whose.
        #[serde(with = "text")]
        vm: VmId,
        /// The network of the bridge; must be the helper's own.
        #[serde(with = "text")]
        subnet: Subnet,
        /// Bytes per second.
        bandwidth: u64,
    },
}

impl HelperStep {
    /// The wire form of a step; `None` for those that need no root.
    pub fn of(step: &Step) -> Option<HelperStep> {
        match step {
            Step::Tap { vm, subnet } => Some(HelperStep::Tap {
                vm: *vm,
                subnet: *subnet,
            }),
            Step::NetRules {
                vm,
                address,
                subnet,
                outside,
                publish,
            } => Some(HelperStep::NetRules {
                vm: *vm,
                address: *address,
                subnet: *subnet,
                nat: *outside == Outside::Nat,
                publish: publish.clone(),
            }),
            Step::NetLimit { vm, limit } => Some(HelperStep::limit(*vm, *limit)),
            Step::VmDirectory { .. }
            | Step::UpperDisk { .. }
            | Step::RootDisk { .. }
            | Step::CowFile { .. }
            | Step::BaseLoop { .. }
            | Step::CowLoop { .. }
            | Step::DmSnapshot { .. }
            | Step::WorkDisk { .. }
            | Step::RunDirectory { .. }
            | Step::Cgroup { .. }
            | Step::VsockBackend { .. }
            | Step::Vmm { .. }
            | Step::Configured { .. }
            | Step::Booted { .. }
            | Step::Ready { .. }
            | Step::Adjusted { .. } => None,
        }
    }

    fn limit(vm: VmId, limit: TapLimit) -> HelperStep {
        let (subnet, bandwidth) = (limit.subnet, limit.bandwidth.0);
        HelperStep::NetLimit {
            vm,
            subnet,
            bandwidth,
        }
    }

    /// The network that the step names.
    pub fn subnet(&self) -> Subnet {
        match self {
            HelperStep::Tap { subnet, .. }
            | HelperStep::NetRules { subnet, .. }
            | HelperStep::NetLimit { subnet, .. } => *subnet,
        }
    }

    /// The step.
    pub fn step(&self) -> Step {
        match self {
            HelperStep::Tap { vm, subnet } => Step::Tap {
                vm: *vm,
                subnet: *subnet,
            },
            HelperStep::NetLimit {
                vm,
                subnet,
                bandwidth,
            } => Step::NetLimit {
                vm: *vm,
                limit: TapLimit {
                    subnet: *subnet,
                    bandwidth: Bytes(*bandwidth),
                },
            },
            HelperStep::NetRules {
                vm,
                address,
                subnet,
                nat,
                publish,
            } => Step::NetRules {
                vm: *vm,
                address: *address,
                subnet: *subnet,
                outside: if *nat { Outside::Nat } else { Outside::Closed },
                publish: publish.clone(),
            },
        }
    }
}

/// The one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperReply {
    /// It was done.
    Done {},
    /// What a probe saw.
    Saw {
        /// `absent`, `present`, `different`.
        presence: String,
    },
    /// It was not done.
    Fault {
        /// `busy`, `full`, `missing`, `denied`, `timeout`, `exited`, `other`.
        kind: String,
        /// The attempt, the object and the cause.
        what: String,
    },
}

const KINDS: [(FaultKind, &str); 7] = [
    (FaultKind::Busy, "busy"),
    (FaultKind::Full, "full"),
    (FaultKind::Missing, "missing"),
    (FaultKind::Denied, "denied"),
    (FaultKind::Timeout, "timeout"),
    (FaultKind::Exited, "exited"),
    (FaultKind::Other, "other"),
];

const PRESENCES: [(Presence, &str); 3] = [
    (Presence::Absent, "absent"),
    (Presence::Present, "present"),
    (Presence::Different, "different"),
];

impl From<Fault> for HelperReply {
    fn from(fault: Fault) -> HelperReply {
        let word = KINDS.iter().find(|(kind, _)| *kind == fault.kind);
        HelperReply::Fault {
            kind: word.map_or("other", |(_, word)| *word).to_owned(),
            what: fault.what,
        }
    }
}

impl From<Presence> for HelperReply {
    fn from(presence: Presence) -> HelperReply {
        let word = PRESENCES.iter().find(|(seen, _)| *seen == presence);
        HelperReply::Saw {
            presence: word.map_or("different", |(_, word)| *word).to_owned(),
        }
    }
}

impl HelperReply {
    /// What the answer means: `None` for a verb that was done.
    ///
    /// # Errors
    /// The helper's fault; a kind of a newer helper counts as `Other`.
    pub fn outcome(self) -> Result<Option<Presence>, Fault> {
        match self {
            HelperReply::Done {} => Ok(None),
            HelperReply::Saw { presence } => {
                let seen = PRESENCES.iter().find(|(_, word)| *word == presence);
                Ok(Some(seen.map_or(Presence::Different, |(seen, _)| *seen)))
            }
            HelperReply::Fault { kind, what } => {
                let known = KINDS.iter().find(|(_, word)| *word == kind);
                Err(Fault::new(
                    known.map_or(FaultKind::Other, |(kind, _)| *kind),
                    what,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_and_presences_survive_the_wire() {
        for (kind, _) in KINDS {
            let fault = Fault::new(kind, "add tap bgr-00000001: busy");
            assert_eq!(HelperReply::from(fault.clone()).outcome(), Err(fault));
        }
        for (presence, _) in PRESENCES {
            assert_eq!(HelperReply::from(presence).outcome(), Ok(Some(presence)));
        }
    }

    #[test]
    fn a_step_with_a_path_is_no_request() {
        let steps = [
            r#"{"kind":"tap","vm":"../../etc","subnet":"172.30.0.0/16"}"#,
            r#"{"kind":"vm_directory","vm":"00000001"}"#,
            r#"{"kind":"tap","vm":"00000001","subnet":"172.30.0.0/16","name":"eth0"}"#,
        ];
        for step in steps {
            assert!(serde_json::from_str::<HelperStep>(step).is_err(), "{step}");
        }
    }

    #[test]
    fn only_steps_that_need_root_have_a_wire_form() {
        let vm = VmId::from_bits(1);
        let step = Step::Tap {
            vm,
            subnet: "172.30.0.0/16".parse().unwrap(),
        };
        assert_eq!(HelperStep::of(&step).map(|wire| wire.step()), Some(step));
        assert_eq!(HelperStep::of(&Step::RunDirectory { vm }), None);
    }
}
