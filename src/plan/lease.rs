//! Addresses of our subnet: each held by at most one VM, from its creation until its
//! row is gone. A start in another subnet than the last one exchanges it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::failure::{Failure, FailureKind};
use crate::model::ids::VmId;
use crate::model::net::{Lease, Subnet};

/// Who holds which address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    held: BTreeMap<Ipv4Addr, VmId>,
}

impl Leases {
    /// Gives a VM the lowest free address.
    pub fn take(&mut self, vm: VmId, subnet: Subnet) -> Result<Lease, Failure> {
        let free = (0..)
            .map_while(|index| subnet.guest(index))
            .find(|address| !self.held.contains_key(address));
        let Some(address) = free else {
            let what = format!("lease an address: all guests of {subnet} are taken");
            return Err(Failure::new(FailureKind::Failed, what)
                .hint("Delete VMs with `banger vm prune`, or set a larger `network.subnet`."));
        };
        self.held.insert(address, vm);
        Ok(Lease { address, subnet })
    }

    /// Gives a VM an address of this subnet instead of the one that it holds, which it
    /// keeps where there is none.
    pub fn renew(&mut self, vm: VmId, held: Lease, subnet: Subnet) -> Result<Lease, Failure> {
        self.release(vm);
        self.take(vm, subnet).inspect_err(|_| {
            self.restore(vm, held);
        })
    }

    /// Notes an address that a VM holds already; false when another VM has it.
    pub fn restore(&mut self, vm: VmId, lease: Lease) -> bool {
        *self.held.entry(lease.address).or_insert(vm) == vm
    }

    /// Frees what a VM holds.
    pub fn release(&mut self, vm: VmId) {
        self.held.retain(|_, holder| *holder != vm);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet() -> Subnet {
        "10.9.0.0/29".parse().unwrap()
    }

    #[test]
    fn full_subnet_is_refused_with_what_to_do() {
        let mut leases = Leases::default();
        for bits in 0..5 {
            leases.take(VmId::from_bits(bits), subnet()).unwrap();
        }
        let failure = leases.take(VmId::from_bits(9), subnet()).unwrap_err();
        assert!(failure.hint.unwrap().contains("vm prune"));
    }

    #[test]
    fn restored_address_of_another_vm_is_refused() {
        let mut leases = Leases::default();
        let lease = leases.take(VmId::from_bits(1), subnet()).unwrap();
        assert!(leases.restore(VmId::from_bits(1), lease));
        assert!(!leases.restore(VmId::from_bits(2), lease));
    }

    #[test]
    fn address_of_another_subnet_is_exchanged_and_free_again() {
        let other: Subnet = "10.8.0.0/30".parse().unwrap();
        let (one, two) = (VmId::from_bits(1), VmId::from_bits(2));
        let mut leases = Leases::default();
        let held = leases.take(one, subnet()).unwrap();
        assert_eq!(leases.renew(one, held, other).unwrap().subnet, other);
        assert_eq!(leases.take(two, subnet()).unwrap(), held);
        leases.renew(two, held, other).unwrap_err();
        assert!(leases.restore(two, held) && !leases.restore(one, held));
    }

    proptest! {
        #[test]
        fn no_address_is_held_twice(script in prop::collection::vec((0_u32..8, any::<bool>()), 0..60)) {
            let mut leases = Leases::default();
            let mut model: BTreeMap<u32, Lease> = BTreeMap::new();
            for (vm, take) in script {
                let id = VmId::from_bits(vm);
                if take && !model.contains_key(&vm) {
                    if let Ok(lease) = leases.take(id, subnet()) {
                        prop_assert!(model.values().all(|other| other.address != lease.address));
                        prop_assert!(subnet().contains(lease.address));
                        prop_assert_ne!(lease.address, subnet().gateway());
                        model.insert(vm, lease);
                    } else {
                        prop_assert_eq!(model.len(), 5);
                    }
                } else if !take {
                    leases.release(id);
                    model.remove(&vm);
                }
            }
        }
    }
}
